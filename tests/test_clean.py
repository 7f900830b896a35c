"""Clean rules: what they do, the same in every way in, and what they leave as it was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch.admission import admit
from shared_features import App, Clean, EventType, Key, Label, count
from shared_features.blocks import block_schema
from shared_features.clean import clean_block
from shared_features.decode import validate_block
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression
from shared_features.plan import make_plan
from streaming.intake import Intake
from streaming.topics import Message

AT_US = 1_709_290_800_000_000
OPTIONAL = {"speed": "double", "course": "float", "units": "long", "turn": "int", "callsign": "string", "lat": "double"}
FIELDS: list[dict[str, Any]] = [
    {"name": "event_id", "type": "string"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    *({"name": name, "type": ["null", kind]} for name, kind in OPTIONAL.items()),
    {"name": "port", "type": "string"},
]
RULES = {
    "speed": Clean(null=[102.3, -0.0], between=(0, 102.2), outside="null"),
    "course": Clean(null=[360, 0.1], between=(-0.3, 511.7), outside="clip"),
    "units": Clean(null=[2**53 + 1], between=(None, 2**53 + 3), outside="clip"),
    "turn": Clean(null=[-128], between=(-127, 127), outside="dead_letter"),
    "callsign": Clean(case="lower", strip="@ A", null=["", "N/A "]),
    "lat": Clean(null=[91], between=(-90, None), outside="dead_letter"),
    "port": Clean(case="upper", strip=True),
}
MakeEvents = Callable[..., EventType]


@pytest.fixture(scope="module")
def position(tmp_path_factory: pytest.TempPathFactory) -> MakeEvents:
    path = tmp_path_factory.mktemp("schemas") / "position.avsc"
    path.write_text(json.dumps({"type": "record", "name": "Position", "fields": FIELDS}))
    return lambda event_type="position", **clean: EventType(event_type, path, time="at", clean=clean)


def make_app(event: EventType, **more: Any) -> App:
    by_port = Key("port", event.port)
    features: dict[str, Expression] = {name: event.field(name) for name in [*OPTIONAL, "port"]}
    features |= {"seen": count(event.port, by=by_port, over="1h")}
    return App("ships", event_types=[event, *more.pop("others", [])], predict_on=event, features=features, **more)


# -- by hand ------------------------------------------------------------------------------------------------
def slowly(event: dict[str, Any]) -> dict[str, Any] | None:
    """What the rules above make of an event's fields, case by case; None if it is refused."""
    row = dict(event)
    if row["speed"] in (102.3, 0.0) or (row["speed"] is not None and not 0 <= row["speed"] <= 102.2):
        row["speed"] = None
    if row["course"] in (360.0, 0.1, float(np.float32(0.1))):
        row["course"] = None
    elif row["course"] is not None:
        low, high = min(-0.3, float(np.float32(-0.3))), max(511.7, float(np.float32(511.7)))
        row["course"] = -0.3 if row["course"] < low else 511.7 if row["course"] > high else row["course"]
    if row["units"] == 2**53 + 1:
        row["units"] = None
    elif row["units"] is not None and row["units"] > 2**53 + 3:
        row["units"] = 2**53 + 3
    if row["turn"] == -128:
        row["turn"] = None
    if row["turn"] is not None and not -127 <= row["turn"] <= 127:
        return None
    if row["callsign"] is not None:
        row["callsign"] = ascii_case(row["callsign"], str.lower).strip("@ A")
        row["callsign"] = None if row["callsign"] in ("", "n/a") else row["callsign"]
    if row["lat"] == 91:
        row["lat"] = None
    if row["lat"] is not None and row["lat"] < -90:
        return None
    row["port"] = ascii_case(row["port"], str.upper).strip(" \t\n\v\f\r")
    return row


def ascii_case(text: str, change: Callable[[str], str]) -> str:
    return "".join(change(one) if one.isascii() else one for one in text)


