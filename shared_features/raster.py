"""Values on a grid of the whole globe, such as a depth or a distance from the shore, looked up at a position.

A raster is a Parquet file with one column ``value``: whole numbers of 16 bits, row by row from north to south. The
first row is at 90° north, the last at 90° south; the first column is at 180° west, and the one after the last is the
first again. The file's metadata ``raster`` says ``{"rows": 721, "columns": 1440, "scale": 1.0}``.

Between its four neighbours a position is interpolated linearly, in plain + − ×, so the bits are the same on every CPU
(contract C3). A hash of the values is part of the definition, so of the fingerprint: other data are another feature.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.columns import Column, Evaluator
from shared_features.errors import ConfigurationError
from shared_features.expressions import Expression, literal
from shared_features.geo import is_place, read_only_degrees, require_degrees, valid_together
from shared_features.machine_code import kept

METADATA = b"raster"
_DOUBLES = "Array(float64, 1, 'C', readonly=True)"


class Raster:
    """A grid of the globe.

    Args:
        values: int16, shape [rows, columns], from the north pole to the south pole and from 180° west eastwards.
        scale: what one step of the values means.

    Attributes:
        digest: BLAKE2b-128 of shape and values, as hexadecimal digits.
    """

    def __init__(self, values: npt.NDArray[np.int16], scale: float = 1.0) -> None:
        self.values, self.scale = np.ascontiguousarray(values, np.int16), float(scale)
        if self.values.ndim != 2 or min(self.values.shape) < 2:
            raise ConfigurationError(f"a raster got values of shape {values.shape}, wanted rows and columns, 2 or more")
        told = f"{self.values.shape} ".encode() + self.values.astype("<i2").tobytes()
        self.digest = hashlib.blake2b(told, digest_size=16).hexdigest()

    @classmethod
    def read(cls, path: Path) -> Raster:
        """The raster in a file.

        Raises:
            ConfigurationError: there is none.
        """
        try:
            table = pq.read_table(path)
            told = json.loads(table.schema.metadata[METADATA])
            values = table["value"].to_numpy().reshape(told["rows"], told["columns"])
            return cls(values, told["scale"])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"raster {path} cannot be read ({type(error).__name__}: {error}): wanted Parquet as "
                "`Raster.write` makes it"
            ) from None

    def write(self, path: Path) -> None:
        """Write it as a file; the same values give the same bytes."""
        rows, columns = self.values.shape
        told = json.dumps({"rows": rows, "columns": columns, "scale": self.scale})
        schema = pa.schema([("value", pa.int16())], {METADATA: told})
        table = pa.table([pa.array(self.values.ravel())], schema=schema)
        packed: dict[str, Any] = {"compression": "zstd", "compression_level": 19, "write_statistics": False}
        pq.write_table(table, path, use_dictionary=False, column_encoding="DELTA_BINARY_PACKED", **packed)

    def at(self, latitude: Any, longitude: Any) -> Expression:
        """The value at a position, float64; null where a coordinate is null or out of range.

        Args:
            latitude: degrees north, −90 to 90; an expression or a number.
            longitude: degrees east, −180 to 180; an expression or a number.

        Raises:
            DefinitionError: a coordinate is neither int64 nor float64.
        """
        return RasterValue(self, literal(latitude), literal(longitude))


class RasterValue(Expression):
    """Value of a raster at a position."""

    dtype = "float64"

    def __init__(self, raster: Raster, latitude: Expression, longitude: Expression) -> None:
        self.raster, self.latitude, self.longitude = raster, latitude, longitude
        self.definition = ["raster", raster.digest, raster.scale, latitude.definition, longitude.definition]
        require_degrees("a raster", latitude, longitude)

    def parts(self) -> tuple[Expression, ...]:
        return (self.latitude, self.longitude)

    def evaluate(self, of: Evaluator) -> Column:
        columns = [of.column(part) for part in self.parts()]
        found = np.empty(len(columns[0].valid))
        places = (read_only_degrees(column.values) for column in columns)
        _look_up(self.raster.values, self.raster.scale, *places, found)
        return Column(found, valid_together(columns) & np.isfinite(found))


@kept(f"void(int16[:, ::1], float64, {_DOUBLES}, {_DOUBLES}, float64[::1])")
def _look_up(values, scale, latitudes, longitudes, found):  # type: ignore[no-untyped-def]
    rows, columns = values.shape
    for i in range(len(found)):
        if not is_place(latitudes[i], longitudes[i]):
            found[i] = np.nan
            continue
        y = (90.0 - latitudes[i]) * ((rows - 1) / 180.0)
        x = (longitudes[i] + 180.0) * (columns / 360.0)
        row, column = min(int(y), rows - 2), int(x)
        south, east = y - row, x - column
        column, next_column = column % columns, (column + 1) % columns
        west_value, east_value = float(values[row, column]), float(values[row, next_column])
        upper = west_value + (east_value - west_value) * east
        west_value, east_value = float(values[row + 1, column]), float(values[row + 1, next_column])
        lower = west_value + (east_value - west_value) * east
        found[i] = (upper + (lower - upper) * south) * scale
