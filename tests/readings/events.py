"""The event types of the kernel's tests, and blocks made of plain rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

import shared_features as sf
from shared_features.app import App
from shared_features.blocks import block_schema

SECOND = 1_000_000
START_US = 1_700_000_000 * SECOND

reading = sf.EventType("reading", "schemas/reading.avsc", time="at")
note = sf.EventType("note", "schemas/note.avsc", time="at")
EVENT_TYPES = [reading, note]
SCHEMA = block_schema(EVENT_TYPES)

by_station = sf.Key("station", reading.station, note.station)
by_sensor = sf.Key("sensor", reading.sensor)


def make_block(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows in fold order as a block.

    Args:
        rows: ``type`` (``reading`` unless given), ``id``, ``t`` (event time in microseconds after `START_US`), and
            the fields of the type; what is absent is null.
    """
    flat = []
    for row in rows:
        event_type = row.get("type", "reading")
        flat.append(
            {f"{event_type}.{name}": value for name, value in row.items() if name not in ("type", "id", "t")}
            | {"event_type": event_type, "event_id": row["id"], "event_time": START_US + row["t"]}
        )
    return pa.RecordBatch.from_pylist(flat, schema=SCHEMA)


def column_block(times_us: np.ndarray, **columns: Any) -> pa.RecordBatch:
    """Many readings at once: event times in microseconds after `START_US`, and columns, or one value for all rows."""
    rows = len(times_us)
    given: dict[str, Any] = {
        "event_type": ["reading"] * rows,
        "event_id": [f"e{i * 7919 % 1_000_003}" for i in range(rows)],
        "event_time": START_US + times_us.astype(np.int64),
    }
    for name, values in columns.items():
        given[f"reading.{name}"] = [values] * rows if isinstance(values, str | int | float) else values
    arrays = [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(rows, f.type) for f in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def make_app(features: Mapping[str, Any], lateness: str = "24h") -> App:
    """An app of these features, which predicts on readings."""
    return App("readings", predict_on=reading, features=features, event_types=EVENT_TYPES, lateness=lateness)