NUMBERS = st.sampled_from(
    [102.3, 102.2, 102.25, 0.0, -0.0, -0.1, 0.1, 360.0, 511.7, 511.8, -0.3, 91.0, -90.0, -90.5, 7e9]
)
SINGLES = NUMBERS.map(lambda one: float(np.float32(one)))
LONGS = st.sampled_from([2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3, 2**53 + 4, -(2**63), 2**63 - 1, 0])
TEXTS = st.text(alphabet="aAzßıİéÉ@ N/\t\n\v\x1f\x85\u00a0", max_size=5)
EVENTS = st.fixed_dictionaries(
    {
        "speed": st.none() | NUMBERS,
        "course": st.none() | SINGLES,
        "units": st.none() | LONGS,
        "turn": st.none() | st.sampled_from([-128, -127, 127, 128, 0]),
        "callsign": st.none() | TEXTS,
        "lat": st.none() | NUMBERS,
        "port": TEXTS,
    }
)


def ways_in(event: EventType, events: list[dict[str, Any]]) -> dict[str, list[Message]]:
    """The events as JSON, Avro, one Arrow block, and Avro of an older schema."""
    records = [{"event_id": f"e{number}", "at": AT_US, **one} for number, one in enumerate(events)]
    attributes = {"event_type": "position"}
    older = {"type": "record", "name": "Position", "fields": [*event.avro["fields"], {"name": "old", "type": "int"}]}
    parsed = fastavro.parse_schema({**older, "fields": [*FIELDS, {"name": "old", "type": "int"}]})
    batch = pa.RecordBatch.from_pylist(
        records, schema=pa.schema([pa.field(n, f.arrow) for n, f in event.fields.items()])
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    file = io.BytesIO()
    fastavro.writer(file, parsed, [{**one, "old": 1} for one in records])

    def avro(record: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, event.avro, record)
        return out.getvalue()

    def message(data: bytes, **more: str) -> Message:
        return Message(data=data, attributes={**attributes, **more}, message_id="m", publish_time_us=AT_US)

    return {
        "json": [message(json.dumps(one).encode()) for one in records],
        "avro": [message(avro(one), encoding="avro") for one in records],
        "arrow": [message(sink.getvalue().to_pybytes(), encoding="arrow")],
        "another schema": [message(file.getvalue(), encoding="avro-file")],
    }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENTS, min_size=1, max_size=6))
def test_every_way_in_gives_what_batch_gives(position: MakeEvents, events: list[dict[str, Any]]) -> None:
    event = position(**RULES)
    app, intake = make_app(event), Intake({"position": event})
    expected = [slowly(one) for one in events]
    raw = [
        {"event_type": "position", "event_id": f"e{n}", "event_time": AT_US, "publish_time": AT_US}
        | {f"position.{name}": value for name, value in one.items()}
        for n, one in enumerate(events)
    ]
    history = pa.RecordBatch.from_pylist(raw, schema=block_schema([event]))
    batch, left_out = admit(make_plan(app), history)
    names = [f"position.{name}" for name in events[0]]
    accepted = [{f"position.{k}": v for k, v in row.items()} for row in expected if row is not None]
    assert exact(batch.select(names)) == exact(pa.RecordBatch.from_pylist(accepted, schema=batch.select(names).schema))
    assert sum(left_out.values()) == expected.count(None)
    for way, messages in ways_in(event, events).items():
        taken = intake.take(messages)
        assert exact(taken.block.select(names)) == exact(batch.select(names)), way
        assert [one.reason for one in taken.refused] == ["out_of_range"] * expected.count(None), way
    assert clean_block(batch, [event]) == batch  # twice is once


def exact(block: pa.RecordBatch) -> list[list[Any]]:
    """Values in which -0.0 differs from 0.0."""
    return [[v.hex() if isinstance(v, float) else v for v in column.to_pylist()] for column in block.columns]


def test_a_dead_letter_says_the_bounds_and_the_others_pass(position: MakeEvents) -> None:
    event = position(**RULES)
    bad = {"event_id": "x", "at": AT_US, "turn": 200, "port": " ab "}
    messages = ways_in(event, [])["json"]
    messages += [Message(json.dumps(one).encode(), {}, "m", AT_US) for one in (bad, {**bad, "turn": 1})]
    taken = Intake({"position": event}).take(messages)
    assert [one.detail for one in taken.refused] == ["position.turn must be from -127 to 127, got 200."]
    assert taken.block.column("position.port").to_pylist() == ["AB"]


