"""This library over the cases: the app, and its batch path, the Beam job that makes training rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import shared_features
from batch.traindata import features_of_history
from benchmarks.skew.cases import NO_ANSWER, Ask, Case, Value
from benchmarks.skew.systems import Answers
from shared_features import App, EventType, Key
from shared_features.aggregates import Aggregate
from shared_features.blocks import block_schema, nest

SHARDS = 4

_ENVELOPE = [
    {"name": "event_id", "type": "string"},
    {"name": "happened_at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    {"name": "key", "type": ["null", "string"]},
]


def app_of(cases: Sequence[Case]) -> App:
    """One app with the feature of every case: `feature_of` names it. Keys and identities carry the case's name."""
    values = {field_of(case.ask): case.ask.value_type for case in cases}
    fields = _ENVELOPE + [{"name": name, "type": ["null", value_type]} for name, value_type in values.items()]
    with tempfile.TemporaryDirectory(prefix="sameriver-skew-") as name:
        schema = Path(name, "reading.avsc")
        schema.write_text(json.dumps({"type": "record", "name": "Reading", "fields": fields}))
        reading = EventType("reading", schema, time="happened_at")
    by_key = Key("key", reading.field("key"))
    features = {feature_of(case.ask): _aggregate(case.ask, reading, by_key) for case in cases}
    return App("skew", event_types=[reading], predict_on=reading, features=features)


def field_of(ask: Ask) -> str:
    """The field with the value: one per type and scale, because a scale bounds what its field may hold."""
    return ask.value_type if ask.scale is None else f"{ask.value_type}_scale_{round(1 / ask.scale)}"


def feature_of(ask: Ask) -> str:
    """Name of the feature; cases that ask for the same share it."""
    others = "" if ask.include_self else "_others"
    return f"{ask.operation}_{field_of(ask)}_{ask.over_us}us_{ask.closed}{others}"


def _aggregate(ask: Ask, reading: EventType, by_key: Key) -> Aggregate:
    options: dict[str, Any] = {} if ask.operation == "count" or ask.scale is None else {"scale": ask.scale}
    function = getattr(shared_features, ask.operation)
    over = timedelta(microseconds=ask.over_us)
    aggregate: Aggregate = function(
        reading.field(field_of(ask)),
        by=by_key,
        over=over,
        closed=ask.closed,
        include_self=ask.include_self,
        **options,
    )
    return aggregate


def rows_of(case: Case) -> list[dict[str, Any]]:
    """The events of a case as the fields of the schema, with ``arrives_us``."""
    return [
        {
            "event_id": f"{case.name}/{event.event_id}",
            "happened_at": event.at_us,
            "key": None if event.key is None else f"{case.name}/{event.key}",
            field_of(case.ask): event.value,
            "arrives_us": event.arrives_us,
        }
        for event in case.events
    ]


def answers_of(cases: Sequence[Case], found: dict[tuple[str, str], Value]) -> Answers:
    """From (event id, feature) to value, to the values of each case; a duplicate's second copy has none."""
    return {case.name: _answers(case, found) for case in cases}


def _answers(case: Case, found: dict[tuple[str, str], Value]) -> list[Value]:
    values: list[Value] = []
    seen: set[str] = set()
    for row in rows_of(case):
        known = row["event_id"] not in seen
        seen.add(row["event_id"])
        values.append(found.get((row["event_id"], feature_of(case.ask)), NO_ANSWER) if known else NO_ANSWER)
    return values


def values_by_feature(app: App, table: pa.Table, prefix: str = "") -> dict[tuple[str, str], Value]:
    """(event id, feature) to value, of a table or block with one column per feature."""
    ids = table.column("event_id").to_pylist()
    return {
        (event_id, name): value
        for name in app.features
        for event_id, value in zip(ids, table.column(f"{prefix}{name}").to_pylist(), strict=True)
    }


def write_history(app: App, cases: Sequence[Case], folder: Path) -> None:
    """The events of all cases as a history: Parquet with publish times, rows in no particular order."""
    schema = block_schema(app.event_types)
    rows = [
        {
            "event_type": "reading",
            "event_id": row["event_id"],
            "event_time": row["happened_at"],
            "publish_time": row["arrives_us"],
            "reading.key": row["key"],
            f"reading.{field_of(case.ask)}": row[field_of(case.ask)],
        }
        for case in cases
        for row in rows_of(case)
    ]
    rows.sort(key=lambda row: str(row["event_id"])[::-1])
    pq.write_table(nest(pa.Table.from_pylist(rows, schema)), folder / "events.parquet", row_group_size=64)


def batch(cases: Sequence[Case]) -> Answers:
    """The features by the batch job: Parquet, admission, first of each, shuffles, keyed stages, on Beam's runner."""
    app = app_of(cases)
    with tempfile.TemporaryDirectory(prefix="sameriver-skew-") as name:
        write_history(app, cases, Path(name))
        table = features_of_history(app, name, shards=SHARDS)
    return answers_of(cases, values_by_feature(app, table))
