"""The distance from the shore: what the bundled raster says of known places, and how it is made."""

from __future__ import annotations

import numpy as np
import pytest

from apps.vessels.shore import SHORE, make_raster
from shared_features import Raster
from tests.positions import evaluate, report

PLACES = {
    "Point Nemo, the place farthest from land": ((-48.877, -123.393), 2_688),
    "Dzungaria, as far from the sea as one can be": ((46.283, 86.667), -2_400),
    "Bern": ((46.95, 7.45), -298),
    "North Sea between Aberdeen and Stavanger": ((58.0, 2.0), 230),
    "South Atlantic between Ascension and Saint Helena": ((-12.0, -10.1), 635),
    "Fiji's antimeridian": ((-16.5, 180.0), 0),
    "South Pole": ((-90.0, 0.0), -500),
    "Ross Ice Shelf's end": ((-86.0, 170.0), -205),
    "Chukotka, west of the antimeridian": ((67.0, 179.0), -101),
    "Chukotka, on the parallel where its coast crosses the antimeridian": ((65.25, 105.0), -850),
}


def test_known_places() -> None:
    rows = [{"lat": latitude, "lon": longitude} for (latitude, longitude), _ in PLACES.values()]
    found = evaluate(Raster.read(SHORE).at(report.lat, report.lon), rows)
    assert found == [pytest.approx(wanted, abs=15, rel=0.12) for _, wanted in PLACES.values()]


def test_it_is_made_of_coastlines() -> None:
    # Islands around 0° N, 0° E and on the antimeridian, cut there as maps do (a seam is no coast), and Antarctica.
    square = [[80, 80], [20, 0], [0, 20], [-20, 0], [0, -20]]
    east, west = ([[column, 80], [10, 0], [0, 20], [-10, 0], [0, -20]] for column in (260, -90))
    south = [[-90, 10], *[[90, 0]] * 4]
    arcs = [[[x - 90, y - 90], *rest] for (x, y), *rest in (square, east, west, south)]
    topology = {
        "transform": {"scale": [1, 1], "translate": [0, 0]},
        "arcs": arcs,
        "objects": {"land": {"geometries": [{"type": "MultiPolygon", "arcs": [[[0]], [[1]], [[2]], [[3]]]}]}},
    }
    made = make_raster(topology, degrees=5.0)
    at = evaluate(made.at(report.lat, report.lon), [{"lat": 0.0, "lon": x} for x in (0.0, 5.0, 30.0, 175.0, -180.0)])
    degree = 6371.0088 * np.pi / 180
    assert at == [pytest.approx(degrees * degree, abs=8) for degrees in (-10, -5, 20, -5, -10)]
