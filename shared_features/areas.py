"""Areas on the map: whether a position lies in one of them, and in which.

A ray from the position to the east crosses an odd number of edges of an area that the position is in. Edges are
straight in degrees, as those of GeoJSON are (RFC 7946), and none crosses the antimeridian. Of most areas only the box
around them is compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared_features.columns import Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression, literal
from shared_features.geo import read_only_degrees, require_degrees, valid_together
from shared_features.hashing import hash128_hex
from shared_features.machine_code import kept

Ring = Sequence[tuple[float, float]]
"""Places (latitude, longitude) in degrees, the first one again at the end."""

_ROOM_DEGREES: Final = 1e-9
"""Where an edge is at some latitude is rounded, by far less than this."""


class Areas:
    """Named areas, each of rings: outlines, and holes in them.

    Args:
        areas: name and rings of each.

    Attributes:
        outlines: these.
        names: of the areas, strings.
        digest: hexadecimal; areas of the same names and edges have the same one.

    Raises:
        DefinitionError: a ring is not closed, out of range or crosses the antimeridian.
    """

    def __init__(self, areas: Sequence[tuple[str, Sequence[Ring]]]) -> None:
        self.outlines = areas
        edges: list[tuple[float, float, float, float]] = []
        boxes, ends = np.empty((len(areas), 4)), np.empty(len(areas), np.int64)
        for number, (name, rings) in enumerate(areas):
            if not rings:
                raise DefinitionError(f"area {name!r} has no outline")
            places = np.concatenate([_ring(name, ring) for ring in rings])
            (south, west), (north, east) = places.min(axis=0), places.max(axis=0)
            boxes[number] = south, north, west - _ROOM_DEGREES, east + _ROOM_DEGREES
            edges += [edge for ring in rings for edge in _edges(ring)]
            ends[number] = len(edges)
        names = [name for name, _ in areas]
        self.names = pa.array(names, pa.string())
        self.digest = hash128_hex(*(name.encode() for name in names), ends.tobytes(), np.array(edges).tobytes())
        self._edges, self._ends, self._boxes = np.array(edges, np.float64).reshape(-1, 4), ends, boxes

    def __len__(self) -> int:
        return len(self.names)

    def first(self, latitude: npt.NDArray[Any], longitude: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Number of the first area that each position is in, −1 for none; int64, shape [rows].

        Args:
            latitude, longitude: degrees, shape [rows]; out of range or NaN is in none.
        """
        found = np.empty(len(latitude), np.int64)
        position = read_only_degrees(latitude), read_only_degrees(longitude)
        _first(*position, self._edges, self._ends, self._boxes, found)
        return found


def _ring(name: str, ring: Ring) -> npt.NDArray[np.float64]:
    places = np.array([tuple(place) for place in ring], np.float64).reshape(-1, 2)
    if len(places) < 4 or (places[0] != places[-1]).any():
        raise DefinitionError(f"area {name!r} has a ring that is not closed: its first place must be its last one, too")
    if not (np.abs(places) <= (90.0, 180.0)).all():
        raise DefinitionError(f"area {name!r} has a place out of range, wanted (latitude, longitude) in degrees")
    if (np.abs(np.diff(places[:, 1])) >= 180).any():
        raise DefinitionError(f"area {name!r} crosses the antimeridian: cut it there")
    return places


def _edges(ring: Ring) -> list[tuple[float, float, float, float]]:
    """Of each edge that is not level: its latitudes, its longitude in the south, and degrees east for one north."""
    found = []
    for one, other in itertools.pairwise(ring):
        (south, west), (north, east) = sorted((one, other), key=lambda place: place[0])
        if south != north:
            found.append((south, north, west, (east - west) / (north - south)))
    return found


_DOUBLES: Final = "Array(float64, 1, 'C', readonly=True)"


@kept(f"void({_DOUBLES}, {_DOUBLES}, float64[:, ::1], int64[::1], float64[:, ::1], int64[::1])")
def _first(latitudes, longitudes, edges, ends, boxes, found):  # type: ignore[no-untyped-def]
    for i in range(len(found)):
        latitude, longitude = latitudes[i], longitudes[i]
        found[i] = -1
        for area in range(len(ends)):
            if not (boxes[area, 0] <= latitude < boxes[area, 1] and boxes[area, 2] <= longitude <= boxes[area, 3]):
                continue
            is_in = False
            for edge in range(ends[area - 1] if area else 0, ends[area]):
                south, north, west, slope = edges[edge, 0], edges[edge, 1], edges[edge, 2], edges[edge, 3]
                if south <= latitude < north and longitude < west + (latitude - south) * slope:
                    is_in = not is_in
            if is_in:
                found[i] = area
                break


class AreaNumber(Expression):
    """Number of the first of some areas that a position is in, −1 for none, int64."""

    dtype = "int64"

    def __init__(self, latitude: Expression, longitude: Expression, areas: Areas) -> None:
        self.latitude, self.longitude, self.areas = latitude, longitude, areas
        self.definition = ["area_number", latitude.definition, longitude.definition, areas.digest]
        require_degrees("inside", latitude, longitude)

    def parts(self) -> tuple[Expression, ...]:
        return (self.latitude, self.longitude)

    def evaluate(self, of: Evaluator) -> Column:
        columns = [of.column(part) for part in self.parts()]
        north, east = (column.values for column in columns)
        in_range = (np.abs(north) <= 90.0) & (np.abs(east) <= 180.0)
        return Column(self.areas.first(north, east), valid_together(columns) & in_range)


class AreaName(Expression):
    """The name of an area by its number, "" for −1."""

    dtype = "string"

    def __init__(self, number: AreaNumber) -> None:
        self.number = number
        self.definition = ["area_name", number.definition]
        self._names = pa.concat_arrays([pa.array([""], pa.string()), number.areas.names])

    def parts(self) -> tuple[Expression, ...]:
        return (self.number,)

    def evaluate(self, of: Evaluator) -> Column:
        number = of.column(self.number)
        return Column(self._names.take(pa.array(number.values + 1)), number.valid)


def _number(latitude: Any, longitude: Any, areas: Areas) -> AreaNumber:
    return AreaNumber(literal(latitude), literal(longitude), areas)


def inside(latitude: Any, longitude: Any, areas: Areas) -> Expression:
    """Whether a position lies in one of some areas, holes left out, bool; null if a coordinate is out of range.

    A position on a western or southern edge is inside, on an eastern or northern one outside. The areas are part of
    the definition: where a feature is made of it, other areas are another feature.

    Args:
        latitude: degrees north, −90 to 90; an expression or a number.
        longitude: degrees east, −180 to 180; an expression or a number.
        areas: which ones.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64.
    """
    return _number(latitude, longitude, areas) >= 0


def area_of(latitude: Any, longitude: Any, areas: Areas) -> Expression:
    """Name of the first of some areas that a position lies in, string, "" for none; otherwise as `inside`.

    Raises:
        DefinitionError: a coordinate is neither int64 nor float64.
    """
    return AreaName(_number(latitude, longitude, areas))
