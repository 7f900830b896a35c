"""Schemas that change: events of older and newer schemas become the app's, or are refused with the reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest
from google.pubsub_v1 import types

from streaming.dead_letters import REASONS
from streaming.intake import Intake
from streaming.revisions import Fetch, schema_service
from streaming.topics import Endpoint, Message
from streaming.topics.endpoint import stub
from tests.processes import Started
from tests.sample_events import AT_US, GOOD, SCHEMAS

NAME = "projects/p/schemas/departed"


def fields(**changes: Any) -> str:
    """The schema of the type ``departed`` with some fields changed, added, or (None) dropped."""
    raw = json.loads(SCHEMAS["departed"].path.read_text("utf-8"))
    kinds = {field["name"]: field["type"] for field in raw["fields"]} | changes
    made = [{"name": name, "type": kind} for name, kind in kinds.items() if kind is not None]
    return json.dumps({"type": "record", "name": "Departed", "fields": made})


class Service:
    """A Schema service that counts how often it is asked."""

    def __init__(self, **revisions: str) -> None:
        self.revisions, self.asked = revisions, list[tuple[str, str]]()

    def __call__(self, name: str, revision: str) -> str | None:
        self.asked.append((name, revision))
        return self.revisions.get(revision)


def datum(schema: str, event: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    fastavro.schemaless_writer(sink, fastavro.parse_schema(json.loads(schema)), event)
    return sink.getvalue()


def written(data: bytes, revision: str = "r", encoding: str = "BINARY", **more: str) -> Message:
    says = {
        "googclient_schemaname": NAME,
        "googclient_schemarevisionid": revision,
        "googclient_schemaencoding": encoding,
    }
    return Message(data, {"event_type": "departed", **says, **more}, "m", AT_US + 1_000_000)


def taken(schema: str, event: dict[str, Any]) -> Any:
    """The row of an event written with ``schema``, or the reason why there is none."""
    found = Intake(SCHEMAS, fetch=Service(r=schema)).take([written(datum(schema, event))])
    assert found.events == 1
    if found.refused:
        (refused,) = found.refused
        assert refused.reason in REASONS
        return refused.reason
    (row,) = found.block.to_pylist()
    return {name.removeprefix("departed."): value for name, value in row.items()}


ROW = {"event_id": "UA1", "distance": 500, "weight": 1.5, "heavy": True, "cabin": "ECONOMY", "seats": None}


@pytest.mark.parametrize(
    ("changes", "event", "wanted"),
    [
        ({}, {}, {}),
        ({"new": "string"}, {"new": "x"}, {}),
        ({"new": {"type": "array", "items": "long"}}, {"new": [1, 2]}, {}),
        ({"seats": None, "delay": None}, {}, {"seats": None, "delay": None}),
        ({"seats": "int"}, {"seats": 3}, {"seats": 3}),
        ({"distance": "int"}, {}, {"distance": 500}),
        ({"distance": ["null", "long"]}, {"distance": 7}, {"distance": 7}),
        ({"weight": "long"}, {"weight": 2}, {"weight": 2.0}),
        ({"tail": "bytes"}, {"tail": b"N1"}, {"tail": "N1"}),
        ({"distance": ["null", "long"]}, {"distance": None}, "missing_field"),
        ({"tail": "bytes"}, {"tail": b"\xff"}, "wrong_type"),
        ({"distance": None}, {}, "incompatible_schema"),
        ({"distance": "double"}, {}, "incompatible_schema"),
        ({"seats": "long"}, {"seats": 3}, "incompatible_schema"),
        ({"heavy": "string"}, {"heavy": "yes"}, "incompatible_schema"),
        ({"tail": ["null", "string", "long"]}, {}, "incompatible_schema"),
        ({"at": {"type": "long", "logicalType": "local-timestamp-micros"}}, {}, "incompatible_schema"),
        ({"seats": "null"}, {"seats": None}, {"seats": None}),
    ],
)  # fmt: skip
def test_an_event_of_another_schema_becomes_the_apps(changes: Any, event: Any, wanted: Any) -> None:
    found = taken(fields(**changes), {**GOOD, **event})
    if isinstance(wanted, str):
        assert found == wanted
    else:
        assert {name: found[name] for name in ROW} == {**ROW, **{k: v for k, v in wanted.items() if k in ROW}}
        assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("unit", ["millis", "micros", "nanos"])
def test_instants_are_converted_from_their_writers_unit(unit: str) -> None:
    """To the app's: ``at`` has microseconds, ``planned`` milliseconds and here something finer."""
    per = {"millis": 1_000_000, "micros": 1_000, "nanos": 1}[unit]
    kind = {"type": "long", "logicalType": f"timestamp-{unit}"}
    us = AT_US + 123_000
    for encoding in ("BINARY", "JSON"):
        schema = fields(at=kind, planned=["null", kind])
        event = {**GOOD, "at": us * 1000 // per, "planned": us * 1000 // per}
        if encoding == "BINARY":
            plain = fields(at="long", planned=["null", "long"])
            data = datum(plain, event)
        else:
            data = json.dumps({**event, "planned": {"long": event["planned"]}}).encode()
        found = Intake(SCHEMAS, fetch=Service(r=schema)).take([written(data, encoding=encoding)])
        assert found.refused == []
        (row,) = found.block.to_pylist()
        assert row["event_time"].timestamp() * 1e6 == us
        assert row["departed.planned"].timestamp() * 1e6 == us


def test_a_revision_is_asked_for_once_and_an_unknown_one_is_refused() -> None:
    service = Service(old=fields(seats=None))
    intake = Intake(SCHEMAS, fetch=service)
    good = written(datum(fields(seats=None), GOOD), "old")
    alone = Message(json.dumps(GOOD).encode(), {"event_type": "departed"}, "m", AT_US + 1_000_000)
    for _ in range(2):
        found = intake.take([alone, good, written(b"", "none"), alone, written(b"\x01", "old"), good])
        assert found.rows.tolist() == [0, 1, 3, 5]
        assert [(one.index, one.reason) for one in found.refused] == [(2, "unknown_schema"), (4, "malformed_avro")]
    assert service.asked == [(NAME, "old"), (NAME, "none")]
    bad = [written(b"", "../../x"), written(b"", "r", googclient_schemaname="projects/p/schemas/../x")]
    assert [one.reason for one in intake.take(bad).refused] == ["unknown_schema"] * 2
    assert len(service.asked) == 2


def test_revisions_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "v1.avsc").write_text(fields(seats=None), "utf-8")
    (tmp_path / "v2.avsc").write_text('{"type": "record"', "utf-8")
    intake = Intake(SCHEMAS, schemas_folder=tmp_path)
    own = {"event_type": "departed", "encoding": "avro", "schema_revision": "v1"}
    found = intake.take([Message(datum(fields(seats=None), GOOD), own, "m", AT_US)])
    assert (found.refused, found.block.num_rows) == ([], 1)
    broken = intake.take([Message(b"", {**own, "schema_revision": "v2"}, "m", AT_US)])
    assert [one.reason for one in broken.refused] == ["unknown_schema"]


