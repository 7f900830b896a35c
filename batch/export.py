"""Export: what an archive holds, into BigQuery or Parquet, once, beside the job that goes on writing it.

The archive on this machine stays the write-ahead log (contract C6); nothing that an event waits for depends on where
its rows go later. An export follows it like any reader: it takes what has been published, in order, and asks the
*destination* how far it is: the last commit of this archive among a table's rows, or in the names of its files.
So an export can be stopped, killed, and gone on with from another copy of the archive.

Between "about to commit" and "committed" the destination may not know yet. So the tokens are noted beside the
archive first (``export/<name>.json``), and what a kill left noted is committed again before anything is asked:
committing twice is once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batch.files import open_files
from batch.output_rows import ARCHIVE, KINDS, MARKS, archive_id, shape_of
from batch.writers import Destination, PieceGoneError, Shape, Written, open_destination
from shared_features.app import App
from shared_features.blocks import append_columns, concat_blocks
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.whole_files import replace_text
from streaming import archive as archives
from streaming.archive_log import Commit
from streaming.archive_parquet import COMMIT_COLUMN, ROW_COLUMN
from streaming.following import follow_commits
from streaming.locks import take_lock
from streaming.naming import topic
from streaming.outgoing import row_letter
from streaming.topics import OutgoingMessage, TopicError

PIECE_BYTES = 64 << 20
"""Rows of about so many bytes are committed together; they wait in memory until then."""

GIVE_UP_S = 3600.0
"""How long a destination may stay away from an export that follows."""

NOTES = "export"

Publish = Callable[[str, Sequence[OutgoingMessage]], object]

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<first>\d{16})-(?P<last>\d{16})(-[0-9a-f]{8})?\.parquet")


@dataclass(slots=True)
class Exported:
    """What one export did.

    Attributes:
        to: the destination. what: kind of rows.
        written: what became of the rows.
        commits: of the archive, looked at.
        last: the last of them; -1 if there is none.
        resumed_after: the last commit that the destination had already; -1 if it had none.
    """

    to: str
    what: str
    written: Written = field(default_factory=Written)
    commits: int = 0
    last: int = -1
    resumed_after: int = -1

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


class Export:
    """One archive on its way to one destination; one process at a time.

    Args:
        app: whose archive it is.
        folder: of the archive.
        what: one of `KINDS`.
        to: URI of the destination, see `open_destination`.
        publish: takes a topic and messages, and returns when they are stored: dead letters of rows that the destination
            refuses. None: these are kept in a file.

    Raises:
        FingerprintError: the archive was written by other features.
        ConfigurationError: another process exports this archive to there, or it lies in the archive.
        HistoryError: there is no archive, or the destination cannot be reached.
    """

    def __init__(self, app: App, folder: Path, what: str, to: str, publish: Publish | None = None) -> None:
        self._app, self._folder, self._what, self._to, self._publish = app, folder, what, to, publish
        written_by = archives.identity(folder)
        if written_by["fingerprint"] != app.fingerprint:
            raise FingerprintError(
                f"archive {folder} was written by fingerprint {written_by['fingerprint']}, app {app.name!r} has "
                f"{app.fingerprint}: give the app's own archive"
            )
        if "://" not in to and Path(to).resolve().is_relative_to(folder.resolve()):
            raise ConfigurationError(
                f"{to} lies in the archive {folder}, whose files are the job's own: name another folder"
            )
        notes = folder / NOTES
        notes.mkdir(exist_ok=True)
        name = hashlib.blake2b(f"{what} {to}".encode(), digest_size=8).hexdigest()
        self._note, self.rejected = notes / f"{name}.json", notes / f"{name}.rejected.jsonl"
        lock = take_lock(notes / f"{name}.lock")
        if lock is None:
            raise ConfigurationError(f"archive {folder} is being exported to {to} already: stop that one")
        self._lock = lock
        self._id = ""
        self._at: int | None = None
        self._commits: Iterator[Commit | None] | None = None
        self._waiting: deque[Commit] = deque()  # read, in order; the first ones may have been published
        self._marked = -1
        self._destination: Destination | None = None
        self._shape: Shape | None = None
        self.done = Exported(to, what)

    def catch_up(
        self, tell: Callable[[int], None] = lambda _: None, stopped: Callable[[], bool] = lambda: False
    ) -> Exported:
        """Export all that has been published since.

        Args:
            tell: is told the number of each commit that has been exported.
            stopped: whether to leave the rest to the next call.

        Raises:
            HistoryError: the archive is damaged, or the destination cannot be reached or written.
        """
        if self._at is None and not self._begin():
            return self.done
        held: list[Commit] = []
        size = 0
        for commit in self._new_commits():
            if held and (size > PIECE_BYTES or not commit.block.schema.equals(held[0].block.schema)):
                self._put(held, tell)
                held, size = [], 0
                if stopped():
                    return self.done
            held.append(commit)
            size += commit.block.nbytes
        if held:
            self._put(held, tell)
        return self.done

    def begin_anew(self) -> None:
        """After an error: the next `catch_up` settles what is noted and asks the destination where it is."""
        self._at = self._commits = self._destination = self._shape = None
        self._waiting.clear()

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.close()

    def _begin(self) -> bool:
        """Find out which archive this is and how far the destination is; False while nothing has been published."""
        commits = archives.read_commits(self._folder)
        first = next((commit for commit in commits if commit.block.num_rows or not commit.published), None)
        if first is None or not first.published:
            return False
        self._id = archive_id(self._app.fingerprint, first.block)
        self._open(self._rows([first]).schema)
        self._settle()
        self._at = self.done.resumed_after = self._position()
        return True

    def _new_commits(self) -> Iterator[Commit]:
        """Published commits with rows that are not at the destination yet; nothing is read twice.

        A commit that was given is done with when the next one is asked for.
        """
        assert self._at is not None
        if self._commits is None:
            self._commits = follow_commits(self._folder, max(self._at, self.done.last), self._mark)
        while (commit := next(self._commits)) is not None:
            self._waiting.append(commit)
            yield from self._published()
        yield from self._published()

    def _published(self) -> Iterator[Commit]:
        while self._waiting and self._waiting[0].sequence <= self._marked:
            if self._waiting[0].block.num_rows:
                yield self._waiting[0]
            self._waiting.popleft()

    def _mark(self, commit: int) -> None:
        self._marked = max(self._marked, commit)

    def _rows(self, commits: Sequence[Commit]) -> pa.RecordBatch:
        """What is exported of some commits of the same columns."""
        counts = [commit.block.num_rows for commit in commits]
        block = concat_blocks([commit.block for commit in commits])
        ends = np.cumsum(counts)
        places = {
            ARCHIVE: pa.array([self._id]).take(pa.array(np.zeros(block.num_rows, np.int64))),
            COMMIT_COLUMN: pa.array(np.repeat(np.array([commit.sequence for commit in commits], np.int64), counts)),
            ROW_COLUMN: pa.array((np.arange(block.num_rows) - np.repeat(ends - counts, counts)).astype(np.int32)),
        }
        return KINDS[self._what][0](self._app, append_columns(block, places))

    def _open(self, schema: pa.Schema) -> Destination:
        if self._destination is None or self._shape is None or self._shape.schema != schema:
            self._shape = shape_of(self._app, self._what, schema)
            self._destination = open_destination(self._to, self._shape)
            self._destination.prepare()
        return self._destination

    def _put(self, held: Sequence[Commit], tell: Callable[[int], None]) -> None:
        block = self._rows(held)
        if block.num_rows:
            destination = self._open(block.schema)
            name = f"{self._what}-{self._id}/{held[0].sequence:016d}-{held[-1].sequence:016d}"
            with destination.piece(name, partial(self._reject, held)) as piece:
                piece.write(block)
            self._write_note(piece.token)
            self.done.written += destination.commit([piece.token])
            self._note.unlink()
        self.done.commits, self.done.last = self.done.commits + len(held), held[-1].sequence
        tell(self.done.last)

    def _write_note(self, token: bytes) -> None:
        replace_text(self._note, json.dumps({"to": self._to, "token": token.decode()}))

    def _settle(self) -> None:
        """Commit what a kill may have left half committed."""
        if not self._note.exists():
            return
        assert self._destination is not None
        token = json.loads(self._note.read_bytes())["token"].encode()
        with suppress(PieceGoneError):  # it was never committed, and never will be
            self.done.written += self._destination.commit([token])
        self._note.unlink()

    def _position(self) -> int:
        """The last commit of this archive at the destination; -1 if there is none."""
        if self._to.startswith("bq://"):
            from batch.bigquery_service import Endpoints
            from batch.bigquery_tables import greatest

            where = Endpoints.from_environment()
            found = greatest(self._to, COMMIT_COLUMN, {ARCHIVE: self._id}, MARKS[self._what], where)
            return -1 if found is None else found
        names = [name.rpartition("/")[2] for name in open_files(self._to).names(f"{self._what}-{self._id}/")]
        return max((int(match["last"]) for match in map(_NAME.fullmatch, names) if match), default=-1)

    def _reject(self, held: Sequence[Commit], rows: pa.RecordBatch, reasons: Sequence[str]) -> None:
        """Dead-letter the events of rows that the destination refuses; without a broker keep the rows in a file."""
        if self._publish is None:
            with self.rejected.open("a", encoding="utf-8") as file:
                for row, reason in zip(rows.to_pylist(), reasons, strict=True):
                    file.write(json.dumps({"to": self._to, "reason": reason, "row": row}, default=str) + "\n")
                file.flush()
                os.fsync(file.fileno())
            return
        blocks = {commit.sequence: commit.block for commit in held}
        places = zip(*(rows.column(name).to_pylist() for name in (COMMIT_COLUMN, ROW_COLUMN)), reasons, strict=True)
        letters = [
            part
            for commit, row, reason in places
            for part in row_letter(
                self._app, blocks[commit], row, "export_refused", f"{self._what} to {self._to}: {reason}"
            )
        ]
        try:
            self._publish(topic(self._app.name, "dead-letters"), letters)
        except TopicError as error:
            raise HistoryError(
                f"{len(reasons)} rows that {self._to} refuses cannot be dead-lettered ({error}): start the broker, and "
                "export again"
            ) from error


def follow(export: Export, every_s: float, stopping: threading.Event, tell: Callable[[int], None]) -> Exported:
    """Export what is published as it comes, until told to stop.

    Once it has worked, an error is logged and the export begins anew, from what the destination then says.

    Args:
        every_s: how often the archive is looked at; all that came meanwhile is committed together.

    Raises:
        HistoryError: the first time does not work, or nothing has worked for `GIVE_UP_S`.
    """
    worked: float | None = None
    while True:
        started = time.monotonic()
        try:
            export.catch_up(tell, stopping.is_set)
            worked = time.monotonic()
        except HistoryError as error:
            if worked is None or time.monotonic() - worked > GIVE_UP_S:
                raise
            log.warning("%s; it is tried again", error)
            export.begin_anew()
        if stopping.wait(max(0.0, every_s - (time.monotonic() - started))):
            return export.done
