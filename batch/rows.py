"""From a history to rows of features in Parquet files: one way for training rows and for comparing with them.

    splits ─> … ─> ended rows ─┬─> by join value ─> labels ─┬─> by month ─> files
                               └────────────────────────────┘ (without labels)

Behind the stages (`batch.partitions_steps`) rows meet their labels by shard of the join value, day by day of event
time from the last day to the first, and go on to the file of their month, into which they are merged day by day. So
memory holds one day of a shard, or some row groups, whatever the history's length; and each step leaves files, which
the next run finds.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch import runner
from batch.labels import (
    LABEL_NULL,
    NO_LABEL,
    LaterLabels,
    first_labels,
    join_column,
    label_columns,
    label_events,
    label_of,
)
from batch.lateness import Lateness
from batch.partitions import DAY_US, Place, cut, nowhere_of
from batch.partitions_beam import SideBySide, tagged
from batch.partitions_run import folded, settled
from batch.partitions_spill import Where, by_bucket, count, read_piece, read_spill, write_spill
from batch.partitions_steps import COUNT, HANDED_ON, Fold, arrived, outputs, typed
from batch.tables import History
from shared_features.app import App
from shared_features.blocks import append_columns, concat_blocks
from shared_features.columns import Evaluator
from shared_features.fingerprint import canonical
from shared_features.hashing import hash_column
from shared_features.plan import Plan, make_plan
from shared_features.schema import TIMESTAMP

OUTSIDE = "outside_splits"
"""Rows left out: their event time lies in no split."""

UNSPLIT = "features"
"""The folder of rows that are not split."""

Bounds = Sequence[tuple[str, int, int]]
"""(split, from, to) in microseconds since 1970, half-open, rising."""

MERGED_BYTES = 32 << 20
"""About so much is merged at a time."""

_ROW_GROUP_ROWS = 65_536
_MONTHS = 100_000
"""More than any month's number since 1970, or before: a file is told by its split's number and its month's in one."""

_SAMPLED = 64
_JOIN = "label.join"
_ENVELOPE = ("event_id", "event_time", "publish_time")
_ORDER = [("event_time", "ascending"), ("event_id", "ascending")]


def write_rows(
    app: App,
    source: History,
    scratch: Path,
    bounds: Bounds,
    shards: int | None,
    options: Sequence[str],
    watch: runner.Progress,
    lateness: Lateness | None = None,
    *,
    labelled: bool,
    span: int | None = None,
) -> dict[str, int]:
    """Write rows to ``<scratch>/out/<split>/<YYYY-MM>.parquet``; what was counted.

    Args:
        scratch: work folder, from which a run that was cut off goes on.
        bounds: which rows go to which split; the others are left out.
        labelled: whether rows get labels; those without one are left out.
        lateness, span: see `Fold`.
    """
    plan = make_plan(app)
    source, shards = settled(scratch, source, shards, span)
    rows = RowsOf(tuple(bounds), labelled, shards)

    def then(fold: Fold, ways: Sequence[Any]) -> list[Any]:
        labels, files = _steps(plan)
        counts = []
        if labelled:
            found = arrived(ways, labels, "labels") | "join labels" >> typed(
                JoinLabels(fold, rows), HANDED_ON, counts=COUNT
            )
            ways, counts = [found.main], [found.counts]
        written = arrived(ways, files, "files") | "write" >> typed(WriteFile(fold, rows), HANDED_ON, counts=COUNT)
        return [*counts, written.counts]

    columns = label_columns(app) if labelled else ()
    ending = (label_of(app).event_type,) if labelled else ()
    return folded(
        plan,
        source,
        scratch,
        rows,
        columns,
        shards,
        options,
        watch,
        ending=ending,
        then=then,
        keep_places=False,
        lateness=lateness,
        span=span,
    )


def _steps(plan: Plan) -> tuple[int, int]:
    """The two steps behind the end: where rows get labels, and where they are written."""
    return nowhere_of(plan) + 1, nowhere_of(plan) + 2


@dataclass(frozen=True)
class RowsOf:
    """Of a plan the `EndedRows`, in a worker.

    Attributes:
        bounds, labelled: see `write_rows`.
        shards: into how many join values go.
    """

    bounds: tuple[tuple[str, int, int], ...]
    labelled: bool
    shards: int

    def __call__(self, plan: Plan) -> EndedRows:
        return EndedRows(plan, self)


