"""Whether positions lie in areas, and in which: edges, holes, any polygon, what is no area."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_features import Areas, area_of, inside
from shared_features.errors import DefinitionError
from tests.positions import evaluate, report

HERE = report.lat, report.lon

SQUARE = [(0.0, 0.0), (0.0, 10.0), (10.0, 10.0), (10.0, 0.0), (0.0, 0.0)]
HOLE = [(4.0, 4.0), (4.0, 6.0), (6.0, 6.0), (6.0, 4.0), (4.0, 4.0)]


def at(*places: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    """Reports from (latitude, longitude) each."""
    return [{"lat": latitude, "lon": longitude} for latitude, longitude in places]


def test_holes_and_edges_and_what_is_no_place() -> None:
    areas = Areas([("with a hole", [SQUARE, HOLE])])
    rows = at(
        (1.0, 1.0), (5.0, 5.0), (5.0, 11.0), (5.0, 0.0), (5.0, 10.0), (0.0, 5.0), (10.0, 5.0), (5.0, None), (91.0, 5.0)
    )
    expected = [True, False, False, True, False, True, False, None, None]
    assert evaluate(inside(*HERE, areas), rows) == expected


def test_the_first_of_several_areas_has_a_name() -> None:
    areas = Areas([("hole", [HOLE]), ("square", [SQUARE]), ("square", [[(a + 20, b) for a, b in SQUARE]])])
    rows = at((5.0, 5.0), (1.0, 1.0), (25.0, 5.0), (-1.0, 1.0), (None, 1.0))
    assert evaluate(area_of(*HERE, areas), rows) == ["hole", "square", "square", "", None]
    assert evaluate(area_of(*HERE, Areas([])), rows[:1]) == [""]


CORNERS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=8, unique=True)


@given(
    st.lists(CORNERS, max_size=4), st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=20)
)
def test_any_polygons_as_by_crossings(polygons: list[list[tuple[int, int]]], places: list[tuple[float, float]]) -> None:
    rings = [[(float(y), float(x)) for y, x in [*corners, corners[0]]] for corners in polygons]
    found = Areas([(str(number), [ring]) for number, ring in enumerate(rings)]).first(*np.array(places).T)
    for (latitude, longitude), number in zip(places, found.tolist(), strict=True):
        inside_of = [at for at, ring in enumerate(rings) if _crossings(ring, latitude, longitude) % 2]
        assert number == (inside_of[0] if inside_of else -1)


def _crossings(ring: Sequence[tuple[float, float]], latitude: float, longitude: float) -> int:
    """By how many edges a ray to the east is crossed."""
    count = 0
    for one, other in pairwise(ring):
        (south, west), (north, east) = sorted((one, other), key=lambda place: place[0])
        count += south <= latitude < north and longitude < west + (latitude - south) * ((east - west) / (north - south))
    return count


@pytest.mark.parametrize(
    ("rings", "said"),
    [
        ([], "'bay' has no outline"),
        ([SQUARE[:-1]], "'bay' has a ring that is not closed"),
        ([[(0, 0), (0, 1), (91, 0), (0, 0)]], "'bay' has a place out of range"),
        ([[(0, 0), (0, 1), (float("nan"), 0), (0, 0)]], "'bay' has a place out of range"),
        ([[(0, 9), (0, -179), (1, 9), (0, 9)]], "'bay' crosses the antimeridian"),
    ],
)
def test_what_is_no_area(rings: list[list[tuple[float, float]]], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        Areas([("bay", rings)])


def test_another_outline_is_another_definition() -> None:
    one, same, other = (Areas([("bay", [ring])]) for ring in (SQUARE, SQUARE, HOLE))
    assert inside(1.0, 2.0, one).key == inside(1.0, 2.0, same).key != inside(1.0, 2.0, other).key
    with pytest.raises(DefinitionError, match="wanted degrees"):
        inside("north", 2.0, one)
