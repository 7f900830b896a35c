"""How far the shore is: where the raster beside this file comes from.

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python -m apps.vessels.shore package/land-10m.json

Natural Earth's land at 1:10 million (public domain), as the npm package world-atlas has it. Every quarter of a degree
stands the distance to the nearest coastline in whole kilometres, negative on land. Between them it is interpolated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.vessels.world.places import EARTH_RADIUS_KM
from shared_features import Raster

SHORE = Path(__file__).parent / "shore.parquet"
DEGREES = 0.25
_STEP_KM = 1.0
_SEAM_DEGREES = 1e-3
_ASIDE = 1e-6
"""Degrees: a meridian through no end of an edge."""

Floats = npt.NDArray[np.float64]


def coast_edges(topology: dict[str, Any]) -> tuple[Floats, Floats]:
    """Both ends of every edge of the land, (longitude, latitude), shape [edges, 2] each; of a TopoJSON file."""
    scale, origin = (np.array(topology["transform"][name]) for name in ("scale", "translate"))
    used = sorted({arc if arc >= 0 else ~arc for arc in _flat(topology["objects"]["land"]["geometries"])})
    arcs = [np.cumsum(np.array(topology["arcs"][number]), axis=0) * scale + origin for number in used]
    begin, end = (np.concatenate([arc[part] for arc in arcs]) for part in (slice(None, -1), slice(1, None)))
    end[:, 0] = begin[:, 0] + (end[:, 0] - begin[:, 0] + 180) % 360 - 180  # the short way across the antimeridian
    return begin, end


def _flat(nested: Any) -> list[int]:
    if isinstance(nested, int):
        return [nested]
    parts = (one["arcs"] if isinstance(one, dict) else one for one in nested)
    return [number for part in parts for number in _flat(part)]


def shore_km(begin: Floats, end: Floats, longitude: Floats, latitude: Floats) -> Floats:
    """Kilometres from positions to the nearest of some edges, great circles."""
    from sklearn.neighbors import KDTree

    sides = np.abs(np.abs(np.stack([begin[:, 0], end[:, 0]])) - 180).max(axis=0) < _SEAM_DEGREES
    seam = sides | (np.minimum(begin[:, 1], end[:, 1]) < -89.9)  # where a map ends there is no coast
    begin, end = begin[~seam], end[~seam]
    length_km = np.linalg.norm(_directions(*begin.T) - _directions(*end.T), axis=1) * EARTH_RADIUS_KM
    count = np.maximum(np.ceil(length_km / _STEP_KM), 1).astype(np.int64)
    edge = np.repeat(np.arange(len(count)), count)
    share = ((np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)) / count[edge])[:, None]
    places = begin[edge] * (1 - share) + end[edge] * share
    chord, _ = KDTree(_directions(*places.T)).query(_directions(longitude, latitude))
    found: Floats = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord[:, 0] / 2, 1.0))
    return found


def on_land(begin: Floats, end: Floats, longitude: float, latitudes: Floats) -> npt.NDArray[np.bool_]:
    """Whether places on a meridian are on land: the South Pole is, and each edge on the way from there changes it."""
    step = (end[:, 0] - begin[:, 0] + 180) % 360 - 180
    west, east = np.where(step[:, None] >= 0, begin, end), np.where(step[:, None] >= 0, end, begin)
    width, away = np.abs(step), (longitude - west[:, 0]) % 360
    rows = away < width  # an edge has its western end only
    crossings = west[rows, 1] + away[rows] / width[rows] * (east[rows, 1] - west[rows, 1])
    found: npt.NDArray[np.bool_] = np.searchsorted(np.sort(crossings), latitudes, side="right") % 2 == 0
    return found


def _directions(longitude: Floats, latitude: Floats) -> Floats:
    north, east = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def make_raster(topology: dict[str, Any], degrees: float = DEGREES) -> Raster:
    """Kilometres to the shore, negative on land, every so many degrees."""
    begin, end = coast_edges(topology)
    latitudes = np.linspace(90, -90, round(180 / degrees) + 1)
    longitudes = np.linspace(-180, 180, round(360 / degrees), endpoint=False)
    away_km = shore_km(begin, end, *(one.ravel() for one in np.meshgrid(longitudes, latitudes)))
    land = np.array([on_land(begin, end, longitude + _ASIDE, latitudes) for longitude in longitudes.tolist()]).T
    return Raster(np.rint(np.where(land, -1, 1) * away_km.reshape(land.shape)).astype(np.int16))


if __name__ == "__main__":
    make_raster(json.loads(Path(sys.argv[1]).read_text())).write(SHORE)
