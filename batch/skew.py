"""Why a served row and its training row differ: which events the one fold saw and the other did not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.aggregates import Aggregate
from shared_features.columns import Evaluator
from shared_features.compute import compute_block, history_order
from shared_features.expressions import Expression
from shared_features.kernel import key_column
from shared_features.plan import Plan

NEVER = np.iinfo(np.int64).max

COMMIT_ROW = "commit_row"
"""Column of served rows: where the row stands in the archive, which is the order of every fold."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Features of a history by the batch path, with the history's events.

    Attributes:
        features: all events of the history in fold order, with ``feature.*`` columns.
        compare_from_us: rows with an earlier event time are not compared; int64 µs.
    """

    features: pa.RecordBatch
    compare_from_us: int

    def match(self, served: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Indices of served rows and of the same events' training rows; int64, equal length."""
        theirs = {identity: row for row, identity in enumerate(identities(self.features))}
        compared = pc.not_equal(served.column("outcome"), "folded").to_numpy(zero_copy_only=False)
        times = served.column("event_time").cast(pa.int64()).to_numpy()
        pairs = [
            (row, theirs[identity])
            for row, identity in enumerate(identities(served))
            if compared[row] and times[row] >= self.compare_from_us and identity in theirs
        ]
        both = np.array(pairs, np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]


def training_rows(plan: Plan, history: pa.RecordBatch, compare_from_us: int) -> TrainingRows:
    """Training rows of ``history`` (rows without positions, see `shared_features.compute.to_block`)."""
    return TrainingRows(compute_block(plan, history), compare_from_us)


def identities(block: pa.RecordBatch) -> list[tuple[str, str]]:
    """(event type, event id) of each row."""
    return list(zip(block.column("event_type").to_pylist(), block.column("event_id").to_pylist(), strict=True))


class Causes:
    """Finds the cause of each difference by comparing what the two folds could see.

    For the row and every aggregate of the differing feature: the events of its key and type inside its window, in
    the history and in the archive. One that stands before the row in one order and behind it in the other arrived
    late, or let the row overtake it (``late_arrival``). One that the archive does not hold, from before its
    beginning, is ``cold_state``. If both folds saw the same events the difference is ``unexplained``.
    """

    def __init__(self, plan: Plan, served: pa.RecordBatch, training: TrainingRows) -> None:
        events = training.features
        commit_rows = served.column(COMMIT_ROW).to_pylist()
        live_order = dict(zip(identities(served), commit_rows, strict=True))
        self._trained = np.empty(events.num_rows, np.int64)
        self._trained[history_order(events)] = np.arange(events.num_rows)
        self._live = np.array([live_order.get(identity, NEVER) for identity in identities(events)], np.int64)
        self._times = events.column("event_time").cast(pa.int64()).to_numpy()
        self._types = np.array(events.column("event_type").to_pylist(), object)
        self._begin_us = int(pc.min(served.column("event_time")).cast(pa.int64()).as_py())
        self._groups: dict[str, dict[Any, np.ndarray]] = {}
        self._keys: dict[str, list[Any]] = {}
        evaluator = Evaluator(events)
        by_time = np.argsort(self._times, kind="stable").tolist()
        for stage in plan.stages:
            keys: list[Any] = key_column(stage.key, evaluator).to_pylist()
            self._keys[stage.name] = keys
            members: dict[Any, list[int]] = {}
            for row in by_time:
                if keys[row] is not None:
                    members.setdefault(keys[row], []).append(row)
            self._groups[stage.name] = {key: np.array(rows, np.int64) for key, rows in members.items()}

    def of(self, row: int, feature: Expression) -> str:
        """The cause for the training row ``row``: late_arrival, cold_state or unexplained."""
        found = {self._of_aggregate(row, node) for node in feature.walk() if isinstance(node, Aggregate)}
        return next((cause for cause in ("cold_state", "late_arrival") if cause in found), "unexplained")

    def _of_aggregate(self, row: int, aggregate: Aggregate) -> str:
        stage = aggregate.by.name
        group = self._groups[stage].get(self._keys[stage][row], np.empty(0, np.int64))
        at = self._times[row]
        times = self._times[group]
        earliest = np.searchsorted(times, at - aggregate.window_us) if aggregate.window_us else 0
        inside = group[earliest : np.searchsorted(times, at, side="right")]
        inside = inside[self._types[inside] == aggregate.event_type]
        seen_in_training = self._trained[inside] <= self._trained[row]
        seen_live = self._live[inside] <= self._live[row]
        differing = inside[seen_in_training != seen_live]
        missing = differing[self._live[differing] == NEVER]
        if len(missing):
            return "cold_state" if bool((self._times[missing] < self._begin_us).any()) else "unexplained"
        return "late_arrival" if len(differing) else "unexplained"