class EndedRows:
    """Hands rows predicted on to their files; where they get labels, to these first, and label events with them."""

    def __init__(self, plan: Plan, settings: RowsOf) -> None:
        self.plan, self.settings = plan, settings
        joins = [(join_column(plan.app), _JOIN)] if settings.labelled else []
        features = [(f"feature.{name}", name) for name in plan.app.features]
        self.columns, self.names = zip(*((name, name) for name in _ENVELOPE), *joins, *features, strict=True)

    def memory(self, shard: int) -> None:
        """Nothing is remembered."""

    def open(self, name: str, memory: None) -> Bucket:  # noqa: ARG002
        """Begin a bucket."""
        return Bucket(self)

    def close(self) -> None:
        """Nothing is held."""


class Bucket:
    """The rows of one bucket, on their way."""

    def __init__(self, rows: EndedRows) -> None:
        self._rows = rows
        self._counts: dict[str, int] = {}

    def write(self, block: pa.RecordBatch) -> Iterator[tuple[Place, pa.RecordBatch]]:
        """Say where rows go."""
        plan, settings = self._rows.plan, self._rows.settings
        asked = Evaluator(block).is_type(plan.app.predict_on.name)
        rows = block if asked.all() else block.filter(pa.array(asked))
        rows = rows.select(self._rows.columns).rename_columns(self._rows.names)
        labels, files = _steps(plan)
        if not settings.labelled:
            yield from to_files(rows, files, settings.bounds, self._counts)
            return
        for one, join in ((rows, _JOIN), (label_events(plan.app, block), "join")):
            yield from cut(one, hash_column(one.column(join)), _times(one) // DAY_US, labels, settings.shards)

    def close(self) -> Mapping[str, int]:
        """What was left out."""
        return self._counts


def to_files(
    rows: pa.RecordBatch, step: int, bounds: Bounds, counts: dict[str, int]
) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """The rows by file and day of event time, in the order of training rows; what no split takes is counted."""
    rows = rows.take(pc.sort_indices(rows, sort_keys=_ORDER))
    times = _times(rows)
    days = times // DAY_US
    for number, (_, since_us, until_us) in enumerate(bounds):
        first, last = np.searchsorted(times, [since_us, until_us]).tolist()
        ends = first + np.flatnonzero(np.diff(days[first:last], append=2**62)) + 1
        for start, end in pairwise([first, *ends.tolist()]):
            month = int(np.datetime64(int(times[start]), "us").astype("datetime64[M]").astype(np.int64))
            yield Place(step, (number * 2 + 1) * _MONTHS + month, int(days[start])), rows.slice(start, end - start)
    inside = sum(int(np.diff(np.searchsorted(times, bound[1:]))[0]) for bound in bounds)
    count(counts, {f"rows.{OUTSIDE}": len(times) - inside})


class JoinLabels(SideBySide):
    """Rows and label events of one shard of join values → where its rows with labels are; rows without are counted."""

    def __init__(self, fold: Fold, settings: RowsOf) -> None:
        self._fold, self._settings = fold, settings

    def prepare(self) -> None:
        self._plan = make_plan(self._fold.app)

    def work(self, element: tuple[int, Iterable[Where]]) -> Iterator[Any]:
        shard, later = element[0], LaterLabels(self._fold.app)
        for day, wheres in reversed(by_bucket(element[1]).items()):
            blocks = [read_piece(file, offset, length) for _, file, offset, length, _ in wheres]
            events = later.joined([block for block in blocks if _JOIN not in block.schema.names])
            path = Path(self._fold.work, "labelled", f"{shard}_{day}.arrow")
            spilled = read_spill(path)
            if spilled is None:
                counts: dict[str, int] = {}
                rows = [block for block in blocks if _JOIN in block.schema.names]
                spilled = write_spill(path, self._labelled(rows, events, counts), counts)
            runner.report(self._fold.token, sum(piece.rows for piece in spilled.pieces), "join labels")
            yield from outputs(spilled)
            later.hold(events, day * DAY_US)

    def _labelled(
        self, rows: list[pa.RecordBatch], events: pa.RecordBatch, counts: dict[str, int]
    ) -> Iterator[tuple[Place, pa.RecordBatch]]:
        if not rows:
            return
        block, within_us = concat_blocks(rows), label_of(self._fold.app).within_us
        labels, unsaid = first_labels(block.column(_JOIN), block.column("event_time"), events, within_us)
        found = labels.is_valid().to_numpy(zero_copy_only=False)
        count(counts, {f"rows.{LABEL_NULL}": int(unsaid.sum()), f"rows.{NO_LABEL}": int((~found & ~unsaid).sum())})
        block = append_columns(block.drop_columns([_JOIN]), {"label": labels}).filter(pa.array(found))
        yield from to_files(block, _steps(self._plan)[1], self._settings.bounds, counts)


class WriteFile(SideBySide):
    """Where all rows of one file are → the file, sorted; counts rows and true labels of its split."""

    def __init__(self, fold: Fold, settings: RowsOf) -> None:
        self._fold, self._settings = fold, settings

    def prepare(self) -> None:
        self._schema = row_schema(self._fold.app, labelled=self._settings.labelled)

    def work(self, element: tuple[int, Iterable[Where]]) -> Iterator[Any]:
        number, month = divmod(element[0], 2 * _MONTHS)
        split = self._settings.bounds[number][0]
        path = Path(self._fold.work, "out", split, f"{np.datetime64(month - _MONTHS, 'M')}.parquet")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(self._fold.work, f"{split}-{path.stem}.{secrets.token_hex(4)}")
            with pq.ParquetWriter(temporary, self._schema, compression="zstd") as writer:
                for rows in _regrouped(merged(element[1]), _ROW_GROUP_ROWS):
                    writer.write_table(rows.select(self._schema.names).cast(self._schema))
            temporary.replace(path)
        columns = ["label"] if self._settings.labelled else []
        rows = pq.read_table(path, columns=columns)
        yield tagged("counts", (f"rows.{split}", rows.num_rows))
        for name in columns:
            yield tagged("counts", (f"positive.{split}", int(pc.sum(rows[name]).as_py())))


def merged(wheres: Iterable[Where]) -> Iterator[pa.Table]:
    """Sorted pieces of days as one sorted sequence, about `MERGED_BYTES` at a time; rows of one time stay together."""
    for day in by_bucket(wheres).values():
        places = [(file, offset, length) for _, file, offset, length, _ in day]
        slabs = -(-sum(length for _, _, length in places) // MERGED_BYTES)
        sampled = np.sort(np.concatenate([_times(read_piece(*place))[::_SAMPLED] for place in places]))
        cuts = [-(2**62), *sampled[len(sampled) * np.arange(1, slabs) // slabs].tolist(), 2**62]
        for since_us, until_us in pairwise(cuts):
            # Pieces are mapped anew for each part, so that what was merged stays in memory no longer.
            parts = [_between(read_piece(*place), since_us, until_us) for place in places]
            rows = pa.Table.from_batches(parts)
            yield rows.take(pc.sort_indices(rows, sort_keys=_ORDER))


def _between(block: pa.RecordBatch, since_us: int, until_us: int) -> pa.RecordBatch:
    first, last = np.searchsorted(_times(block), [since_us, until_us]).tolist()
    return block.slice(first, last - first)


def _regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, so many in a table."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(one.num_rows for one in held) >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows).combine_chunks()
            held = [whole.slice(rows)]
    if held and sum(one.num_rows for one in held):
        yield pa.concat_tables(held).combine_chunks()


def row_schema(app: App, *, labelled: bool) -> pa.Schema:
    """The columns of rows, and what made them."""
    fields = [pa.field("event_id", pa.string()), pa.field("event_time", TIMESTAMP), pa.field("publish_time", TIMESTAMP)]
    fields += [pa.field(name, value.arrow_type) for name, value in app.features.items()]
    fields += [pa.field("label", pa.bool_(), nullable=False)] if labelled else []
    metadata = {
        "sameriver.app": app.name,
        "sameriver.fingerprint": app.fingerprint,
        "sameriver.definitions": canonical(app.definitions),
    }
    return pa.schema(fields, metadata=metadata)


def _times(block: pa.RecordBatch) -> np.ndarray:
    times: np.ndarray = block.column("event_time").cast(pa.int64()).to_numpy()
    return times
