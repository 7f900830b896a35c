"""What came to pass: the one place that looks into the future (contract C10).

A label belongs to the event predicted on whose join field equals that of a later event of the label's type:

    predicted on          label events of the same join value
    ──────t───────────────[x1]────────[x2]────────────┤ t + within
          └── the first in [t, t + within], by (event time, event id), that has a value ──┘

A label event whose value is null says nothing and is passed over (C4). Only batch jobs and the evaluation
import this; a job that predicts must not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.app import App, Label
from shared_features.blocks import empty_block
from shared_features.columns import ARROW_TYPES, Evaluator
from shared_features.errors import ConfigurationError
from shared_features.expressions import Field

NO_LABEL = "no_label"
LABEL_NULL = "label_null"
"""Rows left out: no label event within the window, or only such as have no value."""

_LABELS = pa.schema({"event_id": pa.string(), "event_time": pa.timestamp("us", "UTC"), "label": pa.bool_()})


def label_columns(app: App) -> list[str]:
    """Columns of events that labels are made from."""
    fields = [node.column for node in label_of(app).value.walk() if isinstance(node, Field)]
    return [join_column(app), _label_join(app).column, *fields]


def join_column(app: App) -> str:
    """Column of the event predicted on that its label event must equal."""
    return app.predict_on.field(label_of(app).join[0]).column


def _label_join(app: App) -> Field:
    return app.event_types[label_of(app).event_type].field(label_of(app).join[1])


def label_events(app: App, block: pa.RecordBatch) -> pa.RecordBatch:
    """The label events among ``block``: ``join``, ``event_id``, ``event_time``, ``label`` (bool, may be null)."""
    label = label_of(app)
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


class LaterLabels:
    """Label events of later days, for a walk from the last day to the first.

    Of these a row of an earlier day can find the first of its join value only: one with a value, one without. So what
    is held is small, however long labels take to come.
    """

    def __init__(self, app: App) -> None:
        joins = pa.field("join", ARROW_TYPES[_label_join(app).dtype])
        self._within_us = label_of(app).within_us
        self._held = empty_block(pa.schema([joins, *_LABELS]))

    def joined(self, events: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        """The label events of a day, and those that are held."""
        return pa.concat_batches([self._held, *events])

    def hold(self, events: pa.RecordBatch, since_us: int) -> None:
        """Keep of `joined` events what rows before a time may find."""
        events = events.filter(pc.less(events.column("event_time").cast(pa.int64()), since_us + self._within_us))
        said = events.column("label").is_valid().to_numpy(zero_copy_only=False)
        wanted = events.column("join").dictionary_encode().indices.to_numpy() * np.int64(2) + said
        times = events.column("event_time").cast(pa.int64()).to_numpy()
        ids = pc.rank(events.column("event_id"), tiebreaker="dense").to_numpy()
        order = np.lexsort((ids, times, wanted))
        first = np.unique(wanted[order], return_index=True)[1]
        self._held = events.take(pa.array(order[first]))


def label_of(app: App) -> Label:
    """The app's label; ConfigurationError if it has none."""
    if app.label is None:
        raise ConfigurationError(f"app {app.name!r} has no label to train on: add label=Label(...) to it")
    return app.label
