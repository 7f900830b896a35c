"""The nearest of a list of places: how far it is, and which.

Exact, whatever the list: each cell of 2° of the globe knows the places that may be the nearest to a position in it,
with room for all rounding; of these the great-circle distances of `geo` are compared. The result is the one that
comparing all places would give, to the bit, at the cost of two or three.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_features.columns import Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression, literal
from shared_features.geo import is_place, read_only_degrees, require_degrees, scalar_great_circle_m, valid_together
from shared_features.machine_code import kept

CELL_DEGREES = 2
_ROOM_RADIANS = 1e-3  # 6 km: far more than anything rounds
_DOUBLES = "Array(float64, 1, 'C', readonly=True)"

Floats = npt.NDArray[np.float64]


class Places:
    """A list of places to look for the nearest in.

    Args:
        places: latitude and longitude of each, degrees; at least one.

    Raises:
        DefinitionError: there is none, or one is out of range.
    """

    def __init__(self, places: Sequence[tuple[float, float]]) -> None:
        self.places = np.array([tuple(place) for place in places], np.float64).reshape(-1, 2)
        if not len(self.places) or not (np.abs(self.places) <= (90.0, 180.0)).all():
            raise DefinitionError(
                f"the nearest of {len(self.places)} places got {places!r:.200}, wanted (latitude, longitude) in "
                "degrees of one or more"
            )
        self._ends, self._candidates = _candidates(self.places)

    def nearest(self, latitude: Floats, longitude: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Metres along the great circle to the nearest place, and its number; the first of those equally near.

        Args:
            latitude, longitude: degrees, float64, shape [rows]; out of range or NaN gives NaN and −1.
        """
        metres, which = np.empty(len(latitude)), np.empty(len(latitude), np.int64)
        position = read_only_degrees(latitude), read_only_degrees(longitude)
        _nearest(*position, self.places, self._ends, self._candidates, metres, which)
        return metres, which


def _candidates(places: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """By cell, row by row from the south and from the west: where its candidates end, and all cells' candidates."""
    south, west = np.arange(-90, 90, CELL_DEGREES), np.arange(-180, 180, CELL_DEGREES)
    middle = np.stack(np.meshgrid(south, west, indexing="ij"), axis=-1).reshape(-1, 2) + CELL_DEGREES / 2
    angle = np.arccos(np.clip(_directions(middle) @ _directions(places).T, -1.0, 1.0))
    corner = [np.sum(_directions(middle) * _directions(middle + at), axis=-1) for at in ([-1.0, 1.0], [1.0, 1.0])]
    reach = np.arccos(np.clip(np.minimum(*corner), -1.0, 1.0))
    near = angle <= (angle.min(axis=1) + 2 * reach + _ROOM_RADIANS)[:, None]
    return np.cumsum(near.sum(axis=1)), np.ascontiguousarray(np.nonzero(near)[1])


def _directions(places: npt.NDArray[Any]) -> Floats:
    """Unit vectors of (latitude, longitude), last axis."""
    north, east = np.radians(places[..., 0]), np.radians(places[..., 1])
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


@kept(f"void({_DOUBLES}, {_DOUBLES}, float64[:, ::1], int64[::1], int64[::1], float64[::1], int64[::1])")
def _nearest(latitudes, longitudes, places, ends, candidates, metres, which):  # type: ignore[no-untyped-def]
    rows, columns = 180 // CELL_DEGREES, 360 // CELL_DEGREES
    for i in range(len(metres)):
        metres[i], which[i] = np.nan, -1
        if not is_place(latitudes[i], longitudes[i]):
            continue
        row = min(int((latitudes[i] + 90.0) / CELL_DEGREES), rows - 1)
        cell = row * columns + min(int((longitudes[i] + 180.0) / CELL_DEGREES), columns - 1)
        for at in range(ends[cell - 1] if cell else 0, ends[cell]):
            place = candidates[at]
            distance = scalar_great_circle_m(latitudes[i], longitudes[i], places[place, 0], places[place, 1])
            if which[i] < 0 or distance < metres[i]:
                metres[i], which[i] = distance, place


class ToNearest(Expression):
    """Metres to the nearest of some places, float64."""

    dtype = "float64"

    def __init__(self, latitude: Expression, longitude: Expression, places: Places) -> None:
        self.latitude, self.longitude, self.places = latitude, longitude, places
        self.definition = ["nearest_m", latitude.definition, longitude.definition, places.places.tolist()]
        require_degrees("nearest_m", latitude, longitude)

    def parts(self) -> tuple[Expression, ...]:
        return (self.latitude, self.longitude)

    def evaluate(self, of: Evaluator) -> Column:
        columns = [of.column(part) for part in self.parts()]
        metres, _ = self.places.nearest(*(column.values for column in columns))
        return Column(metres, valid_together(columns) & np.isfinite(metres))


def nearest_m(latitude: Any, longitude: Any, places: Sequence[tuple[float, float]]) -> Expression:
    """Metres along the great circle to the nearest of some places, float64; null if a coordinate is out of range.

    The places are part of the definition: another list is another feature. Arithmetic is that of `great_circle_m`.

    Args:
        latitude: degrees north, −90 to 90; an expression or a number.
        longitude: degrees east, −180 to 180; an expression or a number.
        places: (latitude, longitude) of each, degrees; at least one.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64, or a place is out of range.
    """
    return ToNearest(literal(latitude), literal(longitude), Places(places))
