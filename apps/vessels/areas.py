"""Protected areas, from GeoJSON. They decide reactions only and are no feature: other areas need no other model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_features import Areas
from shared_features.errors import ConfigurationError, DefinitionError

VARIABLE = "SAMERIVER_PROTECTED_AREAS"
"""Environment variable with the path of a GeoJSON file; without it the examples beside this file are used."""

EXAMPLES = Path(__file__).parent / "areas.geojson"
MOST_EDGES = 100_000
"""An event in an area's box costs a nanosecond for each of its edges."""

Rings = list[list[tuple[float, float]]]
"""Closed rings of (latitude, longitude), outer ones and holes alike."""


def read_areas(path: Path | None = None) -> Areas:
    """The areas of a GeoJSON file: a FeatureCollection of Polygons and MultiPolygons (RFC 7946) with ``name``.

    One without a name is called by its number in the file.

    Args:
        path: of the file; None takes the one that the environment names, or else the examples.

    Raises:
        ConfigurationError: it cannot be read, or is something else.
    """
    path = path or Path(os.environ.get(VARIABLE) or EXAMPLES)
    areas: list[tuple[str, Rings]] = []
    try:
        collection = json.loads(path.read_text(encoding="utf-8-sig"))
        for number, feature in enumerate(collection["features"], 1):
            name = str((feature.get("properties") or {}).get("name") or f"area {number}")
            areas.append((name, _rings(number, feature["geometry"])))
        read = Areas(areas)
    except DefinitionError as error:
        raise ConfigurationError(f"protected areas {path} cannot be used: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"protected areas {path} cannot be read ({type(error).__name__}: {error}): wanted a GeoJSON "
            "FeatureCollection of Polygons or MultiPolygons"
        ) from None
    edges = sum(len(ring) - 1 for _, rings in areas for ring in rings)
    if edges > MOST_EDGES:
        raise ConfigurationError(
            f"protected areas {path} have {edges:,} edges, wanted at most {MOST_EDGES:,}: simplify their outlines"
        )
    return read


def _rings(number: int, shape: dict[str, Any]) -> Rings:
    if shape["type"] not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"feature {number} is a {shape['type']}")
    polygons: Sequence[Any] = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
    return [[(float(place[1]), float(place[0])) for place in ring] for polygon in polygons for ring in polygon]
