"""Where the sun stands: its elevation above the horizon, of a place and an instant.

The low-precision formulas for the sun's ecliptic longitude and the obliquity of The Astronomical Almanac (section C;
also J. J. Michalsky, Solar Energy 40, 1988), good to 0.01 degrees from 1950 to 2050 and a little less beyond; sidereal
time after J. Meeus, Astronomical Algorithms, 1998, chapter 12. The hour angle is not formed: the sun's direction is
turned as a vector. Arithmetic is that of `elementary`: the same bits on every CPU (contract C3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shared_features import elementary
from shared_features.columns import Column, Evaluator
from shared_features.error_free import compiled
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression, literal
from shared_features.geo import is_place, require_degrees, valid_together
from shared_features.trigonometry import DEGREES_PER_RADIAN, scalar_asin, scalar_cos_deg, scalar_sin_deg

SUNRISE_DEG = -0.833
"""Elevation of the sun's centre at sunrise and sunset: 34' of refraction and 16' of the sun's radius."""

_J2000_US = 946_728_000_000_000  # 2000-01-01 12:00 UTC
_DAY_US = 86_400_000_000


@compiled
def _elevation_deg(latitude, longitude, days):  # type: ignore[no-untyped-def]
    """``days`` since 2000-01-01 12:00."""
    if not is_place(latitude, longitude):
        return float("nan")
    anomaly = 357.528 + 0.9856003 * days
    ecliptic = 280.460 + 0.9856474 * days + 1.915 * scalar_sin_deg(anomaly) + 0.020 * scalar_sin_deg(2.0 * anomaly)
    obliquity = 23.439 - 0.0000004 * days
    sidereal = 280.46061837 + 360.98564736629 * days + longitude
    to_equinox = scalar_cos_deg(ecliptic)
    along_ecliptic = scalar_sin_deg(ecliptic)
    in_equator = scalar_cos_deg(obliquity) * along_ecliptic
    to_pole = scalar_sin_deg(obliquity) * along_ecliptic
    to_meridian = to_equinox * scalar_cos_deg(sidereal) + in_equator * scalar_sin_deg(sidereal)
    sine = scalar_sin_deg(latitude) * to_pole + scalar_cos_deg(latitude) * to_meridian
    return scalar_asin(max(-1.0, min(1.0, sine))) * DEGREES_PER_RADIAN


class SunElevation(Expression):
    """Elevation of the sun's centre, float64 degrees."""

    dtype = "float64"

    def __init__(self, latitude: Expression, longitude: Expression, time: Expression) -> None:
        self.latitude, self.longitude, self.time = latitude, longitude, time
        self.definition = ["sun_elevation_deg", latitude.definition, longitude.definition, time.definition]
        require_degrees("sun_elevation_deg", latitude, longitude)
        if time.dtype != "timestamp":
            raise DefinitionError(f"sun_elevation_deg got the {time.dtype} {time.key} as time, wanted a timestamp")

    def parts(self) -> tuple[Expression, ...]:
        return (self.latitude, self.longitude, self.time)

    def evaluate(self, of: Evaluator) -> Column:
        latitude, longitude, time = (of.column(part) for part in self.parts())
        days = (time.values - _J2000_US) / _DAY_US
        values = elementary.map_scalar(_elevation_deg, latitude.values, longitude.values, days)
        return Column(values, valid_together([latitude, longitude, time]) & np.isfinite(values))


def sun_elevation_deg(latitude: Any, longitude: Any, time: Expression) -> Expression:
    """Elevation of the sun's centre above the horizon, without refraction, float64 degrees in [−90, 90].

    Good to 0.02 degrees from 1950 to 2050. Null where a part is null or the position is out of range.

    Args:
        latitude: degrees north, −90 to 90; an expression or a number.
        longitude: degrees east, −180 to 180; an expression or a number.
        time: a timestamp, for example the event's time.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64, or ``time`` is no timestamp.
    """
    return SunElevation(literal(latitude), literal(longitude), time)


def sun_above_horizon(latitude: Any, longitude: Any, time: Expression, horizon_deg: float = SUNRISE_DEG) -> Expression:
    """Whether the sun is up: `sun_elevation_deg` above ``horizon_deg``; bool, null where that is null.

    The horizon is level and at the height of the eye; rising and setting are right to about a minute, and to several
    near the poles, where the sun moves along the horizon.

    Args:
        horizon_deg: −0.833 for sunrise and sunset, −6 for civil, −12 for nautical, −18 for astronomical twilight.
    """
    return sun_elevation_deg(latitude, longitude, time) > float(horizon_deg)
