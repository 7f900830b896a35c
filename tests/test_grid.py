"""Grid cells: known cells, golden cells, missing and impossible positions, the version in the fingerprint."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import h3  # type: ignore[import-untyped]
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from shared_features import grid_cell, last
from shared_features.errors import DefinitionError
from shared_features.fingerprint import definitions
from tests.positions import PLACES, app_of, by_vessel, evaluate, in_range, report
from tests.repository import ROOT


def test_known_cells() -> None:
    """The example of H3's own documentation, and its parents."""
    rows: list[dict[str, Any]] = [{"lat": 37.3615593, "lon": -122.0553238}]
    assert evaluate(grid_cell(report.lat, report.lon, 5), rows) == ["85283473fffffff"]
    assert evaluate(grid_cell(report.lat, report.lon, 0), rows) == ["8029fffffffffff"]
    assert evaluate(grid_cell(37.3615593, -122.0553238, 7), rows) == ["87283472bffffff"]


def test_the_cells_of_a_thousand_positions_are_those_of_every_other_machine() -> None:
    raw = np.random.PCG64(5).random_raw(2_000).reshape(2, -1) >> np.uint64(11)
    lat, lon = raw.astype(np.float64) * 2.0**-53 * [[180.0], [360.0]] - [[90.0], [180.0]]
    rows = [{"lat": a, "lon": b} for a, b in zip(lat.tolist(), lon.tolist(), strict=True)]
    cells = [
        cell for resolution in (3, 7, 12) for cell in evaluate(grid_cell(report.lat, report.lon, resolution), rows)
    ]
    assert hashlib.blake2b("".join(cells).encode(), digest_size=8).hexdigest() == "a502e2da83d0f887"


@settings(max_examples=100)
@given(rows=st.lists(PLACES, min_size=1, max_size=8), resolution=st.integers(0, 15))
def test_cells_are_those_of_the_library(rows: list[dict[str, Any]], resolution: int) -> None:
    for row, cell in zip(rows, evaluate(grid_cell(report.lat, report.lon, resolution), rows), strict=True):
        known = in_range(row["lat"], row["lon"])
        assert (cell is not None) is known
        if known:
            east = 180.0 if row["lon"] == -180.0 else row["lon"]
            assert cell == h3.latlng_to_cell(row["lat"] + 0.0, east + 0.0, resolution)


def test_one_place_is_one_cell() -> None:
    rows = [
        {"lat": 10.0, "lon": 180.0},
        {"lat": 10.0, "lon": -180.0},
        {"lat": 0.0, "lon": 0.0},
        {"lat": -0.0, "lon": -0.0},
    ]
    east, west, plus, minus = evaluate(grid_cell(report.lat, report.lon, 15), rows)
    assert (east, plus) == (west, minus)


def test_what_is_no_position_or_resolution_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"grid_cell got the string"):
        grid_cell(report.vessel, report.lon, 5)
    for resolution in (16, -1, True, 5.0, "5"):
        with pytest.raises(DefinitionError, match=r"grid_cell got the resolution .*, wanted a whole number from 0"):
            grid_cell(report.lat, report.lon, resolution)  # type: ignore[arg-type]


def test_the_version_of_the_grid_is_in_the_fingerprint_of_those_who_use_it() -> None:
    cell = grid_cell(report.lat, report.lon, 5)
    assert definitions(app_of(cell=cell))["grid_version"] == h3.versions()["c"]
    before = last(report.lat, by=by_vessel, over="1h", where=cell == "85283473fffffff")
    assert "grid_version" in definitions(app_of(before=before))
    assert "grid_version" not in definitions(app_of(lat=report.lat))


def test_who_uses_no_cells_does_not_load_the_library() -> None:
    code = "import shared_features, sys; sys.exit('h3' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
