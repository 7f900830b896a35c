"""A damaged database: noticing what SQLite passes over in its log, and copying what can still be read.

Frames of the write-ahead log: https://sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path

from shared_features.errors import ConfigurationError

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, salt 1, salt 2, checksum 1, checksum 2
_FRAME = struct.Struct(">6I")  # page, pages after commit (0: no commit), salt 1, salt 2, checksum 1, checksum 2
_MAGIC = (0x377F0682, 0x377F0683)


@dataclass(frozen=True, slots=True)
class LogFrames:
    """What the log of a database holds, by its headers alone.

    Attributes:
        last_commit: number of the last frame that ends a transaction, counted from 1; 0 if there is none.
        header_broken: the log's own header has a wrong checksum, so that SQLite ignores all of it.
        odd: numbers of frames that belong to this log by one of their two salts only.
    """

    last_commit: int = 0
    header_broken: bool = False
    odd: tuple[int, ...] = ()

    def lost_after(self, recovered: int) -> bool:
        """Whether transactions lie behind the `recovered` frames that SQLite took.

        A transaction cut short by a crash has no last frame, so that it does not count. A damaged last
        transaction cannot be told from one that was cut short.
        """
        return self.header_broken or self.last_commit > recovered or recovered + 1 in self.odd


def log_frames(path: Path) -> LogFrames:
    """Read the headers of the log of the database at `path`; call before SQLite opens it."""
    log = path.with_name(path.name + "-wal")
    try:
        with log.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size:
                return LogFrames()
            magic, _, page_bytes, _, salt1, salt2, *sums = _HEADER.unpack(start)
            if magic not in _MAGIC or list(_checksum(start[:24], magic)) != sums:
                return LogFrames(header_broken=any(start))
            number, last_commit, odd = 0, 0, []
            while len(header := file.read(_FRAME.size)) == _FRAME.size:
                number += 1
                _, pages, frame_salt1, frame_salt2, _, _ = _FRAME.unpack(header)
                same = (frame_salt1 == salt1) + (frame_salt2 == salt2)
                if same == 1:
                    odd.append(number)
                if file.seek(page_bytes, 1) > log.stat().st_size:
                    break
                if same == 2 and pages:
                    last_commit = number
    except FileNotFoundError:
        return LogFrames()
    return LogFrames(last_commit, odd=tuple(odd))


def copy_readable(path: Path, tables: tuple[str, ...], schema: str, why: str) -> str:
    """Put a damaged database aside and copy its readable rows to a new one; one sentence on it.

    Raises:
        ConfigurationError: nothing can be read, or not even which topics and subscriptions there are.
    """
    aside = next(
        candidate
        for number in range(1, 1000)
        if not (candidate := path.with_name(f"{path.stem}-damaged-{number}.db")).exists()
    )
    rows: dict[str, list[tuple[object, ...]]] = {}
    with contextlib.closing(sqlite3.connect(path)) as damaged:
        damaged.text_factory = bytes
        for table in tables:
            rows[table] = _readable(damaged, table)
    if not rows["resource"]:
        raise ConfigurationError(
            f"{path} cannot be read ({why}): restore it from a copy, or move it away to start without messages."
        )
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as mended:
        mended.executescript(schema)
        mended.execute("BEGIN")
        for table, found in rows.items():
            for row in found:
                marks = ", ".join("?" * len(row))
                mended.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608 - own names
        mended.execute("COMMIT")
    return f"{path} is damaged ({why}); what could be read was copied, the damaged file is now {aside.name}."


def _readable(damaged: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    """The rows up to the first damage, from either end."""
    found: dict[tuple[object, ...], tuple[object, ...]] = {}
    for order in ("1, 2", "1 DESC, 2 DESC"):
        with contextlib.suppress(sqlite3.DatabaseError):
            for row in damaged.execute(f"SELECT * FROM {table} ORDER BY {order}"):  # noqa: S608 - own names
                if row[:2] in found and order != "1, 2":
                    break
                found[row[:2]] = row
    return list(found.values())


def _checksum(data: bytes, magic: int) -> tuple[int, int]:
    first = second = 0
    words = struct.unpack((">" if magic & 1 else "<") + f"{len(data) // 4}I", data)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
