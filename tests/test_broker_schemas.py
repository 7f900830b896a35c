"""Schemas, their revisions and what fits them; filters as a language; no network."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from typing import Any

import fastavro
import pytest
from google.pubsub_v1 import types

from streaming.broker.avro import Avro, MismatchError
from streaming.broker.core import Core
from streaming.broker.errors import RefusedError
from streaming.broker.filters import parse
from streaming.broker.messages import PubsubMessage, Schema
from tests.test_broker_core import refused

TOPIC = "projects/p1/topics/events"
NAME = "projects/p1/schemas/event"
FIRST = {"type": "record", "name": "Event", "fields": [{"name": "a", "type": "string"}]}
SECOND = {
    "type": "record",
    "name": "Event",
    "fields": [{"name": "a", "type": "string"}, {"name": "b", "type": ["null", "int"], "default": None}],
}
EVERYTHING: dict[str, Any] = {
    "type": "record", "name": "n.All", "fields": [
        {"name": "z", "type": "null"}, {"name": "o", "type": "boolean"}, {"name": "i", "type": "int"},
        {"name": "l", "type": "long"}, {"name": "f", "type": "float"}, {"name": "d", "type": "double"},
        {"name": "s", "type": "string"}, {"name": "y", "type": "bytes"},
        {"name": "x", "type": {"type": "fixed", "name": "Two", "size": 2}},
        {"name": "e", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "r", "type": {"type": "array", "items": "int"}},
        {"name": "m", "type": {"type": "map", "values": ["null", "n.Two"]}},
        {"name": "t", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "u", "type": ["null", "n.All"], "default": None},
    ],
}  # fmt: skip
VALUE: dict[str, Any] = {
    "z": None, "o": True, "i": -5, "l": 1 << 40, "f": 1.5, "d": -2.5, "s": "ü", "y": b"\0\xff", "x": b"ab", "e": "B",
    "r": [1, 2, 3], "m": {"k": b"cd", "n": None}, "t": 7, "u": None,
}  # fmt: skip


def _binary(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def _json(schema: Any, value: Any) -> bytes:
    out = io.StringIO()
    fastavro.json_writer(out, fastavro.parse_schema(schema), [value])
    return out.getvalue().encode()


def test_what_an_independent_encoder_writes_fits() -> None:
    nested = {**VALUE, "u": {**VALUE, "u": VALUE}}
    avro = Avro(json.dumps(EVERYTHING))
    avro.check_binary(_binary(EVERYTHING, nested))
    flat = {**EVERYTHING, "fields": EVERYTHING["fields"][:-1]}  # that encoder knows no recursion in JSON
    Avro(json.dumps(flat)).check_json(_json(flat, VALUE))


def test_every_shorter_or_longer_binary_message_is_refused() -> None:
    avro, data = Avro(json.dumps(EVERYTHING)), _binary(EVERYTHING, VALUE)
    for end in range(len(data)):
        with pytest.raises(MismatchError):
            avro.check_binary(data[:end])
    with pytest.raises(MismatchError, match="Too much data"):
        avro.check_binary(data + b"\0")


def test_random_bytes_never_do_more_than_be_refused() -> None:
    draw = random.Random(7)
    avro, data = Avro(json.dumps(EVERYTHING)), _binary(EVERYTHING, VALUE)
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        try:
            avro.check_binary(bytes(changed))
        except MismatchError:
            continue
        assert fastavro.schemaless_reader(io.BytesIO(bytes(changed)), fastavro.parse_schema(EVERYTHING), None)


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        ({"type": "array", "items": "null"}, b"\xfe\xff\xff\xff\x0f" * 1000 + b"\0"),
        ({"type": "array", "items": "null"}, b"\xd0\x86\x03" * 25_000 + b"\0"),
        ({"type": "record", "name": "L", "fields": [{"name": "n", "type": ["null", "L"]}]}, b"\2" * 1_000_000),
        ({"type": "array", "items": "string"}, b"\2\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("long", b"\xff" * 1_000_000),
    ],
)
def test_bombs_are_no_work(schema: Any, data: bytes) -> None:
    avro, began = Avro(json.dumps(schema)), time.process_time()
    with contextlib.suppress(MismatchError):
        avro.check_binary(data)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", ["", "x", "{}", '"strange"', '{"type": "record"}', "[" * 100_000])
def test_what_is_no_schema(text: str) -> None:
    with pytest.raises(MismatchError):
        Avro(text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "not JSON"), (b"[" * 100_000, "not JSON"), (b"1", "expected object"), (b"{}", "field a is missing"),
        (b'{"a":1,"b":null}', "expected string"), (b'{"a":"x","b":3}', "name of a union's branch"),
        (b'{"a":"x","b":{"long":3}}', "no branch long"), (b'{"a":"x","b":{"int":2147483648}}', "number_integer"),
        (b'{"a":"x","b":{"int":true}}', "number_integer"), (b'{"a":"x"}', "field b is missing"),
        (b'{"a":"x","b":NaN}', "not JSON"),
    ],
)  # fmt: skip
def test_json_that_does_not_fit(data: bytes, text: str) -> None:
    with pytest.raises(MismatchError, match=text):
        Avro(json.dumps(SECOND)).check_json(data)


def test_json_with_unknown_fields_fits() -> None:
    Avro(json.dumps(SECOND)).check_json(b'{"a":"x","b":{"int":3},"more":[]}')


# Revisions and topics.


def _schema(definition: Any, kind: str = "AVRO") -> Any:
    return Schema(type_=types.Schema.pb().Type.Value(kind), definition=json.dumps(definition))


@pytest.fixture
def core() -> Core:
    made = Core()
    made.schemas.create("projects/p1", "event", _schema(FIRST))
    return made


def _topic(core: Core, **settings: Any) -> Any:
    topic = types.Topic({"name": TOPIC, "schema_settings": {"schema": NAME, "encoding": "JSON", **settings}})
    return core.create_topic(types.Topic.pb(topic))


def _publish(core: Core, *data: bytes) -> list[str]:
    """The revision ids that the messages were given."""
    messages = [PubsubMessage(data=one, attributes={"mine": "kept"}) for one in data]
    core.publish(TOPIC, messages, 10)
    assert all(one.attributes["mine"] == "kept" for one in messages)
    assert {one.attributes["googclient_schemaname"] for one in messages} == {NAME}
    assert {one.attributes["googclient_schemaencoding"] for one in messages} == {"JSON"}
    return [one.attributes["googclient_schemarevisionid"] for one in messages]


def test_revisions_are_committed_rolled_back_and_deleted(core: Core) -> None:
    schemas = core.schemas
    (first,) = schemas.revisions(NAME, 2)
    second = schemas.commit(NAME, _schema(SECOND))
    third = schemas.rollback(NAME, first.revision_id)
    assert third.definition == first.definition
    assert [one.revision_id for one in schemas.revisions(NAME, 1)] == [
        first.revision_id, second.revision_id, third.revision_id,
    ]  # fmt: skip
    assert schemas.get(NAME) == third
    assert schemas.get(f"{NAME}@{second.revision_id}") == second
    assert schemas.get(NAME, 1).definition == ""
    assert schemas.delete_revision(f"{NAME}@{first.revision_id}", "") == first
    with refused("NOT_FOUND", "not found"):
        schemas.rollback(NAME, first.revision_id)
    with refused("NOT_FOUND", "not found"):
        schemas.get(f"{NAME}@00000000")
    schemas.delete_revision(NAME, second.revision_id)
    with refused("INVALID_ARGUMENT", "last revision"):
        schemas.delete_revision(NAME, third.revision_id)
    with refused("FAILED_PRECONDITION", "at most 20"):
        for _ in range(20):
            schemas.rollback(NAME, third.revision_id)


def test_schemas_that_cannot_be_made(core: Core) -> None:
    create = core.schemas.create
    with refused("ALREADY_EXISTS", "resource=event"):
        create("projects/p1", "event", _schema(FIRST))
    with refused("INVALID_ARGUMENT", "Invalid resource name"):
        create("projects/p1", "1", _schema(FIRST))
    with refused("INVALID_ARGUMENT", "Invalid schema definition"):
        create("projects/p1", "other", _schema("strange"))
    with refused("INVALID_ARGUMENT", "Invalid schema type"):
        create("projects/p1", "other", _schema(FIRST, "TYPE_UNSPECIFIED"))
    with refused("UNIMPLEMENTED", "Protocol Buffer"):
        create("projects/p1", "other", _schema("x", "PROTOCOL_BUFFER"))
    assert list(core.schemas.of_project("projects/p1", 0)) == [NAME]
    assert core.schemas.of_project("projects/p1", 0)[NAME].definition == ""


def test_messages_get_the_newest_revision_that_they_fit(core: Core) -> None:
    _topic(core)
    (first,) = core.schemas.revisions(NAME, 2)
    second = core.schemas.commit(NAME, _schema(SECOND))
    both = _publish(core, b'{"a":"x","b":null}', b'{"a":"x"}')
    assert both == [second.revision_id, first.revision_id]
    with refused("INVALID_ARGUMENT", "Invalid data in message: Message failed schema validation") as caught:
        _publish(core, b'{"a":"x"}', b'{"a":1}')
    assert caught.value.reason == "INVALID_JSON_AVRO_MESSAGE"
    assert f"last checked revision: revision_id={first.revision_id}" in caught.value.metadata["revisionInfo"]


def test_a_topic_takes_the_revisions_of_its_range_only(core: Core) -> None:
    (first,) = core.schemas.revisions(NAME, 2)
    second = core.schemas.commit(NAME, _schema(SECOND))
    core.schemas.commit(NAME, _schema(FIRST))
    _topic(core, first_revision_id=second.revision_id, last_revision_id=second.revision_id)
    assert _publish(core, b'{"a":"x","b":null}') == [second.revision_id]
    with refused("INVALID_ARGUMENT", "failed schema validation"):
        _publish(core, b'{"a":"x"}')
    settings = {"schema": NAME, "encoding": "JSON", "last_revision_id": first.revision_id}
    wanted = types.Topic.pb(types.Topic({"name": TOPIC, "schema_settings": settings}))
    core.update_topic(wanted, ["schema_settings"])
    assert _publish(core, b'{"a":"x","b":null}') == [first.revision_id]
    wanted.schema_settings.first_revision_id = second.revision_id
    with refused("INVALID_ARGUMENT", "newer than"):
        core.update_topic(wanted, ["schema_settings"])
    wanted.schema_settings.first_revision_id = "00000000"
    with refused("NOT_FOUND", "not found"):
        core.update_topic(wanted, ["schema_settings"])


def test_a_topic_without_its_schema_takes_nothing(core: Core) -> None:
    with refused("INVALID_ARGUMENT", "encoding"):
        _topic(core, encoding="ENCODING_UNSPECIFIED")
    with refused("NOT_FOUND", "resource=none"):
        _topic(core, schema="projects/p1/schemas/none")
    _topic(core)
    core.schemas.delete(NAME)
    assert core.topic(TOPIC).config.schema_settings.schema == "_deleted-schema_"
    with refused("NOT_FOUND", "deleted"):
        _publish(core, b'{"a":"x"}')
    core.update_topic(types.Topic.pb()(name=TOPIC), ["schema_settings"])
    core.publish(TOPIC, [PubsubMessage(data=b"anything")], 1)


def test_messages_are_checked_on_request(core: Core) -> None:
    check = core.schemas.check_message
    check(NAME, None, b'{"a":"x"}', 1)
    check("", _schema(FIRST), _binary(FIRST, {"a": "x"}), 2)
    for text, name, schema, encoding in [
        ("No encoding", NAME, None, 0), ("failed schema validation", NAME, None, 2), ("schema type", "", Schema(), 2),
    ]:  # fmt: skip
        with refused("INVALID_ARGUMENT", text):
            check(name, schema, b"x", encoding)


# Filters.

MESSAGES: list[dict[str, str]] = [{}, {"a": "b"}, {"a": "bc", "d": ""}, {"d": "x"}, {"a-b": '"', "ü b": "ü"}]


@pytest.mark.parametrize(
    ("text", "through"),
    [
        ("attributes:a", [1, 2]),
        ("NOT attributes:a", [0, 3, 4]),
        ("-attributes:a", [0, 3, 4]),
        ("NOT NOT attributes:a", [1, 2]),
        ('attributes.a = "b"', [1]),
        ('attributes.a="b"', [1]),
        ('attributes.a != "b"', [0, 2, 3, 4]),
        ('hasPrefix(attributes.a, "b")', [1, 2]),
        ('hasPrefix(attributes.a, "")', [1, 2]),
        ("attributes:a AND attributes:d", [2]),
        ("attributes:a OR attributes:d", [1, 2, 3]),
        ("attributes:a AND NOT (attributes:d OR attributes:x)", [1]),
        ("(attributes:a AND attributes:d) OR attributes:a-b", [2, 4]),
        (r'attributes.a-b = "\""', [4]),
        (r'attributes."ü b" = "\u00fc"', [4]),
        (r'attributes:"\303\274 b"', []),
    ],
)
def test_filters(text: str, through: list[int]) -> None:
    assert [n for n, one in enumerate(MESSAGES) if parse(text)(one)] == through


@pytest.mark.parametrize(
    "text",
    [" ", "attributes", "attributes.a", "attributes.a = b", "attributes.a = 5", 'attributes.a > "b"', "data:a", "(",
     "attributes:a)", "(attributes:a", "attributes:a attributes:b", "not attributes:a", "attributes:a and attributes:b",
     "attributes:a AND attributes:b OR attributes:c", 'hasPrefix(a, "b")', 'hasPrefix(attributes.a "b")',
     'attributes.a = "b', "attributes.a : b", "(" * 200 + "attributes:a", 'attributes.a = "' + "b" * 250 + '"'],
)  # fmt: skip
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(RefusedError, match=r"Invalid filter|too large"):
        parse(text)
