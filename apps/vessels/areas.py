"""Protected areas: polygons from GeoJSON, and the condition that a position lies in one of them.

The condition is made of ordinary expressions, an edge of a polygon at a time, so it is computed live and in batch by
the one engine and gives the same bits. It decides reactions only and is no feature: other areas need no other model.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_features import where
from shared_features.errors import ConfigurationError
from shared_features.expressions import Expression, Literal

VARIABLE = "SAMERIVER_PROTECTED_AREAS"
"""Environment variable with the path of a GeoJSON file; without it the examples beside this file are used."""

EXAMPLES = Path(__file__).parent / "areas.geojson"
MOST_EDGES = 500
"""Each edge costs every event some arithmetic: simplify outlines that have more."""

Ring = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Area:
    """A protected area.

    Attributes:
        name: of the area.
        rings: closed rings of (longitude, latitude), outer ones and holes alike.
    """

    name: str
    rings: tuple[Ring, ...]


def read_areas(path: Path | None = None) -> list[Area]:
    """The areas of a GeoJSON file: a FeatureCollection of Polygons and MultiPolygons (RFC 7946) with ``name``.

    Args:
        path: of the file; None takes the one that the environment names, or else the examples.

    Raises:
        ConfigurationError: it cannot be read, or is something else.
    """
    path = path or Path(os.environ.get(VARIABLE) or EXAMPLES)
    try:
        collection = json.loads(path.read_text(encoding="utf-8"))
        areas = [_area(number, feature) for number, feature in enumerate(collection["features"], 1)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"protected areas {path} cannot be read ({type(error).__name__}: {error}): wanted a GeoJSON "
            "FeatureCollection of Polygons or MultiPolygons"
        ) from None
    edges = sum(len(ring) - 1 for area in areas for ring in area.rings)
    if edges > MOST_EDGES:
        raise ConfigurationError(
            f"protected areas {path} have {edges:,} edges, wanted at most {MOST_EDGES:,}: simplify their outlines"
        )
    return areas


def _area(number: int, feature: dict[str, Any]) -> Area:
    shape = feature["geometry"]
    if shape["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"feature {number} is a {shape['type']}")
    polygons = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    rings = tuple(_ring(number, ring) for polygon in polygons for ring in polygon)
    return Area(str((feature.get("properties") or {}).get("name") or f"area {number}"), rings)


def _ring(number: int, points: Sequence[Sequence[float]]) -> Ring:
    ring = tuple((float(point[0]), float(point[1])) for point in points)
    if len(ring) < 4 or ring[0] != ring[-1]:
        raise ValueError(f"feature {number} has a ring that is not closed")
    if any(abs(a[0] - b[0]) >= 180 for a, b in itertools.pairwise(ring)):
        raise ValueError(f"feature {number} crosses the antimeridian: cut it there")
    return ring


def inside(area: Area, latitude: Expression, longitude: Expression) -> Expression:
    """Whether a position lies in an area, holes left out; null where that is not known, for want of a coordinate.

    A ray from the position to the east crosses an odd number of edges. Edges are straight in degrees (RFC 7946). A
    position on a western or southern edge is inside, on an eastern or northern one outside.
    """
    edges = [edge for ring in area.rings for edge in itertools.pairwise(ring) if edge[0][1] != edge[1][1]]
    crossings = _sum([_crosses(*edge, latitude, longitude) * 1 for edge in edges])
    return crossings - 2 * (crossings / 2).floor() == 1


def _crosses(
    one: tuple[float, float], other: tuple[float, float], latitude: Expression, longitude: Expression
) -> Expression:
    """Whether the ray to the east crosses the edge between two places; an edge has its southern end only."""
    (west, south), (east, north) = sorted((one, other), key=lambda place: place[1])
    at_latitude = west + (latitude - south) * ((east - west) / (north - south))
    return (latitude >= south) & (latitude < north) & (longitude < at_latitude)


def _sum(parts: Sequence[Expression]) -> Expression:
    """The sum as a tree of little depth: each level is a call."""
    if len(parts) == 1:
        return parts[0]
    return _sum(parts[: len(parts) // 2]) + _sum(parts[len(parts) // 2 :])


def inside_any(areas: Sequence[Area], latitude: Expression, longitude: Expression) -> Expression:
    """Whether a position lies in one of the areas; null where that is not known."""
    found: Expression = Literal(False)
    for number, area in enumerate(areas):
        found = found | inside(area, latitude, longitude) if number else inside(area, latitude, longitude)
    return found


def area_of(areas: Sequence[Area], latitude: Expression, longitude: Expression) -> Expression:
    """Name of the first area that a position lies in, "" for none; null where a coordinate is null."""
    name: Any = Literal("")
    for area in reversed(areas):
        name = where(inside(area, latitude, longitude), area.name, name)
    found: Expression = name
    return found
