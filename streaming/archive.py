"""The archive: the write-ahead log of everything folded, and what a restarted job comes back from (C6, C9).

A folder of segments ``<first commit>.log``; each is a sequence of frames, each frame is::

    magic "SRF1" | kind (1 byte) | payload length (4 bytes, big endian) | CRC-32 of kind and payload (4) | payload

Kinds: ``S`` the Arrow schema of the commits that follow; ``C`` a commit: 4 bytes length of a JSON header, the
header (sequence number, counts), then an Arrow record batch message; ``P`` a mark: all commits up to this
sequence number have been published. Commits are durable (fsync) when `Archive.append` returns; a mark need not be,
because publishing again gives the same ids and bits.

A torn frame at the end of the last segment is what a crash leaves: it is cut off, and what it held was never
acknowledged. Damage anywhere else is refused, never silently served. The format is our own because it must be
appended and synced per commit, which Parquet cannot; nothing in it is pickle.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shared_features.errors import ConfigurationError, HistoryError

log = logging.getLogger(__name__)

_FRAME = struct.Struct(">4scII")
_MAGIC = b"SRF1"
_MAX_PAYLOAD_BYTES = 1 << 30
SEGMENT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Commit:
    """Rows that became durable together, in fold order, with the counts of all events they came with."""

    sequence: int
    counts: Mapping[str, Any]
    block: pa.RecordBatch
    published: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    kind: bytes
    payload: memoryview
    end: int


def segments(folder: Path) -> list[Path]:
    """The archive's segment files, oldest first."""
    return sorted(folder.glob("*.log"))


def read_commits(folder: Path) -> Iterator[Commit]:
    """Every commit, oldest first; memory is bounded by one segment, marks are read first.

    Raises:
        HistoryError: there is no archive, or it is damaged before its end.
    """
    files = segments(folder)
    if not (folder / "archive.json").is_file():
        raise HistoryError(f"archive {folder} was not found: wanted a folder that `sameriver stream` wrote")
    published = _published_up_to(files)
    for number, file in enumerate(files):
        schema: pa.Schema | None = None
        for frame in _frames(file, is_last=number == len(files) - 1):
            if frame.kind == b"S":
                schema = pa.ipc.read_schema(pa.py_buffer(frame.payload))
            elif frame.kind == b"C":
                if schema is None:
                    raise HistoryError(f"archive segment {file} has a commit before any schema: restore it from a copy")
                header, rows = _commit(frame.payload)
                block = pa.ipc.read_record_batch(pa.py_buffer(rows), schema)
                sequence = header["sequence"]
                yield Commit(sequence, header["counts"], block, sequence <= published)


def _commit(payload: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Header and record batch message of a commit's frame."""
    length = int.from_bytes(payload[:4], "big")
    return json.loads(bytes(payload[4 : 4 + length])), payload[4 + length :]


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


def _published_up_to(files: list[Path]) -> int:
    """Marks only grow, so the last one counts; it stands in the newest segment that has any."""
    for number in range(len(files) - 1, -1, -1):
        marks = [
            int.from_bytes(frame.payload, "big")
            for frame in _frames(files[number], is_last=number == len(files) - 1)
            if frame.kind == b"P"
        ]
        if marks:
            return max(marks)
    return -1


def _frames(file: Path, *, is_last: bool) -> Iterator[_Frame]:
    data = memoryview(file.read_bytes())
    at = 0
    while at < len(data):
        frame = _frame_at(data, at)
        if frame is None:
            if is_last and not _whole_frame_after(data, at):
                log.warning("archive segment %s: cut off %d torn bytes at its end", file.name, len(data) - at)
                return
            raise HistoryError(
                f"archive segment {file} is damaged at byte {at}: wanted a whole frame; restore it from a copy"
            )
        yield frame
        at = frame.end


def _whole_frame_after(data: memoryview, at: int) -> bool:
    """Whether anything valid follows: then this is damage in the middle, not the torn end of a crash."""
    rest = bytes(data[at + 1 :])
    found = rest.find(_MAGIC)
    while found >= 0:
        if _frame_at(data, at + 1 + found) is not None:
            return True
        found = rest.find(_MAGIC, found + 1)
    return False


def _frame_at(data: memoryview, at: int) -> _Frame | None:
    if at + _FRAME.size > len(data):
        return None
    magic, kind, length, checksum = _FRAME.unpack_from(data, at)
    end = at + _FRAME.size + length
    if magic != _MAGIC or length > _MAX_PAYLOAD_BYTES or end > len(data):
        return None
    payload = data[at + _FRAME.size : end]
    return _Frame(kind, payload, end) if zlib.crc32(payload, zlib.crc32(kind)) == checksum else None


class Archive:
    """The open archive of one job; one process at a time.

    Args:
        folder: made if absent.
        app: name, ``fingerprint`` and ``definitions`` of the app that writes.

    Raises:
        ConfigurationError: the folder cannot be written, another job holds it, or it was written by another
            fingerprint.
        HistoryError: it is damaged before its end.
    """

    def __init__(self, folder: Path, app: Mapping[str, Any]) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise ConfigurationError(
                f"archive folder {folder} cannot be written ({error.strerror}): give another with --archive"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigurationError(
                f"archive folder {folder} is in use by another job: stop that one, or give another with --archive"
            ) from None
        try:
            self._check_identity(dict(app))
        except ConfigurationError:
            self._lock.close()
            raise
        self._schema: pa.Schema | None = None
        files = segments(folder)
        self._next = self._resume(files[-1]) if files else 0
        self._file = self._open_segment()

    def append(self, block: pa.RecordBatch, counts: Mapping[str, Any]) -> int:
        """Write one commit durably.

        Args:
            block: rows in fold order; none is fine.
            counts: how the events that came with these rows ended (see `accounting`).

        Returns:
            The commit's sequence number.
        """
        if self._file.tell() > SEGMENT_BYTES:
            self._file.close()
            self._file = self._open_segment()
        if self._schema is None or not block.schema.equals(self._schema):
            self._schema = block.schema
            self._write(b"S", bytes(block.schema.serialize()))
        sequence, self._next = self._next, self._next + 1
        header = json.dumps({"sequence": sequence, "counts": counts}, sort_keys=True).encode("utf-8")
        self._write(b"C", len(header).to_bytes(4, "big") + header + bytes(block.serialize()))
        self._file.flush()
        os.fdatasync(self._file.fileno())
        return sequence

    def mark_published(self, sequence: int) -> None:
        """Note that every commit up to ``sequence`` has been published; not forced to disk."""
        self._write(b"P", sequence.to_bytes(8, "big"))
        self._file.flush()

    def close(self) -> None:
        """Force everything to disk and let go of the folder."""
        os.fdatasync(self._file.fileno())
        self._file.close()
        self._lock.close()

    def _write(self, kind: bytes, payload: bytes) -> None:
        self._file.write(_FRAME.pack(_MAGIC, kind, len(payload), zlib.crc32(payload, zlib.crc32(kind))) + payload)

    def _open_segment(self) -> Any:
        path = self.folder / f"{self._next:016d}.log"
        self._schema = None
        file = path.open("ab")
        directory = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new name itself must survive
        finally:
            os.close(directory)
        return file

    @staticmethod
    def _resume(newest: Path) -> int:
        """Cut off what a crash tore at the end of the newest segment; the sequence number to go on with."""
        sequence, end = int(newest.stem), 0
        for frame in _frames(newest, is_last=True):
            end = frame.end
            if frame.kind == b"C":
                sequence = _commit(frame.payload)[0]["sequence"] + 1
        if end < newest.stat().st_size:
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