def test_without_a_source_of_schemas_the_apps_own_is_used() -> None:
    data = datum(SCHEMAS["departed"].path.read_text("utf-8"), GOOD)
    assert Intake(SCHEMAS).take([written(data)]).refused == []
    nobody: Fetch = Service()
    assert Intake(SCHEMAS, fetch=nobody).take([written(data)]).refused[0].reason == "unknown_schema"


def test_an_alias_renames_a_field(tmp_path: Path) -> None:
    from shared_features.schema import EventSchema

    raw = json.loads(SCHEMAS["departed"].path.read_text("utf-8"))
    renamed = [
        {**f, "name": "length", "aliases": ["distance"]} if f["name"] == "distance" else f for f in raw["fields"]
    ]
    (tmp_path / "new.avsc").write_text(json.dumps({**raw, "fields": renamed}), "utf-8")
    schema = EventSchema("departed", tmp_path / "new.avsc", time="at", id="flight")
    old = fields()
    found = Intake({"departed": schema}, fetch=Service(r=old)).take([written(datum(old, GOOD))])
    assert found.block.column("departed.length").to_pylist() == [500]


def test_a_revision_comes_from_the_schema_service(start_process: Callable[..., Started]) -> None:
    """Of the embedded broker; a revision or schema that is not there is none."""
    broker = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    endpoint = Endpoint("p", broker.line.rsplit(" ", 1)[-1])
    text = fields(seats=None)
    schema = types.Schema.pb()(type_=types.Schema.Type.AVRO, definition=text)
    request = types.CreateSchemaRequest.pb()(parent="projects/p", schema_id="departed", schema=schema)
    channel = endpoint.channel()
    made = types.Schema.pb().FromString(stub(channel, "SchemaService/CreateSchema")(request.SerializeToString()))
    channel.close()
    fetch = schema_service(endpoint)
    assert fetch(made.name, "ffffffff") is None
    assert fetch("projects/p/schemas/none", "ffffffff") is None
    message = written(datum(text, GOOD), made.revision_id, googclient_schemaname=made.name)
    found = Intake(SCHEMAS, fetch=fetch).take([message])
    assert (found.refused, found.block.num_rows) == ([], 1)
