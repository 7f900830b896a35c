"""Distances, bearings and turns against slow spherical geometry by vectors, and what a key's last position gives."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from shared_features import (
    bearing_deg,
    bearing_from_last_deg,
    compute,
    distance_from_last_m,
    great_circle_m,
    mean,
    speed_from_last_m_s,
    turn_deg,
)
from shared_features.errors import DefinitionError
from shared_features.geo import EARTH_RADIUS_M
from tests.positions import PLACES, app_of, by_vessel, direction, evaluate, in_range, report

BETWEEN = (report.lat, report.lon, report.lat_2, report.lon_2)
DISTANCE, BEARING = great_circle_m(*BETWEEN), bearing_deg(*BETWEEN)


def place(*degrees: float | None) -> dict[str, Any]:
    return dict(zip(("lat", "lon", "lat_2", "lon_2"), degrees, strict=True))


def corners(row: dict[str, Any]) -> list[float | None]:
    return [row[name] for name in ("lat", "lon", "lat_2", "lon_2")]


def near(values: list[float | None], rel: float) -> list[Any]:
    """What equals a list of numbers near these, and None where they are None."""
    return [None if value is None else pytest.approx(value, rel=rel) for value in values]


def cross(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float, float]:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def dot(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


@settings(max_examples=200)
@given(rows=st.lists(PLACES, min_size=1, max_size=8))
def test_distance_is_the_angle_between_the_directions(rows: list[dict[str, Any]]) -> None:
    for row, metres in zip(rows, evaluate(DISTANCE, rows), strict=True):
        if not in_range(*corners(row)):
            assert metres is None
            continue
        a, b = direction(row["lat"], row["lon"]), direction(row["lat_2"], row["lon_2"])
        angle = math.atan2(math.hypot(*cross(a, b)), dot(a, b))
        assert metres == pytest.approx(angle * EARTH_RADIUS_M, rel=1e-14, abs=0.2 if angle > 3.1 else 1e-7)


@settings(max_examples=200)
@given(rows=st.lists(PLACES, min_size=1, max_size=8))
def test_distance_is_the_same_both_ways(rows: list[dict[str, Any]]) -> None:
    back = great_circle_m(report.lat_2, report.lon_2, report.lat, report.lon)
    assert evaluate(DISTANCE, rows) == evaluate(back, rows)


@settings(max_examples=200)
@given(rows=st.lists(PLACES, min_size=1, max_size=8))
def test_bearing_is_the_direction_in_the_plane_of_the_horizon(rows: list[dict[str, Any]]) -> None:
    for row, degrees in zip(rows, evaluate(BEARING, rows), strict=True):
        if not in_range(*corners(row)):
            assert degrees is None
            continue
        b = direction(row["lat_2"], row["lon_2"])
        north, east = math.radians(row["lat"]), math.radians(row["lon"])
        to_east = dot(b, (-math.sin(east), math.cos(east), 0.0))
        to_north = dot(b, (-math.sin(north) * math.cos(east), -math.sin(north) * math.sin(east), math.cos(north)))
        if math.hypot(to_east, to_north) < 1e-7:  # here, or opposite: any direction, or none
            continue
        wanted = math.degrees(math.atan2(to_east, to_north))
        assert 0.0 <= degrees < 360.0
        assert abs((degrees - wanted + 180.0) % 360.0 - 180.0) < 1e-6


@pytest.mark.parametrize(
    ("degrees", "metres", "bearing"),
    [
        ((0.0, 0.0, 0.0, 90.0), math.pi / 2 * EARTH_RADIUS_M, 90.0),
        ((0.0, 0.0, 0.0, 180.0), math.pi * EARTH_RADIUS_M, None),  # every way leads there
        ((90.0, 0.0, -90.0, 0.0), math.pi * EARTH_RADIUS_M, None),
        ((0.0, -179.5, 0.0, 179.5), math.radians(1) * EARTH_RADIUS_M, 270.0),
        ((40.63975, -73.77893, 33.94254, -118.40807), 3_974_204.4, 273.845),  # JFK to LAX, 2,469 miles
        ((10.0, 20.0, 10.0, 20.0), 0.0, None),
        ((10.0, 180.0, 10.0, -180.0), 0.0, None),
        ((0.0, 0.0, 1e-5, 0.0), 1.1119508, 0.0),
        ((60.0, 0.0, 60.0, 1e-5), 0.5559754, 89.9999957),
        ((91.0, 0.0, 0.0, 0.0), None, None),
        ((0.0, 181.0, 0.0, 0.0), None, None),
        ((0.0, 0.0, None, 0.0), None, None),
    ],
)
def test_known_places(degrees: tuple[float, ...], metres: float | None, bearing: float | None) -> None:
    assert evaluate(DISTANCE, [place(*degrees)]) == near([metres], rel=1e-7)
    assert evaluate(BEARING, [place(*degrees)]) == near([bearing], rel=1e-5)


def test_degrees_may_be_integers_and_constants() -> None:
    rows: list[dict[str, Any]] = [{"degrees": 45}, {"degrees": -91}, {"degrees": None}, {"degrees": 2**62}]
    got = evaluate(great_circle_m(report.degrees, 0, 0, 0.0), rows)
    assert got == [pytest.approx(math.pi / 4 * EARTH_RADIUS_M, rel=1e-15), None, None, None]


@pytest.mark.parametrize(
    ("start", "end", "turn"),
    [
        (350.0, 10.0, 20.0),
        (10.0, 350.0, -20.0),
        (0.0, 180.0, 180.0),
        (180.0, 0.0, 180.0),
        (0.0, -180.0, 180.0),
        (90.0, 90.0, 0.0),
        (0.0, 720.5, 0.5),
        (-170.0, 170.0, -20.0),
        (0.1, 0.3, 0.3 - 0.1),
        (0.0, 1e300, None),
        (None, 1.0, None),
    ],
)
def test_turns(start: float | None, end: float | None, turn: float | None) -> None:
    assert evaluate(turn_deg(report.lat, report.lon), [{"lat": start, "lon": end}]) == [turn]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000)), min_size=1))
def test_a_turn_leads_from_start_to_end(pairs: list[tuple[float, float]]) -> None:
    rows = [{"lat": start, "lon": end} for start, end in pairs]
    for (start, end), turn in zip(pairs, evaluate(turn_deg(report.lat, report.lon), rows), strict=True):
        assert -180.0 < turn <= 180.0
        assert abs((start + turn - end + 180.0) % 360.0 - 180.0) < 1e-9


def test_what_cannot_be_a_place_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"great_circle_m got the string .*, wanted degrees as int64 or float64"):
        great_circle_m(report.vessel, report.lon, 0, 0)
    with pytest.raises(DefinitionError, match=r"bearing_deg got the timestamp"):
        bearing_deg(0, 0, report.at, 0)
    with pytest.raises(DefinitionError, match=r"turn_deg got the bool"):
        turn_deg(report.lat > 0, 0)
    with pytest.raises(DefinitionError, match=r"a position got the string"):
        distance_from_last_m(report.lat, report.vessel, by=by_vessel, over="1h")
    with pytest.raises(DefinitionError, match=r"aggregates take row-level inputs only"):
        mean(distance_from_last_m(report.lat, report.lon, by=by_vessel, over="1h"), by=by_vessel, over="1h")


# -- from the position before --------------------------------------------------------------------------------
#
#   minute   0      1        2          3         4        4        10
#   a        0,0    lat null lat 91     0,1       0,1      0,1      1,1
#   b               5,5


def history() -> pa.Table:
    reports = [
        (0, "a", 0.0, 0.0),
        (1, "a", None, 0.5),
        (1, "b", 5.0, 5.0),
        (2, "a", 91.0, 0.5),
        (3, "a", 0.0, 1.0),
        (4, "a", 0.0, 1.0),
        (4, "a", 0.0, 1.0),
        (10, "a", 1.0, 1.0),
    ]
    minutes, vessels, latitudes, longitudes = zip(*reports, strict=True)
    return pa.table(
        {
            "event_type": ["report"] * len(reports),
            "event_id": [str(i) for i in range(len(reports))],
            "event_time": pa.array([minute * 60_000_000 for minute in minutes], pa.timestamp("us", tz="UTC")),
            "report.vessel": vessels,
            "report.lat": latitudes,
            "report.lon": longitudes,
        }
    )


def test_distance_speed_and_course_since_the_last_known_position() -> None:
    options: dict[str, Any] = {"by": by_vessel, "over": "5m"}
    app = app_of(
        distance=distance_from_last_m(report.lat, report.lon, **options),
        speed=speed_from_last_m_s(report.lat, report.lon, **options),
        course=bearing_from_last_deg(report.lat, report.lon, **options),
        eastern=distance_from_last_m(report.lat, report.lon, by=by_vessel, over="1h", where=report.lon > 0.9),
    )
    rows = {row["event_id"]: row for row in compute(app, history()).to_pylist()}
    degree = math.radians(1) * EARTH_RADIUS_M
    assert [rows[i]["distance"] for i in "01234567"] == near(
        [None, None, None, None, degree, 0.0, 0.0, None], rel=1e-14
    )
    # The two of minute 4 are ordered by identity: the second of them is 0 s after the first, and has no speed.
    speeds = [rows[i]["speed"] for i in "0123467"]
    assert speeds[:5] == near([None, None, None, None, degree / 180], rel=1e-14)
    assert sorted([str(rows["5"]["speed"]), str(rows["6"]["speed"])]) == ["0.0", "None"]
    assert [rows[i]["course"] for i in "01234567"] == [None, None, None, None, 90.0, None, None, None]
    assert [rows[i]["eastern"] for i in "01234567"] == near([None, None, None, None, None, 0.0, 0.0, degree], rel=1e-14)


def test_definitions_are_canonical() -> None:
    assert great_circle_m(1, 2, 3, report.lat).key == great_circle_m(1, 2, 3, report.lat).key
    assert DISTANCE.key != BEARING.key
    assert [part.dtype for part in DISTANCE.walk()] == ["float64"] * 5


def test_a_large_block_has_the_bits_of_its_rows() -> None:
    raw = np.random.PCG64(3).random_raw(4 * 5_000).reshape(4, -1) >> np.uint64(11)
    scaled = raw.astype(np.float64) * 2.0**-53
    rows = [place(*one) for one in (scaled.T * [180, 360, 180, 360] - [90, 180, 90, 180]).tolist()]
    for expression in (DISTANCE, BEARING, turn_deg(report.lon, report.lon_2)):
        assert None not in evaluate(expression, rows)
