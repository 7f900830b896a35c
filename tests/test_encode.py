"""Events to messages: round trips in both encodings, and the refusals that a publisher meets at once."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features.decode import encode_event, rows_to_messages
from shared_features.errors import EventError
from tests.sample_events import AT_US, DECODER, EVENTS, GOOD, SCHEMAS, Message, datetimes, departed, exactly, only


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.sampled_from(["json", "avro"])), max_size=12))
def test_decode_undoes_encode(
    events: list[tuple[tuple[str, dict[str, Any]], Literal["json", "avro"]]],
) -> None:
    messages, wanted = [], []
    for number, ((event_type, event), encoding) in enumerate(events):
        event = datetimes(event_type, event)
        attributes = {"event_type": event_type, "encoding": encoding}
        data = encode_event(SCHEMAS[event_type], event, encoding)
        messages.append(Message(data, attributes, f"m{number}"))
        row: dict[str, Any] = dict.fromkeys(DECODER.schema.names)
        row["event_type"], row["event_id"] = event_type, event.get("flight") or f"m{number}"
        row["event_time"], row["message_id"] = event["at"], f"m{number}"
        row["publish_time"] = datetime.fromtimestamp(AT_US // 1_000_000 + 1, UTC)
        row.update((f"{event_type}.{k}", v) for k, v in event.items() if k not in ("flight", "at"))
        wanted.append(row)
    decoded = DECODER.decode(messages)
    assert decoded.rejected == []
    assert decoded.block.schema.equals(DECODER.schema)
    assert exactly(decoded.block.to_pylist()) == exactly(wanted)
    decoded.block.validate(full=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(EVENTS, max_size=12), st.sampled_from(["json", "avro"]))
def test_history_rows_survive_their_messages(
    events: list[tuple[str, dict[str, Any]]],
    encoding: Literal["json", "avro"],
) -> None:
    block = DECODER.decode(
        [
            Message(encode_event(SCHEMAS[t], datetimes(t, e)), {"event_type": t}, f"m{number}")
            for number, (t, e) in enumerate(events)
        ]
    ).block
    messages = rows_to_messages(block, SCHEMAS, encoding)
    again = DECODER.decode(
        [Message(data, attributes, f"m{number}") for number, (data, attributes) in enumerate(messages)]
    )
    assert again.rejected == []
    assert again.block.equals(block)
    if block.num_rows:
        assert rows_to_messages(block.slice(1), SCHEMAS, encoding) == messages[1:]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"distance": None}, "missing_field"),
        ({"delay": float("nan")}, "not_finite"),
        ({"delay": "late"}, "wrong_type"),
        ({"cabin": "FIRST"}, "out_of_range"),
        ({"at": "1960-01-01T00:00:00Z"}, "timestamp_out_of_range"),
        ({"at": datetime(2013, 11, 1)}, "wrong_type"),  # noqa: DTZ001 - no zone is what is refused
        ({"weight": 3.3}, "out_of_range"),
        ({"planned": "2013-11-01T05:00:00.000001Z"}, "out_of_range"),
    ],
)
@pytest.mark.parametrize("encoding", ["json", "avro"])
def test_encode_refuses_what_decode_would(
    change: dict[str, Any], reason: str, encoding: Literal["json", "avro"]
) -> None:
    with pytest.raises(EventError) as caught:
        encode_event(SCHEMAS["departed"], {**GOOD, **change}, encoding)
    assert caught.value.reason == reason


def test_encode_takes_numpy_scalars_and_any_zone() -> None:
    eastern = datetime(2013, 11, 1, 1, tzinfo=timezone(timedelta(hours=-4)))
    event = {**GOOD, "delay": np.float64(3), "distance": np.int64(500), "heavy": np.True_, "at": eastern}
    plain = only(departed(delay=3.0))
    assert only(Message(encode_event(SCHEMAS["departed"], event))) == plain
    with pytest.raises(EventError, match="must be json or avro"):
        encode_event(SCHEMAS["departed"], GOOD, "xml")  # type: ignore[arg-type]


def test_rows_of_an_unknown_type_are_told() -> None:
    block = DECODER.decode([departed()]).block
    with pytest.raises(EventError, match="unknown_event_type"):
        rows_to_messages(block, {"noted": SCHEMAS["noted"]})


def test_the_avro_datum_is_the_one_of_the_specification() -> None:
    """Avro 1.11, binary encoding: zigzag varint, then a little-endian double."""
    datum = encode_event(SCHEMAS["arrived"], {"flight": None, "at": 64, "delay": 1.5}, "avro")
    assert datum == b"\x00" + b"\x80\x01" + struct.pack("<d", 1.5)
