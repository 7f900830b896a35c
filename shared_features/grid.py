"""Cells of the H3 grid: a name for the neighbourhood of a position.

H3 (Uber, https://h3geo.org) divides the globe into hexagons, of 0 (the largest, 1,100 km wide edges) to 15 (0.5 m). The
cells come from its own library, `h3`, which is loaded where a definition uses it; the version of its C core is part
of the fingerprint, because another version may draw other borders.

The one reservation to promise C3: the library computes with the mathematics of the platform, whose last bit is not
the same on every machine. A position within some 10 nanometres of the border of two cells can fall to the one side
here and to the other there: one random position of 10^11 at resolution 7, of 10^8 at resolution 15. Inside a cell, and
that is everywhere else, the answer is the same everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.columns import Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression, literal
from shared_features.geo import require_degrees, valid_together

FINEST = 15


@cache
def _library() -> Any:
    """The `h3` module with cells as integers; 70 ms at its first use."""
    import h3  # type: ignore[import-untyped]
    from h3.api import basic_int  # type: ignore[import-untyped]

    return basic_int, str(h3.versions()["c"])


def library_version() -> str:
    """Version of H3's C core, for the fingerprint."""
    version: str = _library()[1]
    return version


class GridCell(Expression):
    """Cell of a position, as H3's hexadecimal text."""

    dtype = "string"

    def __init__(self, latitude: Expression, longitude: Expression, resolution: int) -> None:
        self.latitude, self.longitude, self.resolution = latitude, longitude, resolution
        self.definition = ["grid_cell", latitude.definition, longitude.definition, resolution]
        require_degrees("grid_cell", latitude, longitude)
        if type(resolution) is not int or not 0 <= resolution <= FINEST:
            raise DefinitionError(f"grid_cell got the resolution {resolution!r}, wanted a whole number from 0 to 15")
        _library()  # not while the first event waits

    def parts(self) -> tuple[Expression, ...]:
        return (self.latitude, self.longitude)

    def evaluate(self, of: Evaluator) -> Column:
        latitude, longitude = of.column(self.latitude), of.column(self.longitude)
        # Adding 0 makes −0 the 0 that it equals, and 180 west is 180 east: one place, one question.
        north = latitude.values.astype(np.float64) + 0.0
        east = longitude.values.astype(np.float64) + 0.0
        east[east == -180.0] = 180.0
        valid = valid_together([latitude, longitude]) & (np.abs(north) <= 90.0) & (np.abs(east) <= 180.0)
        cell_of, resolution = _library()[0].latlng_to_cell, self.resolution
        known: dict[tuple[float, float], str] = {}
        cells: list[str | None] = []
        for place, is_valid in zip(zip(north.tolist(), east.tolist(), strict=True), valid.tolist(), strict=True):
            if not is_valid:
                cells.append(None)
                continue
            cell = known.get(place)
            if cell is None:
                cell = known[place] = f"{cell_of(*place, resolution):x}"
            cells.append(cell)
        return Column(pa.array(cells, pa.string()), valid)


def grid_cell(latitude: Any, longitude: Any, resolution: int) -> Expression:
    """The H3 cell that a position lies in, as a string such as ``"872a100d6ffffff"``.

    Use it as a category, or hash it into buckets. Null where a coordinate is null or out of range. About 2 µs a row,
    0.3 µs where positions repeat within the block.

    Args:
        latitude: degrees north, −90 to 90; an expression or a number.
        longitude: degrees east, −180 to 180; an expression or a number.
        resolution: 0 to 15. The edge of a cell is about 60 km at 3, 8.5 km at 5, 1.2 km at 7, 170 m at 9.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64, or the resolution is none.
    """
    return GridCell(literal(latitude), literal(longitude), resolution)
