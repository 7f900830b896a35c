"""Messages to blocks: strictness, limits, and that a bad message never touches its neighbours."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features.decode import REASONS, Decoder, Rejected, encode_event
from shared_features.json_columns import json_column
from shared_features.schema import TIMESTAMP, FieldType
from shared_features.validate import END_TIME_US, Faults, check_column
from tests.sample_events import AT_US, DECODER, GOOD, SCHEMAS, Message, departed, only


def refused(message: Message) -> Rejected:
    """The one rejection; the accepted message beside it must be the row that it is alone."""
    good = departed()
    decoded = DECODER.decode([good, message, good])
    (rejected,) = decoded.rejected
    assert rejected.index == 1
    assert decoded.rows.tolist() == [0, 2]
    assert decoded.block.equals(DECODER.decode([good, good]).block)
    assert rejected.reason in REASONS
    assert rejected.detail.endswith(".")
    assert "\n" not in rejected.detail
    return rejected


@pytest.mark.parametrize(
    ("name", "plain", "wrapped"),
    [
        ("delay", 3.0, {"double": 3.0}),
        ("delay", 3, {"double": 3}),
        ("seats", 100, {"int": 100}),
        ("tail", "N1", {"string": "N1"}),
        ("old_cabin", "BUSINESS", {"Cabin": "BUSINESS"}),
        ("planned", AT_US // 1000, {"long": AT_US // 1000}),
        ("planned", "2013-11-01T05:00:00Z", {"long": "2013-11-01T05:00:00Z"}),
    ],
)
def test_optional_values_may_be_plain_or_avro_json(name: str, plain: Any, wrapped: Any) -> None:
    row = only(departed(**{name: plain}))
    assert row == only(departed(**{name: wrapped}))
    assert row[f"departed.{name}"] is not None


@pytest.mark.parametrize(
    "text",
    [
        "2013-11-01T05:00:00Z",
        "2013-11-01T05:00:00.000000Z",
        "2013-11-01T05:00:00.000000999Z",
        "2013-11-01 05:00:00+00:00",
        "2013-11-01T05:00:00-00:00",
        "2013-11-01T01:00:00-0400",
        "2013-11-01T10:30:00+05:30",
        "2013-10-31T23:00:00.0-06:00",
    ],
)
def test_timestamps_may_be_text_with_a_zone(text: str) -> None:
    assert only(departed(at=text)) == only(departed(at=AT_US))


def test_absent_and_null_are_null_and_foreign_fields_are_ignored() -> None:
    bare = only(departed())
    assert bare["departed.delay"] is None
    assert only(departed(delay=None, tail=None, later={"deep": [1]})) == bare
    assert only(Message(b' {"at": 1, "at": 2} ', {"event_type": "noted"}))["event_time"] == (
        datetime.fromtimestamp(0, UTC) + timedelta(microseconds=2)
    )


def test_identity_is_the_field_then_the_attribute_then_the_message_id() -> None:
    at = {"at": AT_US // 1000, "delay": 1.0}

    def event_id(event: dict[str, Any], **attributes: str) -> Any:
        data = json.dumps({**at, **event}).encode()
        return only(Message(data, {"event_type": "arrived", **attributes}))["event_id"]

    assert event_id({"flight": "UA1"}, event_id="other") == "UA1"
    assert event_id({}, event_id="other") == event_id({"flight": None}, event_id="other") == "other"
    assert event_id({}, event_id="") == event_id({}) == "m1"
    assert only(Message(b'{"at": 1}', {"event_type": "noted", "event_id": "n"}))["event_id"] == "n"


def test_one_event_type_and_json_are_the_defaults() -> None:
    decoder = Decoder({"noted": SCHEMAS["noted"]})
    assert only(Message(b'{"at": 1}', {}), decoder)["event_type"] == "noted"
    datum = encode_event(SCHEMAS["noted"], {"at": 1}, "avro")
    for attributes in ({"encoding": "avro"}, {"googclient_schemaencoding": "BINARY"}):
        assert only(Message(datum, attributes), decoder) == only(Message(b'{"at": 1}', {}), decoder)
    assert only(Message(b'{"at": 1}', {"googclient_schemaencoding": "JSON"}), decoder)


def test_an_unknown_publish_time_is_null_and_allows_any_event_time() -> None:
    row = only(Message(json.dumps(GOOD).encode(), publish_time_us=0))
    assert row["publish_time"] is None


def test_no_messages_give_an_empty_block() -> None:
    decoded = DECODER.decode([])
    assert (decoded.block.num_rows, len(decoded.rows), decoded.rejected) == (0, 0, [])
    assert decoded.block.schema.equals(DECODER.schema)


def nested(levels: int) -> Message:
    return Message(json.dumps(GOOD).encode()[:-1] + b',"x":' + b"[" * levels + b"]" * levels + b"}")


BAD: list[tuple[str, Message]] = [
    ("malformed_json", Message(b"")),
    ("malformed_json", Message(b"{")),
    ("malformed_json", Message(b"\xff\xfe")),
    ("malformed_json", Message(b'{"flight": "\\ud800"}')),
    ("malformed_json", Message(json.dumps(GOOD).encode() + b" x")),
    ("malformed_json", Message(json.dumps(GOOD).encode() * 2)),
    ("malformed_json", Message(json.dumps(GOOD).encode() + b"," + json.dumps(GOOD).encode())),
    ("malformed_json", nested(64)),
    ("malformed_json", nested(400_000)),
    ("malformed_json", Message(b"9" * 10_000 + b"x")),
    ("wrong_type", Message(b"[]")),
    ("wrong_type", Message(b"null")),
    ("wrong_type", Message(b'"departed"')),
    ("malformed_avro", Message(b"", {"event_type": "departed", "encoding": "avro"})),
    ("malformed_avro", Message(b"\x01\x01", {"event_type": "noted", "encoding": "avro"})),
    ("malformed_avro", Message(b"\xff" * 20, {"event_type": "departed", "encoding": "avro"})),
    ("unknown_event_type", Message(b"{}", {})),
    ("unknown_event_type", Message(b"{}", {"event_type": "landed"})),
    ("unknown_encoding", Message(b"{}", {"event_type": "departed", "encoding": "protobuf"})),
    ("unknown_encoding", Message(b"{}", {"event_type": "departed", "googclient_schemaencoding": "XML"})),
    ("missing_field", Message(b"{}")),
    ("missing_field", departed(distance=None)),
    ("missing_field", departed(flight=None)),
    ("missing_field", departed(at=None)),
    ("wrong_type", departed(distance=True)),
    ("wrong_type", departed(distance=3.0)),
    ("wrong_type", departed(distance="3")),
    ("wrong_type", departed(distance={"long": 3})),
    ("wrong_type", departed(delay="3.0")),
    ("wrong_type", departed(delay=True)),
    ("wrong_type", departed(delay={"float": 3.0})),
    ("wrong_type", departed(delay={"double": None})),
    ("wrong_type", departed(delay={"double": 3.0, "long": 3})),
    ("wrong_type", departed(delay=[3.0])),
    ("wrong_type", departed(heavy=1)),
    ("wrong_type", departed(tail=5)),
    ("wrong_type", departed(flight=5)),
    ("wrong_type", departed(at=True)),
    ("wrong_type", departed(at=1.5)),
    ("wrong_type", departed(at="2013-11-01T05:00:00")),
    ("wrong_type", departed(at="2013-11-01")),
    ("wrong_type", departed(at="2013-02-30T05:00:00Z")),
    ("wrong_type", departed(at="2013-11-01T05:00Z")),
    ("wrong_type", departed(at="yesterday")),
    ("not_finite", departed(delay=float("nan"))),
    ("not_finite", departed(delay=float("inf"))),
    ("not_finite", Message(json.dumps(GOOD).encode()[:-1] + b',"delay": 1e999}')),
    ("out_of_range", departed(distance=2**63)),
    ("out_of_range", departed(distance=-(2**64) - 1)),
    ("out_of_range", departed(seats=2**31)),
    ("out_of_range", departed(cabin="FIRST")),
    ("out_of_range", departed(old_cabin="")),
    ("out_of_range", departed(flight="é" * 513)),
    ("timestamp_out_of_range", departed(at=-1)),
    ("timestamp_out_of_range", departed(at=END_TIME_US)),
    ("timestamp_out_of_range", departed(at=10**30)),
    ("timestamp_out_of_range", departed(at="1969-12-31T23:59:59Z")),
    ("timestamp_out_of_range", departed(planned=2**62)),
    ("timestamp_out_of_range", departed(planned="2101-01-01T00:00:00Z")),
    ("in_the_future", departed(at=AT_US + 601_000_001)),
    ("missing_event_id", departed(flight="")),
    ("missing_event_id", Message(b'{"at": 1}', {"event_type": "noted"}, message_id="")),
    ("oversized", Message(b" " * (1 << 20) + b"x")),
]


@pytest.mark.parametrize(("reason", "message"), BAD, ids=[f"{n}-{r}" for n, (r, _) in enumerate(BAD)])
def test_each_fault_has_its_reason_and_touches_no_neighbour(reason: str, message: Message) -> None:
    assert refused(message).reason == reason


def test_every_reason_is_triggered() -> None:
    assert {reason for reason, _ in BAD} == set(REASONS)


def test_the_edges_are_inside() -> None:
    only(departed(at=0))
    only(departed(at=AT_US + 601_000_000))
    only(departed(planned="2100-12-31T23:59:59.999999Z"))
    only(departed(flight="é" * 512))
    only(nested(63))
    only(departed(tail="[[{{" * 100, delay={"double": 1.0}))
    assert only(departed(delay=2**63))["departed.delay"] == 2.0**63


def test_limits_are_settings() -> None:
    strict = Decoder(SCHEMAS, max_event_bytes=50, max_future_s=0, max_depth=1)
    small = Message(b'{"at": 1}', {"event_type": "noted"}, publish_time_us=1)
    assert strict.decode([small]).rejected == []
    assert refused_alone(strict, Message(b'{"at": 1, "x": []}', {"event_type": "noted"})) == "malformed_json"
    assert refused_alone(strict, departed()) == "oversized"
    late = Message(b'{"at": 2}', {"event_type": "noted"}, publish_time_us=1)
    assert refused_alone(strict, late) == "in_the_future"


def refused_alone(decoder: Decoder, message: Message) -> str:
    (rejected,) = decoder.decode([message]).rejected
    return rejected.reason


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["json", "avro"]), st.sampled_from(["departed", "noted"]))
def test_garbage_never_raises(data: bytes, encoding: str, event_type: str) -> None:
    decoded = DECODER.decode([Message(data, {"event_type": event_type, "encoding": encoding})])
    assert decoded.block.num_rows + len(decoded.rejected) == 1


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["json", "avro"]))
def test_damaged_events_never_raise_and_touch_no_neighbour(
    data: st.DataObject,
    encoding: Literal["json", "avro"],
) -> None:
    attributes = {"event_type": "departed", "encoding": encoding}
    good = encode_event(SCHEMAS["departed"], GOOD, encoding)
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(bad[: data.draw(st.integers(0, len(bad)))])
    neighbour = Message(good, attributes)
    alone = DECODER.decode([neighbour]).block
    decoded = DECODER.decode([neighbour, Message(cut, attributes), neighbour])
    assert decoded.block.slice(0, 1).equals(alone)
    assert decoded.block.slice(decoded.block.num_rows - 1).equals(alone)
    assert decoded.block.num_rows + len(decoded.rejected) == 3


JSON_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["2013-11-01T05:00:00Z", "2013-11-01T05:00:00.1234567+02:00", "2013-13-01T05:00:00Z"])
    | st.text(max_size=3)
    | st.fixed_dictionaries({"long": st.integers(-3, 3)})
    | st.fixed_dictionaries({"double": st.floats(-3, 3)})
    | st.lists(st.integers(), max_size=1)
)


@settings(max_examples=500, deadline=None)
@given(st.lists(JSON_VALUES, min_size=1, max_size=6), st.booleans(), st.data())
def test_a_value_means_the_same_alone_and_beside_others(values: list[Any], nullable: bool, data: st.DataObject) -> None:
    avro, arrow = data.draw(
        st.sampled_from(
            [
                ("long", pa.int64()),
                ("double", pa.float64()),
                ("boolean", pa.bool_()),
                ("string", pa.string()),
                ("timestamp-micros", TIMESTAMP),
                ("timestamp-millis", TIMESTAMP),
            ]
        )
    )
    branch = ("long",) if avro.startswith("timestamp") else (avro,)
    kind = FieldType("x", arrow, nullable, avro=avro, branch=branch)
    together, expected = Faults(), {}
    column = json_column(values, kind, "t.x", together)
    check_column(column, kind, "t.x", together)
    assert column.type == arrow
    for row, value in enumerate(values):
        faults = Faults()
        alone = json_column([value], kind, "t.x", faults)
        check_column(alone, kind, "t.x", faults)
        if faults.by_row:
            expected[row] = faults.by_row[0]
        else:
            assert alone.equals(column.slice(row, 1))
    assert together.by_row == expected
