"""Identities that come more than once in a history: of each the first row counts, the others are left out (C5).

Hashes of all identities are sorted, a shard of them at a time; only rows of those that come twice are looked at. They
lie in files as they are, 8 bytes each: NumPy's own files begin with Python text, which two threads cannot parse side by
side (CPython 3.11: "AST constructor recursion depth mismatch").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch.admission import DUPLICATE, first_of_each, identities
from batch.partitions import Place, without_key
from batch.partitions_beam import SideBySide, tagged
from batch.partitions_spill import Piece, handed_on, read_piece, read_spill
from shared_features.app import App
from shared_features.plan import make_plan

IDENTITY_SHARDS = 16
IDENTITY_BOUNDS = (np.arange(1, IDENTITY_SHARDS, dtype=np.uint64)) << np.uint64(60)
"""The first hash of each shard of identities but the first one."""

_AT = "at."


def identities_of(path: Path) -> Path:
    return path.parent.with_name("identities") / f"{path.stem}.hashes"


def _hashes(path: Path, first: int = 0, number: int = -1) -> npt.NDArray[np.uint64]:
    return np.fromfile(path, np.uint64, number, offset=first * 8)


class FindTwice(SideBySide):
    """All identities of one shard of them → a file of those that come more than once, if there are any."""

    def __init__(self, work: str) -> None:
        self._work = work

    def work(self, element: tuple[int, Iterable[tuple[str, int, int]]]) -> Iterator[str]:
        shard, ranges = element
        parts = [_hashes(identities_of(Path(path)), begin, end - begin) for path, begin, end in ranges]
        hashes = np.sort(np.concatenate(parts))
        twice = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if len(twice):
            path = Path(self._work, "twice", f"{shard}.hashes")
            path.parent.mkdir(parents=True, exist_ok=True)
            twice.tofile(path)
            yield str(path)


class FindRows(beam.DoFn):
    """Scattered split → its rows whose identity comes more than once, each with its place on disk."""

    def process(self, element: str, twice: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        if not twice:
            return
        sought = np.sort(np.concatenate([_hashes(Path(path)) for path in twice]))
        spilled = read_spill(Path(element))
        for piece in spilled.pieces if spilled else ():
            block = read_piece(piece.file, piece.offset, piece.length)
            hashes = identities(block)
            # isin() would sort all that is sought again for each of thousands of pieces.
            near = np.minimum(np.searchsorted(sought, hashes), len(sought) - 1)
            rows = np.flatnonzero(sought[near] == hashes)
            if len(rows):
                found = block.take(pa.array(rows))
                columns = {"row": rows.astype(np.int64)}
                columns |= {name: np.full(len(rows), getattr(piece, name)) for name in ("offset", "length")}
                columns |= {name: np.full(len(rows), getattr(piece.place, name)) for name in piece.place._fields}
                for name, values in columns.items():
                    found = found.append_column(_AT + name, pa.array(values))
                found = found.append_column(_AT + "file", pa.repeat(piece.file, len(rows)))
                shards = np.searchsorted(IDENTITY_BOUNDS, hashes[rows], side="right")
                for shard in np.unique(shards).tolist():
                    yield shard, found.filter(pa.array(shards == shard))


class LeaveOut(beam.DoFn):
    """Rows of one shard of identities that come more than once → all but the first of each, to be left out (C5)."""

    def __init__(self, app: App) -> None:
        self._app = app

    def setup(self) -> None:
        self._plan = make_plan(self._app)

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[Any]:
        block = pa.concat_batches(list(element[1]))
        block = block.append_column(_AT + "number", pa.array(np.arange(block.num_rows)))
        left_out = np.ones(block.num_rows, np.bool_)
        left_out[first_of_each(block).column(_AT + "number").to_numpy()] = False
        block = block.filter(pa.array(left_out))
        rows = block.select([name for name in block.schema.names if name.startswith(_AT)])
        by_piece: dict[Piece, list[int]] = {}
        for row in rows.to_pylist():
            at = {name.removeprefix(_AT): value for name, value in row.items()}
            place = Place(at["step"], at["shard"], at["bucket"])
            by_piece.setdefault(Piece(place, at["file"], at["offset"], at["length"], 0), []).append(at["row"])
        for piece, numbers in by_piece.items():
            yield handed_on(piece, np.array(numbers, np.int32))
        if rows.num_rows:
            yield tagged("counts", (f"left_out.{DUPLICATE}", rows.num_rows))
            for name, number in without_key(self._plan, block).items():  # counted as they were read
                yield tagged("counts", (name, -number))
