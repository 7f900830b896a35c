"""Views of the archive: hours of fishing by hour and cell of a grid, as positions come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apps.vessels.effort import FISHING, HALF_US_PER_HOUR, half_us_of
from apps.vessels.ratings import Ratings
from apps.vessels.trips import Trips
from shared_features import App
from shared_features.hashing import hash_column
from shared_features.slots import IntegerSlots

CELLS_PER_DEGREE = 10
_HOUR_US = 3_600_000_000
_LATITUDES, _LONGITUDES = 180 * CELLS_PER_DEGREE, 360 * CELLS_PER_DEGREE

Integers = npt.NDArray[np.int64]


class Effort:
    """Hours of fishing by hour (UTC) and cell of 0.1°: ``hour``, ``latitude``, ``longitude`` (its middle), ``hours``.

    A position where the app's first model says fishing stands for half the time to its neighbours, see
    `apps.vessels.effort`. One that comes late takes its place among those before and after it, so the table depends on
    the set of positions only; those that were later than the app's lateness are left out, as are those without a place.
    """

    name = "effort"
    key = ("hour", "latitude", "longitude")

    def __init__(self, app: App) -> None:
        self._probability = f"prediction.{app.models[0].name}.probability"
        self._lateness_us = app.lateness_us
        self._vessels = IntegerSlots()
        self._near = np.empty(
            (5, 0), np.int64
        )  # vessel, time, identity, cell, whether fishing: what may get neighbours
        self._totals: dict[int, int] = {}
        self.left_out = {"positions later than the app's lateness": 0, "positions without a place": 0}

    def fold(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Take in positions; the cells whose hours changed, with 0 hours where none are left."""
        came = self._positions(block)
        if not came.shape[1]:
            return self._rows([])
        touched = np.zeros(len(self._vessels), np.bool_)
        touched[came[0]] = True
        mine = touched[self._near[0]]
        before = self._near[:, mine]
        after = _sorted(np.concatenate([before, came], axis=1))
        cells, change = _sums(np.concatenate([after, before], axis=1), np.append(_halves(after), -_halves(before)))
        for cell, amount in zip(cells.tolist(), change.tolist(), strict=True):
            self._totals[cell] = self._totals.get(cell, 0) + amount
        self._near = np.concatenate([self._near[:, ~mine], self._kept(after)], axis=1)
        return self._rows(cells.tolist())

    def table(self) -> pa.RecordBatch:
        """All cells that have hours."""
        return self._rows([cell for cell, total in self._totals.items() if total])

    def _positions(self, block: pa.RecordBatch) -> Integers:
        """The rows that were predicted on, have a place and were not late; int64, shape [5, rows]."""
        if self._probability not in block.schema.names:
            return np.empty((5, 0), np.int64)
        late = pc.fill_null(block.column("stage.vessel.late"), True)
        place = pc.and_(block.column("position.latitude").is_valid(), block.column("position.longitude").is_valid())
        predicted = block.column(self._probability).is_valid()
        self.left_out["positions later than the app's lateness"] += pc.and_(predicted, late).true_count
        predicted = pc.and_not(predicted, late)
        self.left_out["positions without a place"] += pc.and_not(predicted, place).true_count
        block = block.filter(pc.and_(predicted, place))
        times = block.column("event_time").cast(pa.int64()).to_numpy()
        south, west = (block.column(f"position.{name}").to_numpy() for name in ("latitude", "longitude"))
        rows = np.minimum(np.floor((south + 90) * CELLS_PER_DEGREE).astype(np.int64), _LATITUDES - 1)
        columns = np.floor((west + 180) * CELLS_PER_DEGREE).astype(np.int64) % _LONGITUDES
        fishing = block.column(self._probability).to_numpy() >= FISHING
        vessels = self._vessels.of(block.column("position.vessel"))
        identities = hash_column(block.column("event_id")).view(np.int64)
        cells = (times // _HOUR_US * _LATITUDES + rows) * _LONGITUDES + columns
        return _sorted(np.stack([vessels, times, identities, cells, fishing.astype(np.int64)]))

    def _kept(self, positions: Integers) -> Integers:
        """Of sorted positions those that a later one may come to stand beside."""
        vessels, times = positions[:2]
        last = np.append(vessels[1:] != vessels[:-1], True)
        newest = times[last][np.cumsum(last) - last]
        near = times >= newest - self._lateness_us
        near[:-1] |= near[1:] & (vessels[1:] == vessels[:-1])  # and the one before them
        return positions[:, near]

    def _rows(self, cells: list[int]) -> pa.RecordBatch:
        ids = np.array(cells, np.int64)
        places, columns = np.divmod(ids, _LONGITUDES)
        hours, rows = np.divmod(places, _LATITUDES)
        return pa.RecordBatch.from_pydict(
            {
                "hour": pa.array(hours * _HOUR_US, pa.timestamp("us", tz="UTC")),
                "latitude": np.round((rows + 0.5) / CELLS_PER_DEGREE - 90, 6),
                "longitude": np.round((columns + 0.5) / CELLS_PER_DEGREE - 180, 6),
                "hours": np.array([self._totals[cell] for cell in cells], np.float64) / HALF_US_PER_HOUR,
            }
        )


def _sorted(positions: Integers) -> Integers:
    """By vessel, then by time and identity."""
    found: Integers = positions[:, np.lexsort((positions[2], positions[1], positions[0]))]
    return found


def _halves(positions: Integers) -> Integers:
    """Twice the microseconds that each of sorted positions stands for, 0 where the vessel is not fishing."""
    return np.where(positions[4] == 1, half_us_of(positions[0], positions[1]), 0)


def _sums(positions: Integers, amounts: Integers) -> tuple[Integers, Integers]:
    """The cells with amounts that do not cancel out, and their sums."""
    cells, which = np.unique(positions[3], return_inverse=True)
    sums = np.zeros(len(cells), np.int64)
    np.add.at(sums, which, amounts)
    return cells[sums != 0], sums[sums != 0]


VIEWS = [Effort, Trips, Ratings]
