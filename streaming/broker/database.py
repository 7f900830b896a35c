"""The broker's storage on disk: one SQLite file in WAL mode, every row with a checksum of its own.

SQLite gives group commit and survives kill -9 and loss of power: a torn record at the end of its log is noticed
and left out. It does not notice a flipped bit in a row. So every row carries a CRC over its columns, the tree is
checked when it is opened, and the frames of the log that SQLite passes over are looked at: what is lost is said,
and everything else is kept.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shared_features.errors import ConfigurationError
from streaming.broker import salvage
from streaming.broker.backlog import Batch, DamagedError
from streaming.broker.messages import split_fields
from streaming.broker.storage import Recovered, Resource, StorageError
from streaming.locks import take_lock

log = logging.getLogger(__name__)

NAME = "broker.db"
VERSION = 2
"""1 had topics and subscriptions only, in the same tables."""

KINDS = ("subscription", "topic", "snapshot", "schema")
CHECKPOINT_PAGES = 4096  # 16 MB of log between two checkpoints

GIVEN_BACK_PAGES = 262_144  # 1 GB, some 4 s
RESERVED_IDS = 1_000_000

TABLES = {
    "counter": "one INTEGER PRIMARY KEY, next_id INTEGER",
    "resource": "uid INTEGER PRIMARY KEY, kind INTEGER, topic_uid INTEGER, config BLOB",
    "batch": "first_id INTEGER PRIMARY KEY, topic_uid INTEGER, offsets BLOB, key BLOB, time_us INTEGER, messages BLOB",
    "progress": "batch INTEGER, subscription INTEGER, remaining BLOB",
}
"""Without the last column of each, `checksum`. `offsets` of ids from the first (8 bytes each) are empty if there are
no gaps; `remaining` are the indices of messages not acknowledged (2 bytes each)."""

SCHEMA = "".join(
    f"CREATE TABLE IF NOT EXISTS {name} ({columns}, checksum INTEGER"
    + (", PRIMARY KEY (batch, subscription)) WITHOUT ROWID;\n" if name == "progress" else ");\n")
    for name, columns in TABLES.items()
)

_NOT_DAMAGED = {
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip

Row = tuple[int | bytes, ...]


def checksum(row: Sequence[int | bytes]) -> int:
    """CRC-32 over columns, each with its type and length."""
    value = 0
    for column in row:
        data = column if isinstance(column, bytes) else str(column).encode()  # damage may have made it anything
        value = zlib.crc32(data, zlib.crc32(b"%c%d:" % (b"ib"[isinstance(column, bytes)], len(data)), value))
    return value


@dataclass(slots=True)
class _Sealed:
    """Reports that one transaction writes."""

    resources: list[tuple[int, Row | None]]
    batches: dict[int, tuple[int, Batch, list[bytes]]]
    progress: dict[tuple[int, int], Row]
    finished: list[tuple[int]]
    reserve_to: int

    def write(self, connection: sqlite3.Connection) -> None:
        for uid, row in self.resources:
            connection.execute("DELETE FROM resource WHERE uid = ?", (uid,))
            if row is None:
                connection.execute("DELETE FROM progress WHERE subscription = ?", (uid,))
            else:
                _insert(connection, "resource", [row])
        _insert(connection, "batch", [_batch_row(*one) for one in self.batches.values()])
        _insert(connection, "progress", self.progress.values())
        if self.finished:
            connection.executemany("DELETE FROM batch WHERE first_id = ?", self.finished)
            connection.executemany("DELETE FROM progress WHERE batch = ?", self.finished)
        if self.reserve_to:
            _insert(connection, "counter", [(1, self.reserve_to)])


class Database:
    """`Storage` in a folder.

    Args:
        folder: made if it is not there.

    Raises:
        ConfigurationError: the folder cannot be written to, is in use by another broker, or holds something else.
    """

    volatile = False

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = _lock(folder)
        try:
            self._writer, self._damage = _open(self.path)
        except BaseException:
            self._lock.close()
            raise
        self._reader = _connect(self.path)
        self._resources: list[tuple[int, Row | None]] = []
        self._batches: dict[int, tuple[int, Batch, list[bytes]]] = {}
        self._progress: dict[tuple[int, int], Row] = {}
        self._finished: list[tuple[int]] = []
        self._sealed: list[_Sealed] = []
        self._reserved = 0

    def resource(self, resource: Resource) -> None:
        row: Row = (resource.uid, KINDS.index(resource.kind), resource.topic_uid, resource.config)
        self._resources.append((resource.uid, row))

    def resource_gone(self, uid: int) -> None:
        self._resources.append((uid, None))

    def published(self, topic_uid: int, batch: Batch) -> None:
        self._batches[batch.ids[0]] = (topic_uid, batch, batch.fields())

    def progressed(self, subscription_uid: int, batch: Batch, left: Sequence[int]) -> None:
        places = {one: index for index, one in enumerate(batch.ids)}
        first = batch.ids[0]
        self._progress[first, subscription_uid] = (
            first,
            subscription_uid,
            array("H", [places[one] for one in left]).tobytes(),
        )

    def finished(self, batch: Batch) -> None:
        first = batch.ids[0]
        if self._batches.pop(first, None) is None:  # else it was never written
            self._finished.append((first,))

    def seal(self, next_id: int) -> None:
        reserve_to = 0
        if next_id > self._reserved:  # a write for every million ids, not for every commit
            reserve_to = self._reserved = next_id + RESERVED_IDS
        self._sealed.append(_Sealed(self._resources, self._batches, self._progress, self._finished, reserve_to))
        self._resources, self._batches, self._progress, self._finished = [], {}, {}, []

    def sync(self) -> None:
        sealed, self._sealed = self._sealed, []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for one in sealed:
                one.write(self._writer)
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            for one in sealed:
                one.batches.clear()  # their publishers are told; the rest is tried again
            self._sealed = sealed
            log.error("%s cannot be written to (%s): publishers are told to try again", self.path, error)
            raise StorageError(f"The broker cannot write to its disk: {error}.") from error

    def load(self, first_id: int) -> list[bytes]:
        try:
            row = self._reader.execute("SELECT * FROM batch WHERE first_id = ?", (first_id,)).fetchone()
        except sqlite3.Error as error:
            raise DamagedError(str(error)) from error
        if row is None or checksum(row[:-1]) != row[-1]:
            raise DamagedError("no such row, or its checksum is wrong")
        return split_fields(row[5])

    def close(self) -> None:
        self._reader.close()
        with contextlib.suppress(sqlite3.Error):
            if self._writer.execute("PRAGMA freelist_count").fetchone()[0] > CHECKPOINT_PAGES:
                # Give the disk back after a backlog; `execute` would give back a single page.
                self._writer.executescript(f"PRAGMA incremental_vacuum({GIVEN_BACK_PAGES})")
        self._writer.close()
        self._lock.close()

    def recover(self) -> Recovered:
        found = Recovered(damage=self._damage)
        for uid, kind, topic_uid, config in self._rows("resource"):
            found.resources.append(Resource(KINDS[kind], uid, topic_uid, config))
            found.next_id = max(found.next_id, uid + 1)
        for _, next_id in self._rows("counter"):
            found.next_id = max(found.next_id, next_id)
        remaining: dict[int, list[tuple[int, array[int]]]] = {}
        for first_id, uid, indices in self._rows("progress"):
            remaining.setdefault(first_id, []).append((uid, array("H", indices)))
        found.batches = self._stored_batches(remaining, found)
        return found

    def _stored_batches(
        self, remaining: dict[int, list[tuple[int, array[int]]]], found: Recovered
    ) -> Iterator[tuple[int, Batch]]:
        for first_id, topic_uid, offsets, key, time_us, messages in self._rows("batch"):
            fields = split_fields(messages)
            ids: Sequence[int] = range(first_id, first_id + len(fields))
            if offsets:
                ids = array("q", [first_id + offset for offset in array("q", offsets)])
            for uid, indices in remaining.get(first_id, ()):
                found.left[uid, first_id] = [ids[index] for index in indices]
            found.next_id = max(found.next_id, ids[-1] + 1)
            yield topic_uid, Batch(ids, fields, key.decode(), time_us)

    def _rows(self, table: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a table by its key, without checksums; damaged ones are left out and told."""
        for row in self._reader.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):  # noqa: S608 - a name from TABLES
            if checksum(row[:-1]) == row[-1]:
                yield row[:-1]
            else:
                self._damage.append(f"{self.path}: row {row[0]} of {table} is damaged and is left out.")


