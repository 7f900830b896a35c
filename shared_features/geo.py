"""Places on the Earth: distances and bearings between two of them, and from where a key was last seen.

A position is a latitude and a longitude in degrees, int64 or float64, north and east positive, −90 to 90 and −180 to
180. The Earth is a sphere of 6,371,008.8 m, the mean radius of the IUGG (Moritz, Geodetic Reference System 1980):
against the ellipsoid a distance is off by up to 0.56 %, a bearing by up to 0.2 degrees.

Null rule: null in, null out; a position out of range gives null, so that a receiver's "not available" of 91 or 181
degrees is missing, not a place. Arithmetic is that of `elementary`: the same bits on every CPU (contract C3).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np

from shared_features import elementary
from shared_features.aggregates import last, seconds_since_last
from shared_features.columns import Column, Evaluator
from shared_features.error_free import compiled
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression, literal
from shared_features.keys import Key
from shared_features.trigonometry import (
    DEGREES_PER_RADIAN,
    LARGEST_DEGREES,
    scalar_atan2,
    scalar_cos_deg,
    scalar_sin_deg,
)

EARTH_RADIUS_M = 6_371_008.8
_NAN = float("nan")


@compiled
def is_place(latitude, longitude):  # type: ignore[no-untyped-def]
    """Whether a position is in range; False for NaN."""
    return abs(latitude) <= 90.0 and abs(longitude) <= 180.0


@compiled
def scalar_great_circle_m(latitude_1, longitude_1, latitude_2, longitude_2):  # type: ignore[no-untyped-def]
    """The haversine formula (R. W. Sinnott, Virtues of the haversine, Sky and Telescope 68, 1984)."""
    if not (is_place(latitude_1, longitude_1) and is_place(latitude_2, longitude_2)):
        return _NAN
    north = scalar_sin_deg((latitude_2 - latitude_1) * 0.5)
    east = scalar_sin_deg((longitude_2 - longitude_1) * 0.5)
    haversine = north * north + scalar_cos_deg(latitude_1) * scalar_cos_deg(latitude_2) * (east * east)
    haversine = min(haversine, 1.0)
    return 2.0 * EARTH_RADIUS_M * scalar_atan2(np.sqrt(haversine), np.sqrt(1.0 - haversine))


@compiled
def _bearing_deg(latitude_1, longitude_1, latitude_2, longitude_2):  # type: ignore[no-untyped-def]
    """The angle of the great circle at the first place.

    cos φ₁ sin φ₂ − sin φ₁ cos φ₂ cos Δλ is written sin Δφ + 2 sin φ₁ cos φ₂ sin² (Δλ/2), which does not cancel where
    the places are a metre apart.
    """
    if not (is_place(latitude_1, longitude_1) and is_place(latitude_2, longitude_2)):
        return _NAN
    cosine_2 = scalar_cos_deg(latitude_2)
    half = scalar_sin_deg((longitude_2 - longitude_1) * 0.5)
    east = scalar_sin_deg(longitude_2 - longitude_1) * cosine_2
    north = scalar_sin_deg(latitude_2 - latitude_1) + 2.0 * scalar_sin_deg(latitude_1) * cosine_2 * (half * half)
    if east == 0.0 and north == 0.0:
        return _NAN
    degrees = scalar_atan2(east, north) * DEGREES_PER_RADIAN
    if degrees < 0.0:
        degrees += 360.0
    return degrees if degrees < 360.0 else 0.0


class BetweenPlaces(Expression):
    """``great_circle_m`` or ``bearing_deg`` of two positions, float64."""

    dtype = "float64"
    _SCALARS: Mapping[str, Any] = {"great_circle_m": scalar_great_circle_m, "bearing_deg": _bearing_deg}

    def __init__(self, operation: str, *coordinates: Expression) -> None:
        self.operation, self.coordinates = operation, coordinates
        self.definition = [operation, *(coordinate.definition for coordinate in coordinates)]
        require_degrees(operation, *coordinates)

    def parts(self) -> tuple[Expression, ...]:
        return self.coordinates

    def evaluate(self, of: Evaluator) -> Column:
        columns = [of.column(coordinate) for coordinate in self.coordinates]
        values = elementary.map_scalar(self._SCALARS[self.operation], *(column.values for column in columns))
        return Column(values, valid_together(columns) & np.isfinite(values))


def require_degrees(name: str, *angles: Expression) -> None:
    """Raise DefinitionError unless all ``angles`` are int64 or float64; ``name`` is the function that takes them."""
    for angle in angles:
        if angle.dtype not in ("int64", "float64"):
            raise DefinitionError(f"{name} got the {angle.dtype} {angle.key}, wanted degrees as int64 or float64")


def read_only_degrees(values: np.ndarray) -> np.ndarray:
    """Angles as compiled code with a fixed signature takes them: float64, contiguous, read-only; shape [rows]."""
    found: np.ndarray = np.ascontiguousarray(values, np.float64).view()
    found.flags.writeable = False
    return found


def valid_together(columns: list[Column]) -> np.ndarray:
    """Where all of some columns are valid; bool, shape [rows]."""
    valid = columns[0].valid
    for column in columns[1:]:
        valid = valid if column.valid is valid else valid & column.valid
    return valid


def great_circle_m(latitude_1: Any, longitude_1: Any, latitude_2: Any, longitude_2: Any) -> Expression:
    """Distance of two positions along the great circle, in metres, float64; null if a coordinate is out of range.

    The haversine formula, to about 1e-15 of the distance; where the places are almost opposite to each other its
    own rounding grows to at most 0.2 m. The same from here to there as from there to here, to the bit.

    Args:
        latitude_1: degrees north, −90 to 90; an expression or a number, like all four.
        longitude_1: degrees east, −180 to 180.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64.
    """
    return BetweenPlaces(
        "great_circle_m", literal(latitude_1), literal(longitude_1), literal(latitude_2), literal(longitude_2)
    )


def bearing_deg(latitude_1: Any, longitude_1: Any, latitude_2: Any, longitude_2: Any) -> Expression:
    """Initial bearing of the great circle from the first position to the second, degrees clockwise from north.

    float64 in [0, 360); null if a coordinate is out of range, and where the two are one place, or exactly opposite,
    and there is no direction. Seen from a pole, north is along the meridian of the longitude that was given.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64.
    """
    return BetweenPlaces(
        "bearing_deg", literal(latitude_1), literal(longitude_1), literal(latitude_2), literal(longitude_2)
    )


class Turn(Expression):
    """The smallest turn from one direction to another, float64 degrees in (−180, 180]."""

    dtype = "float64"

    def __init__(self, start: Expression, end: Expression) -> None:
        self.start, self.end = start, end
        self.definition = ["turn_deg", start.definition, end.definition]
        require_degrees("turn_deg", start, end)

    def parts(self) -> tuple[Expression, ...]:
        return (self.start, self.end)

    def evaluate(self, of: Evaluator) -> Column:
        start, end = of.column(self.start), of.column(self.end)
        turn = end.values.astype(np.float64, copy=False) - start.values.astype(np.float64, copy=False)
        valid = valid_together([start, end]) & (np.abs(turn) <= LARGEST_DEGREES)
        turn = turn - 360.0 * np.ceil(turn / 360.0 - 0.5)  # exact; the quotient's rounding may leave it at the far end
        return Column(np.where(turn <= -180.0, turn + 360.0, turn), valid)


def turn_deg(start: Any, end: Any) -> Expression:
    """The turn from direction ``start`` to direction ``end`` that is the smaller one, float64 in (−180, 180].

    Degrees, positive to the right: from 350 to 10 it is 20, from 10 to 350 it is −20. Directions may lie outside
    [0, 360); null where either is null, or they are more than 2^45 apart.

    Raises:
        DefinitionError: a direction is neither int64 nor float64.
    """
    return Turn(literal(start), literal(end))


def _last_place(
    latitude: Expression, longitude: Expression, by: Key, over: str | timedelta, where: Expression | None
) -> tuple[Expression, Expression, Expression]:
    """Latitude and longitude of the last event before this one that has both in range, and seconds since then."""
    require_degrees("a position", latitude, longitude)
    known = (latitude >= -90) & (latitude <= 90) & (longitude >= -180) & (longitude <= 180)
    options: dict[str, Any] = {
        "by": by,
        "over": over,
        "include_self": False,
        "where": known if where is None else known & where,
    }
    return last(latitude, **options), last(longitude, **options), seconds_since_last(latitude, **options)


def distance_from_last_m(
    latitude: Expression, longitude: Expression, *, by: Key, over: str | timedelta, where: Expression | None = None
) -> Expression:
    """Metres from the position before, of the same key, to this event's own, float64.

    The position before is that of the latest event in the window, this one left out, with both coordinates in range
    and ``where`` true. Null where there is none, or where this event's own is missing or out of range.

    Args:
        latitude: degrees, a row-level expression of one event type; like ``longitude``.
        by: the key, for example the vessel.
        over: the window, for example ``"24h"``; see `last`.
        where: condition on the events that count as the position before.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64, or reads another event type.
    """
    before_latitude, before_longitude, _ = _last_place(latitude, longitude, by, over, where)
    return great_circle_m(before_latitude, before_longitude, latitude, longitude)


def speed_from_last_m_s(
    latitude: Expression, longitude: Expression, *, by: Key, over: str | timedelta, where: Expression | None = None
) -> Expression:
    """`distance_from_last_m` divided by the seconds between the two events, metres per second, float64.

    Null where the distance is, and where both events are of the same microsecond. Arguments and errors are those of
    `distance_from_last_m`.
    """
    before_latitude, before_longitude, seconds = _last_place(latitude, longitude, by, over, where)
    return great_circle_m(before_latitude, before_longitude, latitude, longitude) / seconds


def bearing_from_last_deg(
    latitude: Expression, longitude: Expression, *, by: Key, over: str | timedelta, where: Expression | None = None
) -> Expression:
    """`bearing_deg` from the position before, of the same key, to this event's own: the course made good.

    Null where there is no position before, where this event's own is missing or out of range, and where the key has
    not moved. Arguments and errors are those of `distance_from_last_m`.
    """
    before_latitude, before_longitude, _ = _last_place(latitude, longitude, by, over, where)
    return bearing_deg(before_latitude, before_longitude, latitude, longitude)
