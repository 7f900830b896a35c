"""Segments of the archive's log: what is written and synced per commit, frame by frame.

Each segment ``<first commit>.log`` is a sequence of frames::

    magic "SRF1" | kind (1 byte) | payload length (4 bytes, big endian) | CRC-32 of kind and payload (4) | payload

Kinds: ``S`` the Arrow schema of the commits that follow; ``C`` a commit: 4 bytes length of a JSON header, the
header (sequence number, counts), then an Arrow record batch message; ``P`` a mark: all commits up to this
sequence number have been published.

A torn frame at the end of the last segment is what a crash leaves: it is cut off, and what it held was never
acknowledged. Damage anywhere else is refused, never silently served. The format is our own because it must be
appended and synced per commit, which Parquet cannot; nothing in it is pickle.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from shared_features.errors import HistoryError

log = logging.getLogger(__name__)

SCHEMA, COMMIT, MARK = b"S", b"C", b"P"

_FRAME = struct.Struct(">4scII")
_MAGIC = b"SRF1"
_MAX_PAYLOAD_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Commit:
    """Rows that became durable together, in fold order, with the counts of all events they came with."""

    sequence: int
    counts: Mapping[str, Any]
    block: pa.RecordBatch
    published: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: its kind, what it holds, and where in the file it ends."""

    kind: bytes
    payload: memoryview
    end: int


def segment_path(folder: Path, first: int) -> Path:
    """The segment that begins with commit ``first``."""
    return folder / f"{first:016d}.log"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file that was synced is still lost if its name is."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_frame(file: IO[bytes], kind: bytes, payload: bytes | memoryview) -> None:
    """Append a frame; neither flushed nor synced."""
    file.write(_FRAME.pack(_MAGIC, kind, len(payload), zlib.crc32(payload, zlib.crc32(kind))))
    file.write(payload)


def commit_payload(sequence: int, counts: Mapping[str, Any], block: pa.RecordBatch) -> bytes:
    """What a commit's frame holds."""
    header = json.dumps({"sequence": sequence, "counts": counts}, sort_keys=True).encode("utf-8")
    return len(header).to_bytes(4, "big") + header + bytes(block.serialize())


def commit_header(frame: Frame) -> tuple[dict[str, Any], memoryview]:
    """Header and record batch message of a commit's frame."""
    length = int.from_bytes(frame.payload[:4], "big")
    return json.loads(bytes(frame.payload[4 : 4 + length])), frame.payload[4 + length :]


def read_segment(file: IO[bytes], *, is_last: bool, published: int) -> Iterator[Commit]:
    """The commits of an open segment, oldest first; one frame at a time is in memory.

    Raises:
        HistoryError: it is damaged, for the newest segment: before its end.
    """
    return SegmentReader(file, published=published).further(is_last=is_last)


class SegmentReader:
    """Reads an open segment from where it was last, as often as it is asked.

    Args:
        file: the segment.
        published: commits up to this one are marked as published.
        marked: is told of the marks that are read.
    """

    def __init__(self, file: IO[bytes], *, published: int, marked: Callable[[int], None] | None = None) -> None:
        self._file, self._published, self._marked = file, published, marked
        self._at = 0
        self._schema: pa.Schema | None = None

    def further(self, *, is_last: bool) -> Iterator[Commit]:
        """The commits that have come since, as `read_segment` gives them."""
        for frame in frames(self._file, is_last=is_last, start=self._at):
            self._at = frame.end
            if frame.kind == SCHEMA:
                self._schema = pa.ipc.read_schema(pa.py_buffer(frame.payload))
            elif frame.kind == COMMIT:
                if self._schema is None:
                    raise HistoryError(
                        f"archive segment {self._file.name} has a commit before any schema: restore it from a copy"
                    )
                header, rows = commit_header(frame)
                block = pa.ipc.read_record_batch(pa.py_buffer(rows), self._schema)
                sequence = header["sequence"]
                yield Commit(sequence, header["counts"], block, sequence <= self._published)
            elif frame.kind == MARK and self._marked is not None:
                self._marked(_mark(frame))


def last_mark(file: IO[bytes], *, is_last: bool) -> int | None:
    """Up to where commits are marked as published in an open segment; None if it has no mark."""
    marks = (_mark(frame) for frame in frames(file, is_last=is_last) if frame.kind == MARK)
    return max(marks, default=None)


def _mark(frame: Frame) -> int:
    return int.from_bytes(frame.payload, "big")


def frames(file: IO[bytes], *, is_last: bool, start: int = 0) -> Iterator[Frame]:
    """The frames of an open segment, one at a time.

    Args:
        is_last: whether a crash may have torn its end.
        start: where a frame begins; those before it are left out.

    Raises:
        HistoryError: it is damaged.
    """
    at = start
    file.seek(start)
    while True:
        head = file.read(_FRAME.size)
        if not head:
            return
        frame = _read_frame(head, file, at)
        if frame is None:
            file.seek(at)
            rest = file.read()
            if is_last and not _whole_frame_in(rest):
                name = Path(file.name).name
                log.info("archive segment %s: left out %d bytes at its end, torn or being written", name, len(rest))
                return
            raise HistoryError(
                f"archive segment {file.name} is damaged at byte {at}: wanted a whole frame; restore it from a copy"
            )
        yield frame
        at = frame.end


def _read_frame(head: bytes, file: IO[bytes], at: int) -> Frame | None:
    if len(head) < _FRAME.size:
        return None
    magic, kind, length, checksum = _FRAME.unpack(head)
    if magic != _MAGIC or length > _MAX_PAYLOAD_BYTES:
        return None
    payload = file.read(length)
    if len(payload) < length or zlib.crc32(payload, zlib.crc32(kind)) != checksum:
        return None
    return Frame(kind, memoryview(payload), at + _FRAME.size + length)


def _whole_frame_in(rest: bytes) -> bool:
    """Whether anything valid follows a bad frame: then this is damage in the middle, not the torn end of a crash."""
    view = memoryview(rest)
    found = rest.find(_MAGIC, 1)
    while found >= 0:
        body = found + _FRAME.size
        if body <= len(rest):
            _, kind, length, checksum = _FRAME.unpack_from(rest, found)
            payload = view[body : body + length]
            if len(payload) == length and zlib.crc32(payload, zlib.crc32(kind)) == checksum:
                return True
        found = rest.find(_MAGIC, found + 1)
    return False
