"""Spans of a shard's days side by side: each begins with the rows before it that its windows can reach.

    by shard ─> spans ─> tail of each ─> by shard ─> what each begins with ─> fold each

What a stage remembers depends on the set of rows folded before (contract C2), and of these only on each key's newest
and on those that are at most the lateness and the longest window older. So what a span begins with is what its
predecessor began with and the predecessor's own rows, cut there. Finding that takes a look at key and time of each row,
no kernel; it is small, and gone through in order; the spans themselves are folded side by side. A window of the last n
events reaches back without limit: such a stage is folded from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

from batch.partitions import Place, conformed
from batch.partitions_spill import Where, read_piece, read_spill, write_spill
from shared_features.columns import Evaluator
from shared_features.kernel import key_column
from shared_features.plan import Plan, Stage


class Before(NamedTuple):
    """What comes before a span of a shard.

    Attributes:
        span: its number, of `Fold.span` buckets each.
        file: of the rows that it begins with; empty for none.
        position: of its first row.
    """

    span: int
    file: str
    position: int


def reachable(stage: Stage, lateness_us: int, block: pa.RecordBatch) -> pa.RecordBatch:
    """Of rows that have been folded, those that rows to come can reach; in their order."""
    codes = key_column(stage.key, Evaluator(block)).dictionary_encode().indices.to_numpy()
    times = block.column("event_time").cast(pa.int64()).to_numpy()
    newest = np.full(codes.max(initial=-1) + 1, np.iinfo(np.int64).min)
    np.maximum.at(newest, codes, times)
    return block.filter(pa.array(times >= newest[codes] - lateness_us - stage.longest_us))


class IntoSpans(beam.DoFn):
    """All pieces of a shard → (shard, span, its pieces, whether another follows)."""

    def __init__(self, span: int) -> None:
        self._span = span

    def process(self, element: tuple[int, Iterable[Where]]) -> Iterator[Any]:
        spans: dict[int, list[Where]] = {}
        for where in element[1]:
            spans.setdefault(where[0] // self._span, []).append(where)
        for span, wheres in spans.items():
            yield element[0], span, wheres, span < max(spans)


class Tails:
    """What spans leave to those that follow, in files of the work folder."""

    def __init__(self, plan: Plan, index: int, work: str) -> None:
        self._plan, self._index, self._work = plan, index, work

    def of_span(self, shard: int, span: int, blocks: Iterable[pa.RecordBatch]) -> tuple[str, int]:
        """The file of a span's reachable rows, made of all its rows, some at a time; how many rows the span has."""
        path = Path(self._work, "tails", f"{self._index}_{shard}_{span}.arrow")
        spilled = read_spill(path)
        if spilled is None:
            tail, rows = None, 0
            for block in blocks:
                rows += block.num_rows
                tail = self._cut([block] if tail is None else [tail, block])
            spilled = write_spill(path, [(Place(self._index, shard, span), tail)], {"rows": rows})
        return str(path), spilled.counts["rows"]

    def carried(self, shard: int, span: int, files: Sequence[str]) -> str:
        """The file of what a span begins with, of the files of its predecessor's tail and beginning."""
        path = Path(self._work, "carried", f"{self._index}_{shard}_{span}.arrow")
        if read_spill(path) is None:
            write_spill(path, [(Place(self._index, shard, span), self._cut([rows_of(file) for file in files]))])
        return str(path)

    def _cut(self, blocks: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        together = conformed(self._plan, list(blocks), self._index)
        return reachable(self._plan.stages[self._index], self._plan.app.lateness_us, together)


def rows_of(file: str) -> pa.RecordBatch:
    """The rows of a file with one piece."""
    spilled = read_spill(Path(file))
    assert spilled is not None
    (piece,) = spilled.pieces
    return read_piece(piece.file, piece.offset, piece.length)


def in_order(tails: Tails, shard: int, spans: Iterable[tuple[int, list[Where], str, int]]) -> Iterator[Any]:
    """(span, pieces, tail, rows) of a shard → its spans with what comes before each."""
    begin, position, before = "", 0, ""
    for span, wheres, tail, rows in sorted(spans, key=lambda one: one[0]):
        if position:
            begin = tails.carried(shard, span, [file for file in (begin, before) if file])
        yield shard, wheres, Before(span, begin, position)
        before, position = tail, position + rows
