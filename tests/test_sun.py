"""The sun: published times of sunrise and sunset, polar day and night, and a second, longer formula."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from shared_features import sun_above_horizon, sun_elevation_deg
from shared_features.errors import DefinitionError
from tests.positions import evaluate, in_range, report

ELEVATION = sun_elevation_deg(report.lat, report.lon, report.at)
UP = sun_above_horizon(report.lat, report.lon, report.at)

# Published by national almanac offices and printed in newspapers: place, UTC offset, day, sunrise, sunset.
RISES_AND_SETS = [
    ("New York", 40.713, -74.006, -4, "2013-06-21", "05:25", "20:31"),
    ("New York", 40.713, -74.006, -5, "2013-12-21", "07:17", "16:32"),
    ("London", 51.507, -0.128, 0, "2024-12-21", "08:04", "15:53"),
    ("London", 51.507, -0.128, 1, "2024-06-21", "04:43", "21:21"),
    ("Sydney", -33.869, 151.209, 11, "2024-12-21", "05:41", "20:05"),
    ("Tokyo", 35.682, 139.692, 9, "2024-01-01", "06:51", "16:38"),
    ("Reykjavik", 64.147, -21.940, 0, "2024-12-21", "11:22", "15:29"),
]


@pytest.mark.parametrize(("place", "lat", "lon", "offset", "day", "rise", "sets"), RISES_AND_SETS)
def test_rises_and_sets_within_two_minutes_of_the_published_times(
    place: str, lat: float, lon: float, offset: int, day: str, rise: str, sets: str
) -> None:
    def minutes_from(clock: str) -> list[bool]:
        at = datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC) - timedelta(hours=offset)
        rows = [{"lat": lat, "lon": lon, "at": at + timedelta(minutes=minutes)} for minutes in (-2, 2)]
        return evaluate(UP, rows)

    assert minutes_from(rise) == [False, True], f"sunrise in {place}"
    assert minutes_from(sets) == [True, False], f"sunset in {place}"


@pytest.mark.parametrize(
    ("place", "lat", "lon", "day", "up"),
    [
        ("Longyearbyen", 78.22, 15.65, "2024-06-21", True),
        ("Longyearbyen", 78.22, 15.65, "2024-12-21", False),
        ("Tromsø", 69.65, 18.96, "2024-05-25", True),
        ("Tromsø", 69.65, 18.96, "2024-12-10", False),
        ("South Pole", -90.0, 0.0, "2024-12-21", True),
        ("South Pole", -90.0, 0.0, "2024-06-21", False),
    ],
)
def test_polar_day_and_night(place: str, lat: float, lon: float, day: str, up: bool) -> None:
    midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
    rows = [{"lat": lat, "lon": lon, "at": midnight + timedelta(minutes=10 * i)} for i in range(144)]
    assert evaluate(UP, rows) == [up] * 144, place


def test_at_the_pole_the_elevation_is_the_declination() -> None:
    """Meeus, Astronomical Algorithms, example 25.a: 1992 October 13, 0 h, declination −7.78507 degrees."""
    rows = [{"lat": 90.0, "lon": float(lon), "at": datetime(1992, 10, 13, tzinfo=UTC)} for lon in (0, 77, -180)]
    assert evaluate(ELEVATION, rows) == pytest.approx([-7.785] * 3, abs=0.01)


def slow_elevation(lat: float, lon: float, at: datetime) -> float:
    """Meeus, chapter 25 (the sun's place, "low accuracy") and 13 (from the equator to the horizon), as printed."""
    days = (at - datetime(2000, 1, 1, 12, tzinfo=UTC)) / timedelta(days=1)
    t = days / 36525
    mean_longitude = 280.46646 + 36000.76983 * t + 0.0003032 * t * t
    anomaly = math.radians(357.52911 + 35999.05029 * t - 0.0001537 * t * t)
    center = (1.914602 - 0.004817 * t) * math.sin(anomaly)
    center += (0.019993 - 0.000101 * t) * math.sin(2 * anomaly) + 0.000289 * math.sin(3 * anomaly)
    node = math.radians(125.04 - 1934.136 * t)
    longitude = math.radians(mean_longitude + center - 0.00569 - 0.00478 * math.sin(node))
    obliquity = math.radians(23.439291 - 0.0130042 * t + 0.00256 * math.cos(node))
    ascension = math.atan2(math.cos(obliquity) * math.sin(longitude), math.cos(longitude))
    declination = math.asin(math.sin(obliquity) * math.sin(longitude))
    sidereal = 280.46061837 + 360.98564736629 * days + 0.000387933 * t * t
    hour_angle = math.radians(sidereal + lon) - ascension
    north = math.radians(lat)
    sine = math.sin(north) * math.sin(declination) + math.cos(north) * math.cos(declination) * math.cos(hour_angle)
    return math.degrees(math.asin(max(-1.0, min(1.0, sine))))


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SINCE_1950 = st.integers(-631_152_000, 2_524_608_000).map(lambda seconds: EPOCH + timedelta(seconds=seconds))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "lat": st.one_of(st.none(), st.just(90.5), *[st.floats(-90, 90)] * 4),
            "lon": st.one_of(st.none(), st.just(-181.0), *[st.floats(-180, 180)] * 4),
            "at": SINCE_1950,
        }
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200)
@given(rows=ROWS)
def test_agrees_with_a_longer_formula(rows: list[dict[str, Any]]) -> None:
    for row, degrees, up in zip(rows, evaluate(ELEVATION, rows), evaluate(UP, rows), strict=True):
        if not in_range(row["lat"], row["lon"]):
            assert degrees is None
            assert up is None
            continue
        assert degrees == pytest.approx(slow_elevation(**row), abs=0.02)
        assert up is (degrees > -0.833)


def test_twilight_is_another_horizon() -> None:
    at = datetime(2013, 6, 21, 9, 0, tzinfo=UTC)  # 05:00 in New York, 25 minutes before sunrise
    rows = [{"lat": 40.713, "lon": -74.006, "at": at}]
    assert evaluate(UP, rows) == [False]
    assert evaluate(sun_above_horizon(report.lat, report.lon, report.at, horizon_deg=-6), rows) == [True]


def test_what_is_no_time_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"sun_elevation_deg got the float64 .* as time, wanted a timestamp"):
        sun_elevation_deg(0, 0, report.lat)
    with pytest.raises(DefinitionError, match=r"sun_elevation_deg got the string"):
        sun_above_horizon(0, report.zone, report.at)
