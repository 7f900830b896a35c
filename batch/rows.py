"""From a history to rows of features in Parquet files: one pipeline for training rows and for comparing with them.

events ─> features ─┬─> labels ─> by month ─> write
                    └──────────────^ (without labels)
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.pvalue import TaggedOutput

from batch import runner
from batch.labels import Labelled, join_column, label_columns
from batch.lateness import Lateness
from batch.pipeline import Admitted, Count, HistoryFeatures, columns_before, counted, typed
from batch.splits import Splits
from batch.tables import History
from shared_features.app import App
from shared_features.blocks import concat_blocks
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.fingerprint import canonical
from shared_features.plan import make_plan
from shared_features.schema import TIMESTAMP

OUTSIDE = "outside_splits"
"""Rows left out: their event time lies in no split."""

UNSPLIT = "features"
"""The folder of rows that are not split."""

_ROW_GROUP_ROWS = 65_536


def write_rows(
    app: App,
    source: History,
    folder: Path,
    splits: Splits | None,
    shards: int,
    options: Sequence[str],
    watch: runner.Progress,
    lateness: Lateness | None = None,
) -> dict[str, int]:
    """Write rows (with ``splits``: labelled ones) below ``folder``; returns what was counted."""
    if shards < 1:
        raise ConfigurationError(f"the number of shards is {shards}, wanted 1 or more")
    plan = make_plan(app)
    counted_in = folder / "_counts"
    counted_in.mkdir(parents=True)
    extra = [join_column(app)] if splits else []
    columns = list(dict.fromkeys(columns_before(plan, 0, extra) + (label_columns(app) if splits else [])))
    total = (source.rows or 0) * (1 + (not source.archived) + len(plan.stages))
    with runner.watched(watch, total) as token:

        def build(pipeline: beam.Pipeline) -> None:
            events, admission = pipeline | "events" >> Admitted(app, source, columns, shards, token, lateness)
            features, without_key = events | "features" >> HistoryFeatures(app, shards, extra, token)
            counts = [admission, *without_key]
            if splits is not None:
                features, joined = (features, events) | "labels" >> Labelled(app, shards)
                counts.append(joined)
            placed = features | "by month" >> typed(
                ToFile(app, splits.bounds_us() if splits else []), tuple[str, pa.RecordBatch], counts=Count
            )
            write = WriteFile(app, str(folder), labelled=splits is not None)
            written = placed.main | "by file" >> beam.GroupByKey() | "write" >> typed(write, Count)
            (
                [*counts, placed.counts, written]
                | "all counts" >> beam.Flatten()
                | "sum counts" >> beam.CombinePerKey(sum)
                | "write counts" >> beam.ParDo(WriteCount(str(counted_in)))
            )

        runner.run(build, options)
    counts = {path.name: int(path.read_text()) for path in sorted(counted_in.iterdir())}
    shutil.rmtree(counted_in)
    if counts.get("events.published") and counts.get("events.unpublished"):
        raise HistoryError(
            f"history {source.uri} has {counts['events.unpublished']} events without a publish_time and "
            f"{counts['events.published']} with one: wanted it on all or on none; fill it in or drop the column"
        )
    return counts


class ToFile(beam.DoFn):
    """Block of rows → its parts by the file they belong to, ``<split>/<YYYY-MM>``; what no split takes is counted."""

    def __init__(self, app: App, bounds_us: list[tuple[str, int, int]]) -> None:
        self._names = {f"feature.{name}": name for name in app.features}
        self._bounds_us = bounds_us

    def process(
        self, element: pa.RecordBatch
    ) -> Iterator[tuple[str, pa.RecordBatch] | TaggedOutput[Literal["counts"], Count]]:
        names = [name for name in element.schema.names if name in self._names or "." not in name]
        block = element.select(names).rename_columns([self._names.get(name, name) for name in names])
        times = block.column("event_time").cast(pa.int64())
        left = block.num_rows
        for split, from_us, to_us in self._bounds_us or [(UNSPLIT, -(2**62), 2**62)]:
            inside = block.filter(pc.and_(pc.greater_equal(times, from_us), pc.less(times, to_us)))
            left -= inside.num_rows
            months = pc.strftime(inside.column("event_time"), "%Y-%m")
            for month in pc.unique(months).to_pylist():
                yield f"{split}/{month}", inside.filter(pc.equal(months, month))
        yield from counted({f"rows.{OUTSIDE}": left})


class WriteFile(beam.DoFn):
    """All rows of one file → the file, sorted; counts rows and true labels of its split."""

    def __init__(self, app: App, folder: str, *, labelled: bool) -> None:
        self._folder = folder
        self._schema = row_schema(app, labelled=labelled)

    def process(self, element: tuple[str, Iterable[pa.RecordBatch]]) -> Iterator[Count]:
        name, blocks = element
        rows = pa.Table.from_batches([concat_blocks(list(blocks))]).select(self._schema.names)
        rows = rows.take(pc.sort_indices(rows, sort_keys=[("event_time", "ascending"), ("event_id", "ascending")]))
        rows = rows.combine_chunks().cast(self._schema)
        path = Path(self._folder, f"{name}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A runner may run this twice: each time the same bytes, in place at once.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            pq.write_table(rows, file, compression="zstd", row_group_size=_ROW_GROUP_ROWS)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
        split = name.partition("/")[0]
        yield f"rows.{split}", rows.num_rows
        if "label" in self._schema.names:
            yield f"positive.{split}", int(pc.sum(rows["label"]).as_py())


class WriteCount(beam.DoFn):
    """A total → a small file named after it, from which the job reads it back on any runner."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: Count) -> None:
        Path(self._folder, element[0]).write_text(str(element[1]), encoding="utf-8")


def row_schema(app: App, *, labelled: bool) -> pa.Schema:
    fields = [pa.field("event_id", pa.string()), pa.field("event_time", TIMESTAMP), pa.field("publish_time", TIMESTAMP)]
    fields += [pa.field(name, value.arrow_type) for name, value in app.features.items()]
    fields += [pa.field("label", pa.bool_(), nullable=False)] if labelled else []
    metadata = {
        "sameriver.app": app.name,
        "sameriver.fingerprint": app.fingerprint,
        "sameriver.definitions": canonical(app.definitions),
    }
    return pa.schema(fields, metadata=metadata)