def _batch_row(topic_uid: int, batch: Batch, fields: list[bytes]) -> Row:
    first = batch.ids[0]
    offsets = b"" if isinstance(batch.ids, range) else array("q", [one - first for one in batch.ids]).tobytes()
    return (first, topic_uid, offsets, batch.key.encode(), batch.publish_time_us, b"".join(fields))


def _insert(connection: sqlite3.Connection, table: str, rows: Any) -> None:
    marks = ", ".join("?" * (TABLES[table].count(",") + 2))
    connection.executemany(f"REPLACE INTO {table} VALUES ({marks})", [(*row, checksum(row)) for row in rows])  # noqa: S608


def _lock(folder: Path) -> IO[str]:
    """A file that this process holds locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = take_lock(folder / "lock")
    except OSError as error:
        raise ConfigurationError(
            f"The broker's data folder {folder} cannot be written to ({error.strerror}): choose another."
        ) from error
    if file is None:
        raise ConfigurationError(
            f"The broker's data folder {folder} is in use by another broker: stop that one, or choose another folder."
        )
    return file


def _open(path: Path) -> tuple[sqlite3.Connection, list[str]]:
    """The writing connection, and what was found damaged and mended."""
    frames = salvage.log_frames(path)
    damage: list[str] = []
    try:
        connection = _checked(path)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in _NOT_DAMAGED:
            raise ConfigurationError(f"{path} cannot be used ({error}): free the file, or choose another.") from error
        damage.append(salvage.copy_readable(path, tuple(TABLES), SCHEMA, str(error)))
        connection = _checked(path)
    else:
        recovered: int = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
        if frames.lost_after(recovered):
            damage.append(f"{path}: its log is damaged; what was written last is lost.")
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        connection.close()
        raise ConfigurationError(f"{path} has format {version}, wanted {VERSION} or less: choose another folder.")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    return connection, damage


def _checked(path: Path) -> sqlite3.Connection:
    """A connection to a database whose tree is sound and has the tables.

    Raises:
        sqlite3.DatabaseError: it is not.
    """
    connection = _connect(path)
    try:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != b"ok":
            raise _damaged(verdict.decode())
        connection.executescript(SCHEMA)
        for table in TABLES:
            marks = len(connection.execute(f"SELECT * FROM {table} LIMIT 0").description)  # noqa: S608
            if marks != TABLES[table].count(",") + 2:
                raise _damaged(f"table {table} has {marks} columns")
    except BaseException:
        connection.close()
        raise
    return connection


def _damaged(what: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(what)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    connection.text_factory = bytes  # a flipped type must not become a decoding error
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect where the file is made
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("PRAGMA secure_delete = OFF")
    except BaseException:
        connection.close()
        raise
    return connection
