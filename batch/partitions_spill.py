"""Pieces of blocks on disk, between two steps of a batch job: what travels through the runner says where they are.

A file is Arrow IPC streams, one for each piece, one after the other; then JSON, which says what goes where and what was
counted; then the length of the JSON, 8 bytes. It is written under another name and renamed: a file that is there is
whole, so that a job which was cut off goes on with it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from batch.partitions import Place
from shared_features.errors import HistoryError

Where = tuple[int, str, int, int, bytes]
"""Bucket, file, offset and length of a piece; rows of it that are left out, as int32."""

TOGETHER_BYTES = 32 << 20
"""Buckets of fewer bytes are worked on with those that follow: a year of few rows a day costs what its rows cost. At
the end, where none follows, they are worked on with those before."""

_LENGTH = 8
_PLAIN = pa.ipc.IpcWriteOptions(compression=None)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows on disk that go to one place.

    Attributes:
        place: where they go.
        file: where they are, with ``offset`` and ``length`` in bytes.
        rows: how many.
    """

    place: Place
    file: str
    offset: int
    length: int
    rows: int


@dataclass(frozen=True, slots=True)
class Spilled:
    """What a file holds: its pieces, and what its maker has counted."""

    pieces: list[Piece]
    counts: dict[str, int]


def write_spill(
    path: Path, pieces: Iterable[tuple[Place, pa.RecordBatch]], counts: Mapping[str, int] | None = None
) -> Spilled:
    """Write pieces, whole or not at all; blocks of one place are put one after the other.

    Args:
        counts: counted while the pieces were made; read when they are all written.
    """
    spill = Spill(path)
    try:
        for place, block in pieces:
            spill.write(place, block)
        return spill.close(counts or {})
    except BaseException:
        spill.discard()
        raise


class Spill:
    """A file that is being written; see `write_spill`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._temporary = path, path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._index: list[tuple[int, int, int, int, int, int]] = []
        self._sink = pa.OSFile(str(self._temporary), "wb")

    def write(self, place: Place, block: pa.RecordBatch) -> None:
        """Add a piece."""
        offset = self._sink.tell()
        with pa.ipc.new_stream(self._sink, block.schema, options=_PLAIN) as writer:
            writer.write_batch(block)
        self._index.append((*place, offset, self._sink.tell() - offset, block.num_rows))

    def close(self, counts: Mapping[str, int]) -> Spilled:
        """Put the file in place."""
        text = json.dumps({"pieces": self._index, "counts": dict(counts)}).encode("ascii")
        self._sink.write(text + len(text).to_bytes(_LENGTH, "big"))
        self._sink.close()
        self._temporary.replace(self._path)
        return _spilled(self._path, self._index, counts)

    def discard(self) -> None:
        """Leave nothing."""
        self._sink.close()
        self._temporary.unlink(missing_ok=True)


def read_spill(path: Path) -> Spilled | None:
    """What a file holds; None if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(-_LENGTH, os.SEEK_END)
            length = int.from_bytes(file.read(_LENGTH), "big")
            file.seek(-_LENGTH - length, os.SEEK_END)
            known = json.loads(file.read(length))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HistoryError(f"{path} is damaged ({error}): remove the folder and run again") from error
    return _spilled(path, known["pieces"], known["counts"])


def read_piece(file: str, offset: int, length: int) -> pa.RecordBatch:
    """The rows of one piece; its columns refer to the file, mapped into memory."""
    with pa.memory_map(file) as source:
        source.seek(offset)
        with pa.ipc.open_stream(source.read_buffer(length)) as reader:
            return reader.read_next_batch()


def _spilled(path: Path, index: Iterable[Iterable[int]], counts: Mapping[str, int]) -> Spilled:
    pieces = [Piece(Place(step, shard, bucket), str(path), *where) for step, shard, bucket, *where in index]
    return Spilled(pieces, dict(counts))


def by_bucket(wheres: Iterable[Where]) -> dict[int, list[Where]]:
    """Pieces bucket by bucket; small neighbours together, under the name of their first."""
    found: dict[int, list[Where]] = {}
    first = newest = size = 0
    for where in sorted(wheres):
        bucket, length = where[0], where[3]
        if not found or (bucket != newest and size >= TOGETHER_BYTES):
            first, size = bucket, 0
        found.setdefault(first, []).append(where)
        newest, size = bucket, size + length
    if size < TOGETHER_BYTES and len(found) > 1:
        few = found.pop(first)
        found[next(reversed(found))] += few
    return found


def handed_on(piece: Piece, left_out: np.ndarray | None = None) -> tuple[int, tuple[int, Where]]:
    rows = b"" if left_out is None else left_out.tobytes()
    return piece.place.step, (piece.place.shard, (piece.place.bucket, piece.file, piece.offset, piece.length, rows))


def count(counts: dict[str, int], found: Mapping[str, int]) -> None:
    """Add what was found to what is counted."""
    for name, number in found.items():
        if number:
            counts[name] = counts.get(name, 0) + number
