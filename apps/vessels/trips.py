"""Trips from port to port: a view with one row for each, while it lasts and when it is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from apps.vessels.effort import FISHING, HALF_US_PER_HOUR, LONGEST_GAP_US
from apps.vessels.world.places import PORTS
from shared_features import App
from shared_features.nearest import Places
from shared_features.order import in_order

PORT_KM = 20.0
SLOW_KNOTS = 2.0
ALERTS = ("protected_area", "implausible_position")
_AT_SEA, _NEAR = -1, -2
_NAMES = list(PORTS)
_PLACES = Places(list(PORTS.values()))

Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Trip:
    vessel: int
    started_us: int
    from_port: str | None
    ended_us: int | None = None
    to_port: str | None = None
    half_us: int = 0
    alerts: int = 0


@dataclass(slots=True)
class _Vessel:
    """Where the last position in order left a vessel; ``trip`` is None in port."""

    newest_us: int
    fishing: bool
    port: int
    trip: _Trip | None


class Trips:
    """Trips: ``vessel``, ``started``, ``from_port``, ``ended``, ``to_port``, ``hours_fishing``, ``alerts``.

    A vessel is in port from a position within 20 km of one at less than 2 knots on, until one that is not within
    20 km of any. A trip begins with that position, or, without ``from_port``, with the first one that was ever seen of
    the vessel. ``ended`` and ``to_port`` are null while it lasts. Hours are those of `apps.vessels.effort`; alerts are
    its protected areas entered and implausible positions. A position older than its vessel's newest is passed over.
    """

    name = "trips"
    key = ("vessel", "started")

    def __init__(self, app: App) -> None:
        self._probability = f"prediction.{app.models[0].name}.probability"
        self._vessels: dict[int, _Vessel] = {}
        self._trips: list[_Trip] = []
        self.left_out = {"positions without a place": 0, "positions older than their vessel's newest": 0}

    def fold(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """Take in positions; the trips that began, went on or ended."""
        if self._probability not in block.schema.names:
            return _rows([])
        has_place = pc.and_(block.column("position.latitude").is_valid(), block.column("position.longitude").is_valid())
        predicted = block.column(self._probability).is_valid()
        self.left_out["positions without a place"] += pc.and_not(predicted, has_place).true_count
        block = block.filter(pc.and_(has_place, predicted))
        vessels = block.column("position.vessel").to_numpy()
        block = block.take(pa.array(np.argsort(vessels, kind="stable")))
        in_order = self._in_order(block)
        self.left_out["positions older than their vessel's newest"] += int(np.count_nonzero(~in_order))
        block = block.filter(pa.array(in_order))
        vessels, times = block.column("position.vessel").to_numpy(), _times(block)
        ports, fishing = _ports(block), block.column(self._probability).to_numpy() >= FISHING
        alerts = np.zeros(len(vessels), np.int64)
        for name in ALERTS:
            alerts += np.asarray(block.column(f"reaction.{name}").fill_null(False))
        ends = [*(np.flatnonzero(np.diff(vessels)) + 1).tolist(), len(vessels)] if len(vessels) else []
        changed: dict[int, _Trip] = {}
        for begin, end in zip([0, *ends], ends, strict=False):
            one = slice(begin, end)
            for trip in self._sail(int(vessels[begin]), times[one], ports[one], fishing[one], alerts[one]):
                changed[id(trip)] = trip
        return _rows(list(changed.values()))

    def table(self) -> pa.RecordBatch:
        """All trips."""
        return _rows(self._trips)

    def _in_order(self, block: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Which rows are not older than their vessel's newest one before them."""
        vessels, slots = np.unique(block.column("position.vessel").to_numpy(), return_inverse=True)
        known = [self._vessels.get(vessel) for vessel in vessels.tolist()]
        newest = np.array([-(2**62) if one is None else one.newest_us for one in known], np.int64)
        found = np.empty(len(slots), np.bool_)
        in_order(slots, _times(block).copy(), newest, found)  # Arrow's memory is read-only
        return found

    def _sail(
        self, number: int, times: Integers, ports: Integers, fishing: npt.NDArray[np.bool_], alerts: Integers
    ) -> list[_Trip]:
        """Take one vessel's next positions, in order; the trips that they change."""
        vessel = self._vessels.get(number)
        if vessel is None:
            vessel = _Vessel(int(times[0]), bool(fishing[0]), int(ports[0]), None)
            if ports[0] < 0:
                vessel.trip = self._begin(number, int(times[0]), None)
            self._vessels[number] = vessel
        gaps = np.diff(times, prepend=vessel.newest_us)
        gaps[gaps > LONGEST_GAP_US] = 0
        amounts = gaps * (fishing.astype(np.int64) + np.append(vessel.fishing, fishing[:-1]))
        changed, at = [vessel.trip], 0
        for row in [*np.flatnonzero(ports != _NEAR).tolist(), len(times)]:
            begins = row < len(times) and ports[row] == _AT_SEA and vessel.trip is None
            ends = row < len(times) and ports[row] >= 0 and vessel.trip is not None
            if not (begins or ends or row == len(times)):
                continue
            upto = row + 1 if ends else row
            if vessel.trip is not None:
                vessel.trip.half_us += int(amounts[at:upto].sum())
                vessel.trip.alerts += int(alerts[at:upto].sum())
            at = upto
            if ends and vessel.trip is not None:
                vessel.trip.ended_us, vessel.trip.to_port = int(times[row]), _NAMES[ports[row]]
                vessel.trip, vessel.port = None, int(ports[row])
            elif begins:
                from_port = _NAMES[vessel.port] if vessel.port >= 0 else None
                vessel.trip = self._begin(number, int(times[row]), from_port)
                changed.append(vessel.trip)
        vessel.newest_us, vessel.fishing = int(times[-1]), bool(fishing[-1])
        return [trip for trip in changed if trip is not None]

    def _begin(self, vessel: int, started_us: int, from_port: str | None) -> _Trip:
        self._trips.append(_Trip(vessel, started_us, from_port))
        return self._trips[-1]


def _times(block: pa.RecordBatch) -> Integers:
    found: Integers = block.column("event_time").cast(pa.int64()).to_numpy()
    return found


def _ports(block: pa.RecordBatch) -> Integers:
    """For each row the number of the port that it lies in, `_NEAR` where it is near one and moves, else `_AT_SEA`."""
    position = (block.column(f"position.{name}").to_numpy() for name in ("latitude", "longitude"))
    metres, ports = _PLACES.nearest(*position)
    slow = pc.fill_null(pc.less(block.column("position.speed"), SLOW_KNOTS), False).to_numpy(zero_copy_only=False)
    return np.where(metres > PORT_KM * 1000, _AT_SEA, np.where(slow, ports, _NEAR))


def _rows(trips: list[_Trip]) -> pa.RecordBatch:
    time = pa.timestamp("us", tz="UTC")
    columns: dict[str, Any] = {
        "vessel": pa.array([trip.vessel for trip in trips], pa.int64()),
        "started": pa.array([trip.started_us for trip in trips], time),
        "from_port": pa.array([trip.from_port for trip in trips], pa.string()),
        "ended": pa.array([trip.ended_us for trip in trips], time),
        "to_port": pa.array([trip.to_port for trip in trips], pa.string()),
        "hours_fishing": pa.array([trip.half_us / HALF_US_PER_HOUR for trip in trips], pa.float64()),
        "alerts": pa.array([trip.alerts for trip in trips], pa.int64()),
    }
    return pa.RecordBatch.from_pydict(columns)
