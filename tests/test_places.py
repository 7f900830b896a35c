"""The nearest of some places, and values of a raster: exact, the same in any blocks, and part of the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numba
import numpy as np
import pytest
from hypothesis import given, settings

from shared_features import Raster, nearest_m
from shared_features.errors import ConfigurationError, DefinitionError
from shared_features.geo import scalar_great_circle_m
from shared_features.nearest import Places
from tests.positions import app_of, evaluate, report

HERE = report.lat, report.lon
LATITUDES, LONGITUDES = st.floats(-90, 90), st.floats(-180, 180)
EDGES = st.sampled_from([(90.0, 0.0), (-90.0, 7.0), (0.0, 180.0), (0.0, -180.0), (2.0, 4.0), (-2.0, 179.999999)])
ANYWHERE = st.one_of(st.tuples(LATITUDES, LONGITUDES), EDGES)


@numba.njit
def metres_between(*corners):  # type: ignore[no-untyped-def]
    return scalar_great_circle_m(*corners)


@settings(max_examples=40)
@given(places=st.lists(ANYWHERE, min_size=1, max_size=30), here=st.lists(ANYWHERE, min_size=1, max_size=6))
def test_the_nearest_is_that_of_comparing_all_to_the_bit(places: list[Any], here: list[Any]) -> None:
    rows = [dict(zip(("lat", "lon"), place, strict=True)) for place in here]
    every = np.array([[metres_between(*one, *place) for one in here] for place in places])
    assert evaluate(nearest_m(*HERE, places), rows) == every.min(axis=0).tolist()
    _, which = Places(places).nearest(*np.array(here).T)
    assert which.tolist() == every.argmin(axis=0).tolist()  # of equals the first


def test_what_is_no_place_is_missing() -> None:
    rows: list[dict[str, Any]] = [
        {"lat": 91.0, "lon": 0.0},
        {"lat": 0.0, "lon": 180.5},
        {"lat": None, "lon": 0.0},
        {"lat": 0.0, "lon": None},
    ]
    assert evaluate(nearest_m(*HERE, [(0, 0)]), rows) == [None] * 4
    assert evaluate(SLOPE.at(*HERE), rows) == [None] * 4
    for wrong in ([], [(91.0, 0.0)], [(0.0, float("nan"))]):
        with pytest.raises(DefinitionError, match=r"wanted \(latitude, longitude\) in degrees of one or more"):
            nearest_m(*HERE, wrong)


#             180 W    90 W      0     90 E    (180 W)
#  90 N          0       0       0       0
#   0           10      20      30      40      10
#  90 S       -100    -100    -100    -100
SLOPE = Raster(np.array([[0] * 4, [10, 20, 30, 40], [-100] * 4]), scale=0.5)


def test_between_its_places_a_raster_is_interpolated() -> None:
    places = [(0, 0), (0, -180), (0, 180), (90, 33), (-90, 33), (0, -45), (0, 135), (45, 0), (-45, 90), (45, -135)]
    rows = [{"lat": float(lat), "lon": float(lon)} for lat, lon in places]
    wanted = [15.0, 5.0, 5.0, 0.0, -50.0, 12.5, 12.5, 7.5, -15.0, 3.75]
    assert evaluate(SLOPE.at(*HERE), rows) == wanted


def test_a_raster_comes_back_from_its_file_and_other_values_are_another_feature(tmp_path: Path) -> None:
    path = tmp_path / "slope.parquet"
    SLOPE.write(path)
    read = Raster.read(path)
    assert (read.digest, read.scale) == (SLOPE.digest, SLOPE.scale)
    assert (read.values == SLOPE.values).all()
    other = Raster(np.where(SLOPE.values == 40, 41, SLOPE.values), SLOPE.scale)
    apps = [app_of(value=one.at(*HERE)) for one in (SLOPE, read, other)]
    assert apps[0].fingerprint == apps[1].fingerprint != apps[2].fingerprint
    nearest = [app_of(value=nearest_m(*HERE, places)) for places in ([(1, 2)], [(1, 2), (3, 4)])]
    assert nearest[0].fingerprint != nearest[1].fingerprint


def test_what_is_no_raster_is_said(tmp_path: Path) -> None:
    path = tmp_path / "no.parquet"
    with pytest.raises(ConfigurationError, match=r"cannot be read \(FileNotFoundError"):
        Raster.read(path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ConfigurationError, match="wanted Parquet as `Raster"):
        Raster.read(path)
    with pytest.raises(ConfigurationError, match="wanted rows and columns, 2 or more"):
        Raster(np.zeros((1, 4), np.int16))
    with pytest.raises(DefinitionError, match="wanted degrees"):
        SLOPE.at(report.zone, 1.0)
