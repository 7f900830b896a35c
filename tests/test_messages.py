"""Outgoing messages: they follow their schemas, survive the round trip, and docs/messages.md tells the truth."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features import load_app
from shared_features.app import App
from shared_features.blocks import append_columns
from shared_features.decode import Decoder, encode_event
from shared_features.hashing import prediction_id, reaction_id
from shared_features.schema import ENVELOPE, EventSchema
from streaming.dead_letters import MAX_PART_BYTES, REASONS, DeadLetter, read_dead_letters
from streaming.messages import (
    PREDICTION,
    REACTION,
    message_schema,
    plain,
    prediction_ids,
    prediction_messages,
    reaction_messages,
)
from streaming.topics import OutgoingMessage

DOC = Path(__file__).parents[1] / "docs" / "messages.md"
AT_US = 1_357_035_420_000_000
FINGERPRINT = "3f9a1c5e7b2d4860" * 4


@dataclass(frozen=True, slots=True)
class Message:
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    message_id: str = "4711"
    publish_time_us: int = AT_US + 1_000_000
    ordering_key: str = ""


@pytest.fixture(scope="module")
def flights() -> App:
    return load_app("flights")


def examples(*info: str) -> list[str]:
    """The fenced blocks of the document whose first line is exactly ``info``."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = [text for head, text in blocks if head == " ".join(info)]
    assert found, info
    return found


def read(name: str, data: bytes) -> dict[str, Any]:
    """A message as another Avro implementation reads its JSON; also that nothing in it is unknown to the schema."""
    schema = fastavro.parse_schema(message_schema(name))
    (record,) = fastavro.json_reader(StringIO(json.dumps(json.loads(data))), schema)
    assert isinstance(record, dict)
    assert list(record) == list(json.loads(data)) == [each["name"] for each in message_schema(name)["fields"]]
    assert fastavro.validate(record, schema)
    return record


def block(count: int, **columns: pa.Array) -> pa.RecordBatch:
    envelope = [
        pa.repeat("departed", count),
        pa.array([f"UA{number}" for number in range(count)]),
        pa.array([AT_US + number for number in range(count)]).view(ENVELOPE[2].type),
        pa.array([AT_US + 5 if number % 2 == 0 else None for number in range(count)]).view(ENVELOPE[3].type),
        pa.nulls(count, pa.string()),
    ]
    base = pa.RecordBatch.from_arrays(envelope, schema=pa.schema(list(ENVELOPE)))
    return append_columns(base, {name.replace("__", "."): values for name, values in columns.items()})


def test_a_prediction_follows_its_schema() -> None:
    rows = block(
        2,
        prediction__wide__probability=pa.array([0.25, 1.0]),
        prediction__wide__score=pa.array([-1.0, 1e300]),
        prediction__other__probability=pa.array([0.0, 0.0]),
        stage__origin__late=pa.array([False, None]),
        stage__plane__late=pa.array([None, True]),
        feature__delay=pa.array([3.0, None]),
        feature__hour=pa.array([5, None], pa.int64()),
        feature__origin=pa.array([None, "JFK"]),
        feature__night=pa.array([True, False]),
    )
    keys = {"origin": pa.array(["JFK", None]), "route": pa.array([7, 8])}
    ids = prediction_ids(rows, app="flights", fingerprint=FINGERPRINT, model="wide", model_version=3)
    assert ids.to_pylist() == [prediction_id("flights", "departed", f"UA{n}", "wide", 3, FINGERPRINT) for n in range(2)]
    messages = prediction_messages(
        rows,
        ids,
        app="flights",
        fingerprint=FINGERPRINT,
        keys=keys,
        model="wide",
        model_version=3,
        reactions={"rebook": pa.array([True, False]), "warn": pa.array([True, True])},
        with_features=True,
    )
    first, second = (read("prediction", message.data) for message in messages)
    assert first["outputs"] == {"probability": 0.25, "score": -1.0}
    assert (first["key"], second["key"]) == ({"origin": "JFK", "route": "7"}, {"route": "8"})
    assert (first["late"], second["late"]) == (False, True)
    assert (first["reactions"], second["reactions"]) == (["rebook", "warn"], ["warn"])
    assert first["features"] == {"delay": 3.0, "hour": 5, "origin": None, "night": True}
    assert second["features"] == {"delay": None, "hour": None, "origin": "JFK", "night": False}
    assert (first["event_time"].timestamp(), second["publish_time"].timestamp()) == (AT_US / 1e6, 0)
    assert messages[0].attributes == {
        "schema": "prediction/2",
        "encoding": "json",
        "prediction_id": ids[0].as_py(),
        "event_type": "departed",
        "event_id": "UA0",
        "model": "wide",
        "model_version": "3",
    }
    assert plain(messages[1].data)["features"] == second["features"]