def test_nan_and_infinity_are_refused_as_without_rules(position: MakeEvents) -> None:
    event = position(speed=RULES["speed"], lat=RULES["lat"])
    values = [float("nan"), float("inf"), float("-inf"), 103.0]
    rows = [
        {
            "event_type": "position",
            "event_id": str(n),
            "event_time": AT_US,
            "position.port": "p",
            f"position.{name}": one,
        }
        for n, (name, one) in enumerate((name, one) for name in ("speed", "lat") for one in values)
    ]
    checked = validate_block(pa.RecordBatch.from_pylist(rows, schema=block_schema([event])), {"position": event})
    assert [(one.index, one.reason) for one in checked.rejected] == [(n, "not_finite") for n in (0, 1, 2, 4, 5, 6)]
    assert checked.block.column("position.speed")[3].as_py() is None


# -- fingerprint --------------------------------------------------------------------------------------------
def test_rules_are_in_the_fingerprint_and_their_absence_is_not(position: MakeEvents) -> None:
    without = make_app(position())
    one = make_app(position(speed=Clean(null=[102.3])))
    other = make_app(position(speed=Clean(null=[102.4])))
    assert "clean" not in json.dumps(without.definitions)
    assert len({without.fingerprint, one.fingerprint, other.fingerprint}) == 3
    again = make_app(position(units=Clean(null=[1]), speed=Clean(null=[102.3])))
    swapped = make_app(position(speed=Clean(null=[102.3]), units=Clean(null=[1])))
    assert again.fingerprint == swapped.fingerprint


def test_the_rules_of_an_event_that_only_labels_count_too(position: MakeEvents) -> None:
    def with_label(**clean: Clean) -> App:
        landed = position("landed", **clean)
        label = Label(landed.speed > 1.0, join=("event_id", "event_id"), within="1h")
        return make_app(position(), others=[landed], label=label)

    assert with_label().fingerprint == make_app(position()).fingerprint
    assert with_label(speed=Clean(null=[102.3])).fingerprint != with_label().fingerprint


# -- refusals -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (lambda: Clean(), "no option, wanted at least one of case, strip, null and between"),
        (lambda: Clean(case="title"), "case='title', wanted 'upper' or 'lower'"),  # type: ignore[arg-type]
        (lambda: Clean(strip=""), "strip='', wanted True or the characters"),
        (lambda: Clean(null="x"), "null='x', wanted a list of values such as"),
        (lambda: Clean(between=(0, 1), outside="drop"), "outside='drop', wanted"),  # type: ignore[arg-type]
        (lambda: Clean(outside="clip"), "without between"),
        (lambda: Clean(between=(None, None)), r"wanted \(lowest, highest\)"),
        (lambda: Clean(between=(0, float("nan"))), r"wanted \(lowest, highest\)"),
        (lambda: Clean(between=(2, 1)), "wanted the lowest first"),
    ],
)
def test_a_rule_that_says_nothing_or_nonsense(rule: Callable[[], Clean], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        rule()


@pytest.mark.parametrize(
    ("field", "rule", "sentence"),
    [
        ("sped", Clean(null=[1]), "has no field 'sped'.*did you mean 'speed'"),
        ("speed", 102.3, r"position.speed is 102.3, wanted Clean\(...\)"),
        ("at", Clean(null=[1]), "time or identity"),
        ("event_id", Clean(strip=True), "time or identity"),
        ("speed", Clean(strip=True), "are for strings; the field is a double"),
        ("callsign", Clean(between=(0, 1)), "for numbers; the field is a string"),
        ("callsign", Clean(null=[1]), "names 1, wanted values of the field's type, string"),
        ("units", Clean(null=[1.5]), "names 1.5, wanted values of the field's type, long"),
        ("units", Clean(between=(0, 2**63), outside="clip"), "wanted values of the field's type, long"),
        ("speed", Clean(null=[True]), "names True"),
        ("speed", Clean(null=[5], between=(0, 5), outside="clip"), "clips to a value that null= takes away"),
        ("port", Clean(null=[""]), "can give null, but the field is required"),
    ],
)
def test_a_rule_that_its_field_cannot_have(position: MakeEvents, field: str, rule: Any, sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        position(**{field: rule})


def test_a_boolean_has_no_rules(tmp_path: Path) -> None:
    path = tmp_path / "t.avsc"
    fields = [FIELDS[1], {"name": "on", "type": "boolean"}]
    path.write_text(json.dumps({"type": "record", "name": "T", "fields": fields}))
    with pytest.raises(DefinitionError, match="the field is a boolean, wanted a number or a string"):
        EventType("t", path, time="at", id=None, clean={"on": Clean(null=[0])})
