"""A Beam sink for blocks of ended rows: into a BigQuery table or Parquet files, each row once (`batch.writers`).

    blocks ─> by writer, every 30 s ─> a piece ─> token ─shuffle─> commit

A bundle that is done again writes another piece; only a token that has passed the shuffle is committed, and committing
it again adds nothing. So each block that the runner delivers is there once, whatever failed, without a look at what is
there. (Beam's own BigQuery sinks: streaming inserts forget duplicates after a minute; load jobs and the Storage Write
API want rows as dictionaries, and the latter Java where the job is submitted.)
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.transforms.trigger import AccumulationMode, AfterProcessingTime, DefaultTrigger, Repeatedly
from apache_beam.transforms.window import GlobalWindows

from batch.output_rows import KINDS, shape_of
from batch.writers import Destination, open_destination
from shared_features import load_app
from shared_features.app import App
from shared_features.blocks import concat_blocks, empty_block
from streaming import coders
from streaming.results import with_same_columns

coders.register()

WRITERS = 4
EVERY_S = 30


def table_of(app: App, kind: str, uri: str, ended: pa.Schema) -> Destination:
    """Where rows of a kind go.

    Args:
        kind: one of `batch.output_rows.KINDS`.
        uri: see `open_destination`.
        ended: columns of the blocks that the rows are made of.
    """
    rows = KINDS[kind][0](app, empty_block(ended))
    return open_destination(uri, replace(shape_of(app, kind, rows.schema), identity=""))


class WriteRows(beam.PTransform[Any, Any]):
    """Blocks -> rows of a kind in a destination.

    Args:
        app: its name or path.
        kind, destination: see `table_of`.
        writers: pieces written side by side. every_s: how long blocks wait for others; None: until the source ends.
    """

    def __init__(
        self, app: str, kind: str, destination: Destination, *, writers: int = WRITERS, every_s: int | None = EVERY_S
    ) -> None:
        super().__init__()
        self._app, self._kind, self._destination = app, kind, destination
        self._writers, self._every_s = writers, every_s

    def expand(self, blocks: Any) -> Any:
        write = _WritePiece(self._app, self._kind, self._destination)
        when = DefaultTrigger() if self._every_s is None else Repeatedly(AfterProcessingTime(self._every_s))
        return (
            blocks
            | "By writer" >> beam.ParDo(_Deal(self._writers)).with_output_types(tuple[int, pa.RecordBatch])
            | "Now and then"
            >> beam.WindowInto(GlobalWindows(), trigger=when, accumulation_mode=AccumulationMode.DISCARDING)
            | "Together" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(write).with_output_types(bytes)
            | "Written" >> beam.Reshuffle()
            | "Commit" >> beam.ParDo(_Commit(self._destination))
        )


class _Deal(beam.DoFn):
    def __init__(self, writers: int) -> None:
        self._writers = writers

    def process(self, element: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        yield random.randrange(self._writers), element  # noqa: S311


class _WritePiece(beam.DoFn):
    def __init__(self, app: str, kind: str, destination: Destination) -> None:
        self._app_spec, self._kind, self._destination = app, kind, destination

    def setup(self) -> None:
        self._app = load_app(self._app_spec)

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[bytes]:
        whole = concat_blocks(with_same_columns(list(element[1])))
        with self._destination.piece(f"{self._kind}/{uuid.uuid4().hex}") as piece:
            piece.write(KINDS[self._kind][0](self._app, whole))
        yield piece.token


class _Commit(beam.DoFn):
    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def process(self, element: bytes) -> None:
        Metrics.counter("sameriver", "rows").inc(self._destination.commit([element]).rows)
