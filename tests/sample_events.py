"""Events of every kind of field, for the tests of decoding and encoding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from shared_features.decode import Decoder
from shared_features.schema import EventSchema

_FOLDER = Path(__file__).parent / "sample_schemas"

SCHEMAS = {
    "departed": EventSchema("departed", _FOLDER / "departed.avsc", time="at", id="flight"),
    "arrived": EventSchema("arrived", _FOLDER / "arrived.avsc", time="at", id="flight"),
    "noted": EventSchema("noted", _FOLDER / "noted.avsc", time="at"),
}
DECODER = Decoder(SCHEMAS)

AT_US = 1_383_282_000_000_000
GOOD: dict[str, Any] = {
    "flight": "UA1",
    "at": AT_US,
    "distance": 500,
    "weight": 1.5,
    "heavy": True,
    "cabin": "ECONOMY",
}


@dataclass(frozen=True, slots=True)
class Message:
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=lambda: {"event_type": "departed"})
    message_id: str = "m1"
    publish_time_us: int = AT_US + 1_000_000


def departed(**changes: Any) -> Message:
    return Message(json.dumps({**GOOD, **changes}).encode())


def only(message: Message, decoder: Decoder = DECODER) -> dict[str, Any]:
    decoded = decoder.decode([message])
    assert decoded.rejected == []
    (row,) = decoded.block.to_pylist()
    return dict(row)


def instants(unit: int) -> st.SearchStrategy[int]:
    return st.integers(0, AT_US // unit).map(lambda t: t * unit)


TEXT = st.text(max_size=8)
EVENTS = st.one_of(
    st.tuples(
        st.just("departed"),
        st.fixed_dictionaries(
            {
                "flight": st.text(min_size=1, max_size=20),
                "at": instants(1),
                "delay": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                "seats": st.none() | st.integers(-(2**31), 2**31 - 1),
                "distance": st.integers(-(2**63), 2**63 - 1),
                "weight": st.floats(allow_nan=False, allow_infinity=False, width=32),
                "heavy": st.booleans(),
                "tail": st.none() | TEXT,
                "cabin": st.sampled_from(["ECONOMY", "BUSINESS"]),
                "old_cabin": st.none() | st.sampled_from(["ECONOMY", "BUSINESS"]),
                "planned": st.none() | instants(1000),
            }
        ),
    ),
    st.tuples(
        st.just("arrived"),
        st.fixed_dictionaries(
            {
                "flight": st.none() | st.text(min_size=1, max_size=20),
                "at": instants(1000),
                "delay": st.floats(allow_nan=False, allow_infinity=False),
            }
        ),
    ),
    st.tuples(st.just("noted"), st.fixed_dictionaries({"at": instants(1)})),
)


def datetimes(event_type: str, event: dict[str, Any]) -> dict[str, Any]:
    return {
        name: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=value)
        if name in ("at", "planned") and value is not None
        else value
        for name, value in event.items()
    }


def exactly(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which -0.0 differs from 0.0."""
    return [{k: v.hex() if isinstance(v, float) else v for k, v in row.items()} for row in rows]
