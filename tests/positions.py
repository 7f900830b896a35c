"""Reports of vessels, and what an expression over them gives: as one block and cut into pieces, which must agree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa

from shared_features import App, EventType, Key
from shared_features.blocks import block_schema
from shared_features.columns import Evaluator
from shared_features.expressions import Expression


def _event_type() -> EventType:
    fields: list[dict[str, Any]] = [
        {"name": "event_id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "vessel", "type": ["null", "string"]},
        {"name": "degrees", "type": ["null", "long"]},
        {"name": "zone", "type": ["null", "string"]},
    ]
    fields += [{"name": name, "type": ["null", "double"]} for name in ("lat", "lon", "lat_2", "lon_2")]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.avsc"
        path.write_text(json.dumps({"type": "record", "name": "Report", "fields": fields}))
        return EventType("report", path, time="at")


report = _event_type()
by_vessel = Key("vessel", report.vessel)

LATITUDES = st.one_of(st.floats(-90, 90), st.sampled_from([90.0, -90.0, 0.0, -0.0, 91.0, -90.00001, 45.0]), st.none())
LONGITUDES = st.one_of(st.floats(-180, 180), st.sampled_from([180.0, -180.0, 0.0, -0.0, 181.0, 90.0]), st.none())
PLACES = st.fixed_dictionaries({"lat": LATITUDES, "lon": LONGITUDES, "lat_2": LATITUDES, "lon_2": LONGITUDES})


def app_of(**features: Expression) -> App:
    """An app with these features of `report`."""
    return App(name="vessels", event_types=[report], predict_on=report, features=features, lateness="1h")


def evaluate(expression: Expression, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The expression over the rows; asserts that blocks of one and of three rows give the same bits."""
    filled = [
        {"event_type": "report", "event_id": str(i), "event_time": row.get("at", 0)}
        | {f"report.{name}": value for name, value in row.items()}
        for i, row in enumerate(rows)
    ]
    block = pa.RecordBatch.from_pylist(filled, schema=block_schema([report]))
    whole = Evaluator(block).array(expression)
    whole.validate(full=True)
    for size in (1, 3):
        cut = [Evaluator(block.slice(i, size)).array(expression) for i in range(0, len(rows), size)]
        assert _bits([one for piece in cut for one in piece.to_pylist()]) == _bits(whole.to_pylist())
    result: list[Any] = whole.to_pylist()
    return result


def _bits(values: Sequence[Any]) -> list[Any]:
    return [one.hex() if isinstance(one, float) else one for one in values]


def in_range(*place: float | None) -> bool:
    """Whether latitude, longitude and so on in turn are all there and in range."""
    return all(one is not None and abs(one) <= (90, 180)[i % 2] for i, one in enumerate(place))


def direction(latitude: float, longitude: float) -> tuple[float, float, float]:
    """The place as a unit vector, by the platform's own mathematics."""
    north, east = math.radians(latitude), math.radians(longitude)
    return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)
