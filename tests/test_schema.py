"""Event schemas: the map to Arrow, and every sentence that a wrong schema gets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shared_features.errors import DefinitionError
from shared_features.schema import TIMESTAMP, EventSchema

MICROS = {"type": "long", "logicalType": "timestamp-micros"}
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
TIME = {"name": "at", "type": MICROS}


def write(folder: Path, *fields: Any, **more: Any) -> Path:
    path = folder / "departed.avsc"
    record = {"type": "record", "name": "Departed", "namespace": "flights", "fields": list(fields), **more}
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def field(name: str, kind: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, **more}


@pytest.mark.parametrize(
    ("avro", "arrow", "kind"),
    [
        ("int", pa.int64(), "int"),
        ("long", pa.int64(), "long"),
        ("float", pa.float64(), "float"),
        ("double", pa.float64(), "double"),
        ("boolean", pa.bool_(), "boolean"),
        ("string", pa.string(), "string"),
        ({"type": "string"}, pa.string(), "string"),
        ({"type": "string", "logicalType": "uuid"}, pa.string(), "string"),
        ({"type": "enum", "name": "Colour", "symbols": ["RED"]}, pa.string(), "enum"),
        (MICROS, TIMESTAMP, "timestamp-micros"),
        (MILLIS, TIMESTAMP, "timestamp-millis"),
    ],
)
@pytest.mark.parametrize("union", [None, 0, 1])
def test_each_avro_type_has_its_arrow_type(
    tmp_path: Path, avro: Any, arrow: pa.DataType, kind: str, union: int | None
) -> None:
    declared = avro if union is None else (["null", avro] if union == 0 else [avro, "null"])
    schema = EventSchema("departed", write(tmp_path, TIME, field("x", declared)), time="at")
    got = schema.fields["x"]
    assert (got.arrow, got.avro, got.nullable) == (arrow, kind, union is not None)


def test_block_fields_leave_time_and_identity_to_the_envelope(tmp_path: Path) -> None:
    path = write(tmp_path, field("flight", "string"), TIME, field("delay", ["null", "double"], doc="minutes"))
    schema = EventSchema("departed", path, time="at", id="flight")
    assert list(schema.fields) == ["flight", "at", "delay"]
    assert schema.block_fields == [pa.field("departed.delay", pa.float64())]
    assert schema.fields["delay"].doc == "minutes"


def test_an_enum_can_be_used_again_by_name(tmp_path: Path) -> None:
    enum = {"type": "enum", "name": "Colour", "symbols": ["RED", "BLUE"]}
    path = write(tmp_path, TIME, field("a", enum), field("b", ["null", "flights.Colour"]))
    schema = EventSchema("departed", path, time="at")
    assert schema.fields["b"].symbols == ("RED", "BLUE")
    assert schema.fields["b"].branch == ("flights.Colour", "Colour")


def test_canonical_ignores_docs_and_sees_logical_types(tmp_path: Path) -> None:
    def canonical(kind: Any, doc: str) -> str:
        path = write(tmp_path, TIME, field("x", kind, doc=doc), doc=doc)
        return EventSchema("departed", path, time="at").canonical

    assert canonical(MICROS, "one") == canonical(MICROS, "two")
    assert canonical(MICROS, "one") != canonical(MILLIS, "one") != canonical("long", "one")
    assert json.loads(canonical("long", ""))["name"] == "departed"


def test_canonical_does_not_depend_on_where_the_file_lies(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one, two = write(tmp_path, TIME), write(tmp_path / "elsewhere", TIME)
    assert EventSchema("t", one, time="at").canonical == EventSchema("t", two, time="at").canonical


ARRAY = {"type": "array", "items": "long"}


@pytest.mark.parametrize(
    ("fields", "options", "wanted"),
    [
        ([TIME], {"time": "when"}, "names 'when' as its time field"),
        ([field("at", "long")], {}, "required timestamp-micros or timestamp-millis, got long"),
        ([field("at", ["null", MICROS])], {}, "got optional timestamp-micros"),
        ([TIME], {"id": "flight"}, "names 'flight' as its id field"),
        (
            [TIME, field("flight", "long")],
            {"id": "flight"},
            "'flight' of event type 'departed' must be a string",
        ),
        ([TIME, field("x", ARRAY)], {}, "field 'x' has type array"),
        ([TIME, field("x", "bytes")], {}, "field 'x' has type bytes"),
        ([TIME, field("x", {"type": "int", "logicalType": "date"})], {}, "field 'x' has type date"),
        (
            [TIME, field("x", {"type": "int", "logicalType": "timestamp-micros"})],
            {},
            "timestamp-micros (int)",
        ),
        ([TIME, field("x", ["null"])], {}, "field 'x' must have one type"),
        ([TIME, field("x", ["null", "long", "string"])], {}, "field 'x' must have one type"),
        ([TIME, field("x", "flights.Missing")], {}, "unknown type 'flights.Missing'"),
        ([TIME, field("x.y", "long")], {}, "field 'x.y' must be named"),
        ([TIME, field("x", "long"), field("X", "long")], {}, "field 'X' differs from field 'x'"),
        ([TIME, field("x", "long"), field("x", "long")], {}, "field 'x' differs from field 'x'"),
        ([TIME, {"name": "x"}], {}, "no valid Avro schema"),
        ([TIME, {"type": "long"}], {}, "field None must be named"),
        ([TIME], {"name": "a.b"}, "Event type 'a.b' must be named"),
        ([TIME], {"name": "feature"}, "Event type 'feature' has a name that blocks use"),
        ([TIME], {"name": "stage"}, "Event type 'stage'"),
        ([TIME], {"name": "prediction"}, "Event type 'prediction'"),
        ([TIME], {"name": "event_id"}, "Event type 'event_id'"),
    ],
)
def test_a_wrong_definition_is_told_in_one_sentence(
    tmp_path: Path, fields: list[Any], options: dict[str, Any], wanted: str
) -> None:
    path = write(tmp_path, *fields)
    settings = {"name": "departed", "time": "at", **options}
    with pytest.raises(DefinitionError) as caught:
        EventSchema(path=path, **settings)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search(r"\. \(tests/test_schema\.py:\d+\)$", str(caught.value))
    assert str(path) in str(caught.value) or "Event type" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, "cannot be read"),
        ("{", "is JSON, but this is not"),
        ("[" * 100_000, "is JSON, but this is not"),
        ('"long"', "must be an Avro record"),
        ("[]", "must be an Avro record"),
        ('{"type": "enum", "name": "E", "symbols": ["A"]}', "must be an Avro record, got 'enum'"),
        ('{"type": "record", "name": "R"}', "needs a list of fields"),
        ('{"type": "record", "fields": []}', "no valid Avro schema"),
        ('{"type": "record", "name": "R", "fields": 3}', "needs a list of fields"),
    ],
)
def test_a_file_that_is_no_record_schema_is_refused(tmp_path: Path, text: str | None, wanted: str) -> None:
    path = tmp_path / "x.avsc"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DefinitionError, match=wanted):
        EventSchema("departed", path, time="at")


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.avsc").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DefinitionError, match="not UTF-8 text"):
        EventSchema("departed", tmp_path / "x.avsc", time="at")
