"""The map of the demo: which fields are a vessel's place, what to draw below, and a picture of the fishing effort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from apps.vessels.areas import EXAMPLES, read_areas
from apps.vessels.effort import fishing_hours, on_grid

PAGE = Path(__file__).parent / "map"
"""Static files of the page, index.html among them."""

KEY, LATITUDE, LONGITUDE = "vessel", "latitude", "longitude"
"""Fields of the event predicted on."""

GRID_DEGREES = 1.0


def shapes() -> dict[str, Any]:
    """What is drawn below the vessels, as GeoJSON: the protected areas."""
    areas = read_areas()
    features = [
        {
            "type": "Feature",
            "properties": {"name": name},
            "geometry": {"type": "Polygon", "coordinates": [[[east, north] for north, east in ring] for ring in rings]},
        }
        for name, rings in areas.outlines
    ]
    return {"type": "FeatureCollection", "features": features, "examples": areas.digest == read_areas(EXAMPLES).digest}


def picture(positions: pa.Table, path: Path) -> dict[str, Any]:
    """Draw the hours of fishing on a grid of the world, as PNG.

    Args:
        positions: ``key``, ``time_us``, ``latitude``, ``longitude`` and ``probability``; nulls allowed.
        path: of the picture.

    Returns:
        ``hours`` of fishing, and the number of grid ``cells`` that have any.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    hours = fishing_hours(positions)
    grid = on_grid(positions, hours, GRID_DEGREES)
    figure, axes = pyplot.subplots(figsize=(14, 7), layout="constrained")
    for line in _coast():
        axes.plot(line[:, 0], line[:, 1], color="#8aa0a8", linewidth=0.5)
    found = axes.scatter(
        grid["longitude"], grid["latitude"], c=np.asarray(grid["hours"]), s=9, marker="s", cmap="inferno_r", norm="log"
    )
    if grid.num_rows:
        label = f"hours of fishing in a cell of {GRID_DEGREES:g}°"
        figure.colorbar(found, ax=axes, label=label, shrink=0.8, format="%g")
    axes.set(xlim=(-180, 180), ylim=(-70, 82), xlabel="degrees east", ylabel="degrees north")
    ends = pc.min_max(positions["time_us"].cast(pa.timestamp("us"))).as_py()
    since, until = (f"{ends[name]:%d %b %Y, %H:%M}" for name in ("min", "max")) if positions.num_rows else ("", "")
    axes.set_title(
        f"SIMULATED vessels, {since} to {until} UTC: {sum(hours):,.0f} hours of fishing predicted. Land: Natural Earth"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return {"hours": round(float(sum(hours)), 3), "cells": grid.num_rows}


def _coast() -> list[np.ndarray]:
    """Coastlines as (longitude, latitude), shape [points, 2] each, cut where they jump from edge to edge."""
    land = json.loads((PAGE / "vendor" / "land-110m.json").read_text())
    scale, origin = land["transform"]["scale"], land["transform"]["translate"]
    lines = [np.cumsum(np.array(arc), axis=0) * scale + origin for arc in land["arcs"]]
    return [part for line in lines for part in np.split(line, np.flatnonzero(np.abs(np.diff(line[:, 0])) > 90) + 1)]
