"""Which events stand in the window of an aggregate at one row: the contract's own words, for people to read.

Nothing is computed from it: values come from the kernel, run again. It shares the definitions with the kernel and the
hash that orders events of one microsecond.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shared_features.aggregates import Aggregate
from shared_features.columns import Evaluator


@dataclass(frozen=True, slots=True)
class Around:
    """A row among the events of its key, in the order in which a stage folded them.

    Attributes:
        block: events of the key, the row among them, and some that were folded later.
        evaluator: over ``block``.
        row: where the row is; what stands behind it was folded later.
        lateness_us: of the app.
        longest_us: the longest window of the stage.
    """

    block: pa.RecordBatch
    evaluator: Evaluator
    row: int
    lateness_us: int
    longest_us: int

    @property
    def times(self) -> np.ndarray:
        """Event times, int64 µs, shape [rows]."""
        found: np.ndarray = self.evaluator.block_column("event_time", "timestamp").values
        return found

    def behind_us(self) -> np.ndarray:
        """How far each event was behind the newest one of its key when it was folded; int64 µs, 0 if in order."""
        times = self.times
        behind: np.ndarray = np.maximum.accumulate(times) - times
        return behind


@dataclass(frozen=True, slots=True)
class WindowRows:
    """The window of an aggregate at a row.

    Attributes:
        rows: in the window, by (event time, identity); places in the block of `Around`.
        too_late: would be in it, but were folded after the row; the same order.
        from_us: the earliest event time that can be in it, None where it has no limit in time.
        from_included: whether an event of that very time is in it.
    """

    rows: np.ndarray
    too_late: np.ndarray
    from_us: int | None
    from_included: bool


def window_rows(aggregate: Aggregate, around: Around) -> WindowRows:
    """The events that carry a value in the window of ``aggregate`` at the row, and those that came too late for it."""
    times, at = around.times, int(around.times[around.row])
    carrying = _carrying(aggregate, around.evaluator)
    if not aggregate.include_self:
        carrying[around.row] = False
    folded = np.arange(len(times)) <= around.row
    newest = int(times[folded].max())
    order = np.lexsort((around.evaluator.identities(), times))
    in_order = order[carrying[order]]
    if aggregate.window_events:
        return _last_events(aggregate.window_events, in_order, folded, times, at, newest - around.lateness_us)
    in_order = in_order[times[in_order] <= at]
    reach = newest - around.lateness_us - around.longest_us
    begin, included = at - aggregate.window_us, aggregate.closed == "both"
    if reach > begin:
        begin, included = reach, True
    inside = in_order[times[in_order] >= begin if included else times[in_order] > begin]
    return WindowRows(inside[folded[inside]], inside[~folded[inside]], begin, included)


def _carrying(aggregate: Aggregate, evaluator: Evaluator) -> np.ndarray:
    """Rows that have a value for the aggregate; bool, shape [rows]."""
    carrying: np.ndarray = evaluator.column(aggregate.value).valid & evaluator.is_type(aggregate.event_type)
    if aggregate.where is not None:
        condition = evaluator.column(aggregate.where)
        carrying = carrying & condition.valid & condition.values
    return carrying.copy()


def _last_events(
    n: int, in_order: np.ndarray, folded: np.ndarray, times: np.ndarray, at: int, grace: int
) -> WindowRows:
    """The last n up to the row's time, among those not older than the grace and the n latest that are."""
    mine = in_order[folded[in_order]]
    reachable = np.concatenate([mine[times[mine] < grace][-n:], mine[times[mine] >= grace]])
    rows = reachable[times[reachable] <= at][-n:]
    others = in_order[~folded[in_order] & (times[in_order] <= at)]
    first = int(times[rows[0]]) if len(rows) == n else None
    too_late = others if first is None else others[times[others] >= first]
    return WindowRows(rows, too_late, first, True)
