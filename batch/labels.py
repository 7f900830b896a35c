"""What came to pass: the one place that looks into the future (contract C10).

A label belongs to the event predicted on whose join field equals that of a later event of the label's type:

    predicted on          label events of the same join value
    ──────t───────────────[x1]────────[x2]────────────┤ t + within
          └── the first in [t, t + within], by (event time, event id), that has a value ──┘

A label event whose value is null says nothing and is passed over (C4). Only batch jobs and the evaluation
import this; a job that predicts must not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput

from batch.pipeline import Count, Piece, counted, pieces, sliced, typed
from shared_features.app import App, Label
from shared_features.blocks import concat_blocks
from shared_features.columns import Evaluator
from shared_features.errors import ConfigurationError, DefinitionError
from shared_features.expressions import Field
from shared_features.hashing import hash_column

NO_LABEL = "no_label"
LABEL_NULL = "label_null"
"""Rows left out: no label event within the window, or only such as have no value."""

_LABELS = pa.schema({"event_id": pa.string(), "event_time": pa.timestamp("us", "UTC"), "label": pa.bool_()})


def label_columns(app: App) -> list[str]:
    """Columns of events that labels are made from."""
    fields = [node.column for node in _label(app).value.walk() if isinstance(node, Field)]
    return [join_column(app), _label_join(app).column, *fields]


def join_column(app: App) -> str:
    """Column of the event predicted on that its label event must equal."""
    return app.predict_on.field(_label(app).join[0]).column


def _label_join(app: App) -> Field:
    return app.event_types[_label(app).event_type].field(_label(app).join[1])


def label_events(app: App, block: pa.RecordBatch) -> pa.RecordBatch:
    """The label events among ``block``: ``join``, ``event_id``, ``event_time``, ``label`` (bool, may be null)."""
    label = _label(app)
    evaluator = Evaluator(block)
    join = evaluator.array(_label_join(app))
    value = evaluator.array(label.value)
    rows = pa.RecordBatch.from_arrays(
        [join, block.column("event_id"), block.column("event_time"), value], names=["join", *_LABELS.names]
    )
    mine = pc.and_(pa.array(evaluator.is_type(label.event_type)), pc.is_valid(join))
    return rows.filter(mine)


def first_labels(
    joins: pa.Array, times: pa.Array, events: pa.RecordBatch, within_us: int
) -> tuple[pa.Array, np.ndarray]:
    """For each row predicted on, the label of its first label event.

    Args:
        joins, times: join value and event time (timestamp[us]) per row, shape [rows]; a null join has no label.
        events: label events, see `label_events`, in any order.
        within_us: length of the window, microseconds; both its ends belong to it.

    Returns:
        bool array with nulls, shape [rows]; and bool, shape [rows]: whether a label event without a value
        lies in the window of a row that got no label.
    """
    none = pc.is_null(events.column("label"))
    labels = _first(joins, times, events.filter(pc.invert(none)), within_us)
    unsaid = _first(joins, times, events.filter(none), within_us, presence=True)
    missing = np.asarray(pc.is_null(labels))
    return labels, missing & np.asarray(pc.is_valid(unsaid))


def _first(
    joins: pa.Array, times: pa.Array, events: pa.RecordBatch, within_us: int, presence: bool = False
) -> pa.Array:
    rows = len(joins)
    values = pa.array(np.ones(events.num_rows, bool)) if presence else events.column("label")
    if rows == 0 or events.num_rows == 0:
        return pa.nulls(rows, pa.bool_())
    ids = pc.rank(events.column("event_id"), tiebreaker="dense").to_numpy()
    codes = pa.chunked_array([events.column("join"), joins]).combine_chunks().dictionary_encode().indices
    theirs = codes.slice(0, events.num_rows).to_numpy()
    valid = np.asarray(joins.is_valid())
    ours = codes.slice(events.num_rows).fill_null(-1).to_numpy()
    at = events.column("event_time").cast(pa.int64()).to_numpy()
    from_us = times.cast(pa.int64()).to_numpy()
    order = np.lexsort((ids, at, theirs))
    theirs, at = theirs[order], at[order]
    # Search by (join value, time) in one pass: the rank of a time among all event times stands for it.
    ladder = np.unique(at)
    steps = np.int64(len(ladder) + 1)
    sought = ours.astype(np.int64) * steps + np.searchsorted(ladder, from_us)
    place = np.searchsorted(theirs.astype(np.int64) * steps + np.searchsorted(ladder, at), sought)
    inside = np.minimum(place, len(order) - 1)
    matched = valid & (place < len(order)) & (theirs[inside] == ours)
    matched &= at[inside] - from_us <= within_us
    return values.take(pa.array(order[inside], mask=~matched))


class LabelEvents(beam.DoFn):
    """Block of events → pieces of label events, by join value."""

    def __init__(self, app: App, shards: int) -> None:
        self._app, self._shards = app, shards

    def process(self, element: pa.RecordBatch) -> Iterator[Piece]:
        events = label_events(self._app, element)
        yield from pieces(events, hash_column(events.column("join")), self._shards)


class ToLabels(beam.DoFn):
    """Block of features → pieces, by join value."""

    def __init__(self, app: App, shards: int) -> None:
        self._shards, self._join = shards, join_column(app)

    def process(self, element: pa.RecordBatch) -> Iterator[Piece]:
        yield from pieces(element, hash_column(element.column(self._join)), self._shards)


class JoinLabels(beam.DoFn):
    """Features and label events of one shard → features with ``label``; rows without one are counted."""

    def __init__(self, app: App) -> None:
        self._app = app

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch | TaggedOutput[Literal["counts"], Count]]:
        label = _label(self._app)
        blocks = list(element[1])
        rows = [block for block in blocks if "label" not in block.schema.names]
        if not rows:
            return
        block = concat_blocks(rows)
        joins = block.column(join_column(self._app))
        empty = pa.RecordBatch.from_arrays(
            [pa.nulls(0, joins.type), *(pa.nulls(0, field.type) for field in _LABELS)], names=["join", *_LABELS.names]
        )
        events = concat_blocks([empty, *(block for block in blocks if "label" in block.schema.names)])
        labels, unsaid = first_labels(joins, block.column("event_time"), events, label.within_us)
        found = np.asarray(labels.is_valid())
        yield from counted({f"rows.{LABEL_NULL}": int(unsaid.sum()), f"rows.{NO_LABEL}": int((~found & ~unsaid).sum())})
        yield from sliced(block.append_column("label", labels).filter(pa.array(found)))


class Labelled(beam.PTransform[Any, Any]):
    """(features, events) → (features with ``label``, counts); features carry `join_column`."""

    def __init__(self, app: App, shards: int) -> None:
        super().__init__()
        self._app, self._shards = app, shards
        ours, theirs = app.predict_on.field(_label(app).join[0]), _label_join(app)
        if ours.dtype != theirs.dtype:
            raise DefinitionError(
                f"label of app {app.name!r} joins {ours.column} ({ours.dtype}) to {theirs.column} ({theirs.dtype}): "
                "wanted two fields of one type"
            )

    def expand(self, inputs: tuple[Any, Any]) -> tuple[Any, Any]:
        features, events = inputs
        rows = features | "rows by join value" >> typed(ToLabels(self._app, self._shards), Piece)
        label_rows = events | "label events" >> typed(LabelEvents(self._app, self._shards), Piece)
        joined = (
            (rows, label_rows)
            | "rows and label events" >> beam.Flatten()
            | "by join value" >> beam.GroupByKey()
            | "join labels" >> typed(JoinLabels(self._app), pa.RecordBatch, counts=Count)
        )
        return joined.main, joined.counts


def _label(app: App) -> Label:
    if app.label is None:
        raise ConfigurationError(f"app {app.name!r} has no label to train on: add label=Label(...) to it")
    return app.label