def test_features_stay_at_home_unless_asked_for() -> None:
    rows = block(1, feature__delay=pa.array([3.0]), prediction__m__p=pa.array([0.5]))
    (message,) = prediction_messages(
        rows, pa.array(["id"]), app="flights", fingerprint=FINGERPRINT, keys={}, model="m", model_version=1
    )
    assert read("prediction", message.data)["features"] == {}


def test_collect_mode_has_no_model_and_no_outputs() -> None:
    rows = block(2)
    ids = prediction_ids(rows, app="flights", fingerprint=FINGERPRINT)
    messages = prediction_messages(rows, ids, app="flights", fingerprint=FINGERPRINT, keys={})
    record = read("prediction", messages[0].data)
    assert (record["model"], record["model_version"], record["outputs"]) == ("", 0, {})


def test_each_row_has_its_own_model_version() -> None:
    rows = block(3, prediction__m__p=pa.array([0.5, 0.5, 0.5]))
    versions = pa.array([1, 1, 2])
    ids = prediction_ids(rows, app="a", fingerprint="f", model="m", model_version=versions)
    assert ids.to_pylist() == [prediction_id("a", "departed", f"UA{n}", "m", v, "f") for n, v in enumerate([1, 1, 2])]
    messages = prediction_messages(rows, ids, app="a", fingerprint="f", keys={}, model="m", model_version=versions)
    assert [read("prediction", message.data)["model_version"] for message in messages] == [1, 1, 2]
    assert [message.attributes["model_version"] for message in messages] == ["1", "1", "2"]


def test_equal_rows_give_equal_bytes_in_any_block() -> None:
    rows = block(4, prediction__m__p=pa.array([0.1, 0.2, 0.3, 0.4]), feature__x=pa.array([None, 1.0, 2.0, 3.0]))
    keys = {"k": pa.array(["a", None, "c", "d"])}

    def messages(start: int, stop: int) -> list[OutgoingMessage]:
        part = rows.slice(start, stop - start)
        part_keys = {"k": keys["k"].slice(start, stop - start)}
        ids = prediction_ids(part, app="a", fingerprint="f", model="m", model_version=1)
        return prediction_messages(
            part, ids, app="a", fingerprint="f", keys=part_keys, model="m", model_version=1, with_features=True
        )

    assert messages(0, 1) + messages(1, 4) == messages(0, 4)
    assert messages(0, 0) == []


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_failed_prediction_is_never_published(value: float | None) -> None:
    rows = block(1, prediction__m__p=pa.array([value], pa.float64()))
    with pytest.raises(ValueError, match="must be finite"):
        prediction_messages(rows, pa.array(["id"]), app="a", fingerprint="f", keys={}, model="m", model_version=1)


def test_a_reaction_follows_its_schema() -> None:
    rows = block(2)
    payload = {
        "flight": pa.array(["UA1", None]),
        "delay": pa.array([2.0, None]),
        "seats": pa.array([149, None]),
        "heavy": pa.array([True, None]),
        "at": pa.array([AT_US, None]).view(ENVELOPE[2].type),
    }
    messages = reaction_messages(
        rows, ["p0", "p1"], app="flights", reaction="rebook", keys={"plane": pa.array(["N1", "N2"])}, payload=payload
    )
    first, second = (read("reaction", message.data) for message in messages)
    assert first["payload"] == {"flight": "UA1", "delay": 2.0, "seats": 149, "heavy": True, "at": AT_US}
    assert second["payload"] == dict.fromkeys(payload)
    assert (first["reaction_id"], first["prediction_id"]) == (reaction_id("p0", "rebook"), "p0")
    assert (first["key"], first["event_id"]) == ({"plane": "N1"}, "UA0")
    assert messages[1].attributes == {
        "schema": "reaction/1",
        "encoding": "json",
        "reaction_id": second["reaction_id"],
        "prediction_id": "p1",
        "reaction": "rebook",
        "event_type": "departed",
        "event_id": "UA1",
    }
    assert plain(messages[0].data)["payload"] == first["payload"]


