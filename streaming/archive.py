"""The archive: the write-ahead log of everything folded, and what a restarted job comes back from (C6, C9).

A folder::

    archive.json                        whose archive it is
    0000000000000412.log                the newest commits, synced one by one: see `streaming.archive_log`
    parquet/publish_date=…/….parquet    rows of older ones, for any reader: see `streaming.archive_parquet`
    commits/….parquet                   their counts

Commits are durable (fsync) when `Archive.append` returns; a mark need not be, because publishing again gives the
same ids and bits. A segment of the log is closed when it is large or its day is over; once its commits have been
published it becomes Parquet, beside the job (`streaming.compaction`).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from shared_features.errors import ConfigurationError, HistoryError
from streaming import archive_log, archive_parquet
from streaming.archive_log import COMMIT, MARK, SCHEMA, Commit, commit_header, commit_payload, frames, write_frame
from streaming.archive_parquet import index_path
from streaming.compaction import Compacted, Compactor, compact
from streaming.locks import take_lock

SEGMENT_BYTES = 64 << 20
"""A larger segment is closed: it bounds what compaction and the reading of Parquet hold in memory."""

log = logging.getLogger(__name__)

_DAY_S = 86_400

__all__ = ["Archive", "Commit", "compact_archive", "counts_of", "identity", "read_commits", "read_counts", "segments"]


def segments(folder: Path) -> list[Path]:
    """One file of each segment, oldest first: its log, or, once it is Parquet, the one that names its commits."""
    return [
        index_path(folder, first) if index_path(folder, first).exists() else archive_log.segment_path(folder, first)
        for first in _firsts(folder)
    ]


def read_commits(folder: Path, after: int = -1) -> Iterator[Commit]:
    """Every commit, oldest first, wherever it stands; a job may go on writing meanwhile.

    Memory is bounded by one segment of Parquet, or one commit of the log.

    Args:
        folder: of the archive.
        after: segments of which all commits up to this one have been published are left out.

    Raises:
        HistoryError: there is no archive, it is damaged before its end, or commits are missing.
    """
    firsts = _opened(folder)
    published = _published_up_to(folder, firsts)
    expected, skipped = 0, min(after, published)
    for number, first in enumerate(firsts):
        if number + 1 < len(firsts) and firsts[number + 1] - 1 <= skipped:
            expected = firsts[number + 1]
            continue
        for commit in _read_segment(folder, first, is_last=first == firsts[-1], published=published):
            _check_follows(folder, expected, commit.sequence)
            expected = commit.sequence + 1
            yield commit


def read_counts(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The counts of every commit, oldest first; rows in Parquet are not read for it.

    Raises:
        HistoryError: as `read_commits`.
    """
    for _, counts in _numbered_counts(folder, _opened(folder)):
        yield counts


def counts_of(folder: Path, sequence: int) -> Mapping[str, Any] | None:
    """The counts of one commit; None if there is no such commit.

    Raises:
        HistoryError: as `read_commits`.
    """
    firsts = [first for first in _opened(folder) if first <= sequence]
    return next((counts for found, counts in _numbered_counts(folder, firsts[-1:]) if found == sequence), None)


