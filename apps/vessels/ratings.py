"""Ratings of trips as ratings of their positions: a view whose rows are `rated` events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features import App

_POSITION, _RATING = "position", "trip_rated"
_COLUMNS: dict[str, pa.DataType] = {
    "event_id": pa.string(),
    "rated_at": pa.timestamp("us", tz="UTC"),
    "position_id": pa.string(),
    "fishing": pa.bool_(),
}


@dataclass(frozen=True, slots=True, order=True)
class _Rating:
    """What an analyst says of a stretch of time; of two the one that was made first holds, as with any label."""

    rated_us: int
    event_id: str
    vessel: int
    started_us: int
    ended_us: int
    fishing: bool


class Ratings:
    """Ratings of positions: ``event_id``, ``rated_at``, ``position_id``, ``fishing``, as `rated` events have them.

    A `trip_rated` event speaks of all positions of its vessel from ``started`` to ``ended``, both included, whichever
    came first. A position without a rating has no row. Of two ratings that speak of one position the earlier holds.
    """

    name = "ratings"
    key = ("position_id",)

    def __init__(self, app: App) -> None:  # noqa: ARG002
        self._positions: dict[int, list[tuple[npt.NDArray[np.int64], pa.Array]]] = {}
        self._ratings: dict[int, list[_Rating]] = {}
        self._rated: dict[str, _Rating] = {}
        self._met: set[_Rating] = set()

    @property
    def left_out(self) -> dict[str, int]:
        """Ratings whose vessel has no position from their beginning to their end: a wrong number, or time."""
        return {"ratings that speak of no position": sum(map(len, self._ratings.values())) - len(self._met)}

    def fold(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Take in positions and ratings; the positions that were rated, or are now rated differently."""
        changed: dict[str, _Rating] = {}
        for rating in _ratings(block):
            self._ratings.setdefault(rating.vessel, []).append(rating)
            for times, ids in self._positions.get(rating.vessel, []):
                self._rate(rating, times, ids, changed)
        for vessel, times, ids in _positions(block):
            self._positions.setdefault(vessel, []).append((times, ids))
            for rating in self._ratings.get(vessel, []):
                self._rate(rating, times, ids, changed)
        return _rows(changed)

    def table(self) -> pa.RecordBatch:
        """All ratings of positions."""
        return _rows(self._rated)

    def _rate(self, rating: _Rating, times: npt.NDArray[np.int64], ids: pa.Array, changed: dict[str, _Rating]) -> None:
        inside = (times >= rating.started_us) & (times <= rating.ended_us)
        if inside.any():
            self._met.add(rating)
        for position in ids.filter(pa.array(inside)).to_pylist():
            before = self._rated.get(position)
            if before is None or rating < before:
                self._rated[position] = changed[position] = rating


def _ratings(block: pa.RecordBatch) -> list[_Rating]:
    ids, times, *said = (one.to_pylist() for one in _of_type(block, _RATING, ("vessel", "started", "ended", "fishing")))
    return [_Rating(*row) for row in zip(times, ids, *said, strict=True)]


def _positions(block: pa.RecordBatch) -> list[tuple[int, npt.NDArray[np.int64], pa.Array]]:
    """Vessel, times and identities, vessel by vessel."""
    ids, times, vessels = _of_type(block, _POSITION, ("vessel",))
    order = np.argsort(vessels.to_numpy(), kind="stable")
    ids, times, numbers = ids.take(pa.array(order)), times.to_numpy()[order], vessels.to_numpy()[order]
    ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)] if len(numbers) else []
    pairs = zip([0, *ends], ends, strict=False)
    return [(int(numbers[a]), times[a:b], ids.slice(a, b - a)) for a, b in pairs]


def _of_type(block: pa.RecordBatch, event_type: str, fields: tuple[str, ...]) -> list[pa.Array]:
    """Identity, event time and some fields of the events of a type; times as microseconds."""
    names = ["event_id", "event_time", *(f"{event_type}.{field}" for field in fields)]
    if names[-1] not in block.schema.names:
        return [pa.nulls(0, pa.string()), *(pa.nulls(0, pa.int64()) for _ in names[1:])]
    block = block.filter(pc.equal(block.column("event_type"), event_type))
    columns: list[Any] = [block.column(name) for name in names]
    return [one.cast(pa.int64()) if pa.types.is_timestamp(one.type) else one for one in columns]


def _rows(rated: dict[str, _Rating]) -> pa.RecordBatch:
    columns = [
        [f"{position}-{rating.event_id}" for position, rating in rated.items()],
        [rating.rated_us for rating in rated.values()],
        list(rated),
        [rating.fishing for rating in rated.values()],
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, _COLUMNS.values(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=list(_COLUMNS))