@pytest.mark.parametrize("column", [pa.array([float("nan")]), pa.array([b"x"]), pa.array([[1]])])
def test_a_payload_of_another_kind_is_refused(column: pa.Array) -> None:
    with pytest.raises(ValueError, match="to be published"):
        reaction_messages(block(1), ["p"], app="a", reaction="r", keys={}, payload={"x": column})


def test_plain_refuses_what_is_no_object() -> None:
    with pytest.raises(ValueError, match="JSON object"):
        plain(b"[1]")


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.dictionaries(NAMES, VALUES, max_size=5), VALUES, st.text(max_size=2))
def test_a_dead_letter_loses_nothing(data: bytes, attributes: dict[str, str], detail: str, ordering: str) -> None:
    ordering = ordering.encode(errors="ignore").decode()
    message = Message(data, attributes, "m1", 5, ordering)
    letter = DeadLetter.of(message, "malformed_json", detail, app="flights")
    (sent,) = letter.messages()
    assert fits_pubsub(sent)
    assert read_dead_letters([sent]) == [letter]
    assert fastavro.validate(letter.record(), fastavro.parse_schema(message_schema("dead_letter")))


def fits_pubsub(message: OutgoingMessage) -> bool:
    """The limits of https://cloud.google.com/pubsub/quotas."""
    size = len(message.data) + sum(len(n.encode()) + len(v.encode()) for n, v in message.attributes.items())
    return (
        size < 10_000_000
        and len(message.attributes) <= 100
        and all(
            0 < len(name.encode()) <= 256 and len(value.encode()) <= 1024 and not name.startswith("goog")
            for name, value in message.attributes.items()
        )
    )


@pytest.mark.parametrize(
    "original",
    [
        Message(b"x" * MAX_PART_BYTES),
        Message(bytes(range(256)) * 39_000, {"event_type": "departed"}),
        Message(b"", {f"name{number}": "é" * 500 for number in range(100)}),
        Message(b"{}", {"n" * 250: ""}),
        Message(b"{}", {"note": "x" * 2000}),
        Message(b"{}", {"googclient_schemaencoding": "BINARY"}),
        Message(b"{}", {"schema": "dead_letter/1", "reason": "x", "original_a": "1", "form": "avro", "part": "1/2"}),
        Message(b"{}", {}, "é" * 600),
    ],
    ids=["8 MB", "10 MB", "100 attributes", "long name", "long value", "reserved", "letter of a letter", "long id"],
)
def test_dead_letters_at_the_limits_lose_nothing(original: Message) -> None:
    letter = DeadLetter.of(original, "wrong_type", "é" * 600 + ".", app="flights")
    parts = letter.messages()
    assert all(fits_pubsub(part) for part in parts)
    (again,) = read_dead_letters(reversed(parts))
    assert (again.data, again.attributes) == (original.data, original.attributes)
    if len(original.message_id) < 100:
        assert again.message_id == original.message_id
    assert letter.detail.startswith(again.detail)
    assert read_dead_letters(parts[1:]) == []


def test_letters_keep_their_order_and_duplicates() -> None:
    small = [DeadLetter("flights", "oversized", "", b"x", {}, str(number)) for number in range(3)]
    messages = [message for letter in small for message in letter.messages()]
    assert read_dead_letters(messages) == small
    huge = DeadLetter("flights", "oversized", "", b"x" * 9_000_000, {}, "huge").messages()
    twice = read_dead_letters([*huge, *huge])
    assert [letter.message_id for letter in twice] == ["huge", "huge"]


def test_a_replayed_event_keeps_its_identity() -> None:
    def replayed(**attributes: str) -> dict[str, str]:
        return DeadLetter("flights", "wrong_type", "", b"{}", attributes, "m1").replay().attributes

    assert replayed() == {"event_id": "m1"}
    assert replayed(event_id="e", event_type="departed") == {"event_id": "e", "event_type": "departed"}
    assert replayed(googclient_schemaencoding="BINARY") == {"encoding": "avro", "event_id": "m1"}
    assert replayed(googclient_schemaencoding="JSON") == {"event_id": "m1"}