def _numbered_counts(folder: Path, firsts: list[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    expected, newest = firsts[0] if firsts else 0, segments(folder)[-1:]
    for first in firsts:
        found: Iterator[tuple[int, Mapping[str, Any]]]
        if index_path(folder, first).exists():
            found = archive_parquet.read_counts(index_path(folder, first))
        else:
            is_last = newest == [archive_log.segment_path(folder, first)]
            commits = _read_segment(folder, first, is_last=is_last, published=-1)
            found = ((commit.sequence, commit.counts) for commit in commits)
        for sequence, counts in found:
            _check_follows(folder, expected, sequence)
            expected = sequence + 1
            yield sequence, counts


def identity(folder: Path) -> dict[str, Any]:
    """App name, fingerprint and definitions that the archive was written with.

    Raises:
        HistoryError: the folder holds no archive.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "archive.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise HistoryError(f"archive {folder} was not found: wanted a folder that `sameriver stream` wrote") from None
    return found


def compact_archive(folder: Path) -> Compacted:
    """Rewrite as Parquet all that has been published, also the newest segment; no job may be running.

    Raises:
        ConfigurationError: a job is running: it compacts by itself.
        HistoryError: there is no archive, or it is damaged.
    """
    firsts = _opened(folder)
    with _locked(folder):
        return compact(folder, _published_up_to(folder, firsts), newest_too=True)


def _opened(folder: Path) -> list[int]:
    if not (folder / "archive.json").is_file():
        raise HistoryError(f"archive {folder} was not found: wanted a folder that `sameriver stream` wrote")
    return _firsts(folder)


def _firsts(folder: Path) -> list[int]:
    """First commits of all segments, ascending.

    A segment goes from log to Parquet while this looks: what has rows is listed first, then the logs, then what is
    compacted, so that each is found as one of the two.
    """
    with_rows = archive_parquet.segments_with_rows(folder)
    logs = {int(path.stem) for path in folder.glob("*.log")}
    found = logs.union(archive_parquet.compacted_segments(folder))
    for first in with_rows - found:
        raise HistoryError(f"archive file {index_path(folder, first)} is not there: restore it from a copy")
    return sorted(found)


def _read_segment(folder: Path, first: int, *, is_last: bool, published: int) -> Iterator[Commit]:
    """The commits of one segment: from Parquet if it is compacted, else from its log, which stays open till the end."""
    file = _open_log(folder, first)
    if file is None:
        yield from archive_parquet.read_segment(folder, first)
        return
    with file:
        yield from archive_log.read_segment(file, is_last=is_last, published=published)


def _open_log(folder: Path, first: int) -> IO[bytes] | None:
    """The log of a segment; None if it is Parquet by now."""
    if index_path(folder, first).exists():
        return None
    try:
        return archive_log.segment_path(folder, first).open("rb")
    except FileNotFoundError:
        return None


def _check_follows(folder: Path, expected: int, sequence: int) -> None:
    if sequence != expected:
        raise HistoryError(
            f"archive {folder} has commit {sequence} where commit {expected} was wanted: a segment is missing; "
            "restore it from a copy"
        )


def _published_up_to(folder: Path, firsts: list[int]) -> int:
    """Marks only grow, so the last one counts; it stands in the newest segment that has any, or that is Parquet."""
    for first in reversed(firsts):
        file = _open_log(folder, first)
        if file is None:
            return archive_parquet.read_index(index_path(folder, first)).last
        with file:
            mark = archive_log.last_mark(file, is_last=first == firsts[-1])
        if mark is not None:
            return mark
    return -1


class Archive:
    """The open archive of one job; one process at a time. One thread appends, another one may mark.

    Args:
        folder: made if absent.
        app: name, ``fingerprint`` and ``definitions`` of the app that writes.
        clock: seconds since 1970, for the end of a day (UTC).

    Attributes:
        rows: appended since this was opened.

    Raises:
        ConfigurationError: the folder cannot be written, another job holds it, or it was written by another
            fingerprint.
        HistoryError: it is damaged before its end.
    """

    def __init__(self, folder: Path, app: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
        except OSError as error:
            raise ConfigurationError(
                f"archive folder {folder} cannot be written ({error.strerror}): give another with --archive"
            ) from None
        try:
            self._check_identity(dict(app))
            self._next = self._resume()
        except BaseException:
            self._lock.close()
            raise
        self._writing = threading.Lock()
        self._compactor = Compactor(folder)
        self._last_counts: Mapping[str, Any] = {}
        self.rows = 0
        self._schema: pa.Schema | None = None
        self._file = self._open_segment()
        older = sorted(folder.glob("*.log"))[:-1]
        self._compact_due = any(path.stat().st_mtime // _DAY_S < self._day for path in older)

    def append(self, block: pa.RecordBatch, counts: Mapping[str, Any]) -> int:
        """Write one commit durably.

        Args:
            block: rows in fold order; none is fine.
            counts: how the events that came with these rows ended (see `accounting`).

        Returns:
            The commit's sequence number.
        """
        sequence = self._next
        payload = commit_payload(sequence, counts, block)
        with self._writing:
            size = self._file.tell()
            if size > SEGMENT_BYTES or (size and self._today() != self._day):
                self._file.close()
                self._file = self._open_segment()
                self._compact_due = True
            if self._schema is None or not block.schema.equals(self._schema, check_metadata=True):
                self._schema = block.schema
                write_frame(self._file, SCHEMA, bytes(block.schema.serialize()))
            self._next, self._last_counts = sequence + 1, counts
            write_frame(self._file, COMMIT, payload)
            self._file.flush()
        os.fdatasync(self._file.fileno())
        self.rows += block.num_rows
        return sequence

    def mark_published(self, sequence: int) -> None:
        """Note that every commit up to ``sequence`` has been published; not forced to disk."""
        with self._writing:
            write_frame(self._file, MARK, sequence.to_bytes(8, "big"))
            self._file.flush()
        if self._compact_due and self._compactor.start(sequence):
            self._compact_due = False

    @property
    def last(self) -> tuple[int, Mapping[str, Any]]:
        """The last commit that was appended since this was opened, and its counts; -1 if none was."""
        return (self._next - 1 if self._last_counts else -1), self._last_counts

    @property
    def next_sequence(self) -> int:
        """The sequence number of the next commit."""
        return self._next

    def close(self) -> None:
        """Force everything to disk and let go of the folder."""
        self._compactor.close()
        os.fdatasync(self._file.fileno())
        self._file.close()
        self._lock.close()

    def _today(self) -> int:
        return int(self._clock() // _DAY_S)

    def _open_segment(self) -> IO[bytes]:
        self._schema, self._day = None, self._today()
        file = archive_log.segment_path(self.folder, self._next).open("ab")
        archive_log.sync_folder(self.folder)
        return file

    def _resume(self) -> int:
        """Cut off what a crash tore at the end of the newest segment; the sequence number to go on with."""
        done = archive_parquet.compacted_segments(self.folder)
        following = archive_parquet.read_index(index_path(self.folder, done[-1])).last + 1 if done else 0
        logs = sorted(self.folder.glob("*.log"))
        if not logs or int(logs[-1].stem) < following:
            return following
        newest = logs[-1]
        sequence, end = int(newest.stem), 0
        with newest.open("rb") as file:
            for frame in frames(file, is_last=True):
                end = frame.end
                if frame.kind == COMMIT:
                    sequence = commit_header(frame)[0]["sequence"] + 1
        if end < newest.stat().st_size:
            torn = newest.stat().st_size - end
            log.warning("archive segment %s: cut off %d torn bytes at its end", newest.name, torn)
            os.truncate(newest, end)
        return sequence

    def _check_identity(self, app: dict[str, Any]) -> None:
        path = self.folder / "archive.json"
        if not path.exists():
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(app, sort_keys=True), "utf-8")
            os.replace(temporary, path)
            return
        written = identity(self.folder)
        if written["fingerprint"] != app["fingerprint"]:
            raise ConfigurationError(
                f"archive folder {self.folder} was written by fingerprint {written['fingerprint']} of app "
                f"{written['app']!r}, wanted {app['fingerprint']}: give a new folder with --archive"
            )


def _locked(folder: Path) -> IO[str]:
    """The archive's lock, held until it is closed. Raises ConfigurationError if another job has it."""
    lock = take_lock(folder / "lock")
    if lock is None:
        raise ConfigurationError(
            f"archive folder {folder} is in use by another job: stop that one, or give another with --archive"
        )
    return lock