def test_what_is_no_dead_letter_or_is_damaged_is_told() -> None:
    (message,) = DeadLetter("flights", "oversized", "", b"x").messages()
    with pytest.raises(ValueError, match="'prediction/1'"):
        read_dead_letters([OutgoingMessage(b"{}", {"schema": "prediction/1"})])
    with pytest.raises(ValueError, match="what its sha256 says"):
        read_dead_letters([OutgoingMessage(b"y", message.attributes)])
    for attributes in (
        {"schema": "dead_letter/1"},
        {**message.attributes, "form": "avro", "part": "1"},
        {**message.attributes, "form": "avro", "part": "1/1"},
        {**message.attributes, "publish_time_us": "noon"},
    ):
        with pytest.raises(ValueError, match="this is none"):
            read_dead_letters([OutgoingMessage(b"\xff\xff", attributes)])


# docs/messages.md


def decoded(app: App, data: bytes, **attributes: str) -> dict[str, Any]:
    result = Decoder(app.event_types).decode([Message(data, {"event_type": "departed", **attributes})])
    assert result.rejected == []
    (row,) = result.block.to_pylist()
    return dict(row)


def test_documented_events_are_events(flights: App) -> None:
    first, second = (decoded(flights, text.encode()) for text in examples("json departed"))
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"departed.plane_manufacturer", "departed.plane_model", "departed.plane_engines"}
    (datum,) = examples("hex departed")
    assert decoded(flights, bytes.fromhex(datum), encoding="avro") == first
    assert encode_event(flights.event_types["departed"], json.loads(examples("json departed")[0]), "avro") == (
        bytes.fromhex(datum)
    )


def test_the_documented_publisher_runs() -> None:
    code, _ = examples("python")
    shown = subprocess.run(
        [sys.executable, "-c", code + "print(data.hex())"],
        cwd=DOC.parents[1],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert bytes.fromhex(shown) == bytes.fromhex(examples("hex departed")[0])
    assert f"these {len(bytes.fromhex(shown))} bytes" in DOC.read_text(encoding="utf-8")


def test_documented_predictions_and_reactions_follow_their_schemas() -> None:
    for schema in (PREDICTION, REACTION):
        name = schema.partition("/")[0]
        (data,), (attributes_text,) = examples("json", name), examples("json attributes", name)
        record, attributes = read(name, data.encode()), json.loads(attributes_text)
        assert attributes.pop("schema") == schema
        assert attributes.pop("encoding") == "json"
        assert {key: str(record[key]) for key in attributes} == attributes
        assert message_schema(name)["doc"].startswith(f"{schema}:")
    prediction = read("prediction", examples("json prediction")[0].encode())
    assert prediction["prediction_id"] == prediction_id(
        "flights",
        "departed",
        prediction["event_id"],
        prediction["model"],
        prediction["model_version"],
        prediction["fingerprint"],
    )
    reaction = read("reaction", examples("json reaction")[0].encode())
    assert reaction["reaction_id"] == reaction_id(prediction["prediction_id"], "rebook")


def test_the_documented_dead_letter_is_what_decoding_gives(flights: App) -> None:
    (attributes_text,), (data_text,) = examples("json attributes dead_letter"), examples("json data dead_letter")
    data = data_text.strip().encode()
    message = Message(data, {"event_type": "departed"})
    (rejected,) = Decoder(flights.event_types).decode([message]).rejected
    (sent,) = DeadLetter.of(message, rejected.reason, rejected.detail, app="flights").messages()
    assert sent.attributes == json.loads(attributes_text)
    assert sent.attributes["sha256"] == hashlib.sha256(data).hexdigest()
    assert sent.data == data


def test_every_reason_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    table = {name: meaning for name, meaning in rows if name in REASONS}
    assert table == dict(REASONS)


def test_schema_files_parse_and_say_their_version() -> None:
    for name in (PREDICTION, REACTION, "dead_letter/1"):
        schema = message_schema(name.partition("/")[0])
        fastavro.parse_schema(schema)
        assert schema["doc"].startswith(f"{name}: ")
        assert schema["namespace"] == "sameriver"


def test_event_types_are_event_schemas(flights: App) -> None:
    assert all(isinstance(each, EventSchema) for each in flights.event_types.values())
