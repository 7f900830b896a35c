"""Outgoing predictions and reactions: rows of a block → messages, as ``docs/messages.md`` lays down.

The data is Avro's JSON encoding of ``streaming/schemas/{prediction,reaction}.avsc``: one object, members in
the schema's order, a value of a union as ``{"double": 3.0}`` or null. Equal rows give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from shared_features import hashing
from shared_features.lists import spread
from shared_features.schema import TIMESTAMP
from streaming.topics import OutgoingMessage

PREDICTION: Final = "prediction/2"
REACTION: Final = "reaction/1"

_BRANCHES: Final[Mapping[pa.DataType, str]] = {
    pa.float64(): "double",
    pa.int64(): "long",
    pa.bool_(): "boolean",
    pa.string(): "string",
}


@cache
def message_schema(name: str) -> dict[str, Any]:
    """The Avro schema ``prediction``, ``reaction`` or ``dead_letter``, as JSON."""
    text = resources.files("streaming.schemas").joinpath(f"{name}.avsc").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def prediction_ids(
    block: pa.RecordBatch, *, app: str, fingerprint: str, model: str = "", model_version: int | pa.Array = 0
) -> pa.StringArray:
    """The id of each row's prediction (promise C7).

    Args:
        block: rows that were predicted on, with the envelope.
        model: empty in collect mode.
        model_version: of all rows, or int64 of each.
    """
    types, ids = block.column("event_type"), block.column("event_id")
    versions = [model_version] if isinstance(model_version, int) else pc.unique(model_version).to_pylist()
    kinds = pc.unique(types).to_pylist()
    if len(kinds) == len(versions) == 1:
        return hashing.prediction_ids(app, kinds[0], ids, model, versions[0], fingerprint)
    each = zip(types.to_pylist(), ids.to_pylist(), _each(model_version, block.num_rows), strict=True)
    return pa.array(
        [hashing.prediction_id(app, kind, one, model, version, fingerprint) for kind, one, version in each], pa.string()
    )


def prediction_messages(
    block: pa.RecordBatch,
    prediction_ids: pa.StringArray,
    *,
    app: str,
    fingerprint: str,
    keys: Mapping[str, pa.Array],
    model: str = "",
    model_version: int | pa.Array = 0,
    reactions: Mapping[str, pa.Array] | None = None,
    with_features: bool = False,
) -> list[OutgoingMessage]:
    """One message for the topic ``<app>-predictions`` per row.

    Args:
        block: rows that were predicted on (or recorded, in collect mode): the envelope, the columns
            ``prediction.<model>.<output>``, and as far as there are any ``stage.<key>.late`` and
            ``feature.<name>``.
        prediction_ids: of each row, see :func:`prediction_ids`.
        keys: the name of each key and its value on each row: string or int64, null where there is none.
        model, model_version: as for :func:`prediction_ids`.
        reactions: by name whether the reaction fires on each row; bool.
        with_features: whether the messages carry the features; a list is spread over ``name[0]``, ``name[1]`` …

    Raises:
        ValueError: an output is null or not finite: such a row failed, and is to be dead-lettered.
    """
    outputs = columns_under(block, f"prediction.{model}.") if model else {}
    for name, values in outputs.items():
        if values.null_count or not bool(pc.all(pc.is_finite(values), min_count=0).as_py()):
            raise ValueError(f"Output {name!r} of model {model!r} must be finite; leave failed rows out.")
    envelope = _envelope(block)
    versions = _each(model_version, block.num_rows)
    late = late_rows(block).tolist()
    features = _maps(spread(columns_under(block, "feature.")) if with_features else {}, block.num_rows)
    fired = named_where(reactions or {}, block.num_rows)
    outputs_rows = _rows({name: values.to_pylist() for name, values in outputs.items()}, block.num_rows)
    messages = []
    for row, (prediction_id, key) in enumerate(
        zip(prediction_ids.to_pylist(), _keys(keys, block.num_rows), strict=True)
    ):
        event_type, event_id, event_time, publish_time = envelope[row]
        record = {
            "prediction_id": prediction_id,
            "app": app,
            "event_type": event_type,
            "event_id": event_id,
            "key": key,
            "outputs": outputs_rows[row],
            "model": model,
            "model_version": versions[row],
            "fingerprint": fingerprint,
            "event_time": event_time,
            "publish_time": publish_time,
            "late": late[row],
            "reactions": fired[row],
            "features": features[row],
        }
        attributes = {
            "schema": PREDICTION,
            "encoding": "json",
            "prediction_id": prediction_id,
            "event_type": event_type,
            "event_id": event_id,
            "model": model,
            "model_version": str(versions[row]),
        }
        messages.append(OutgoingMessage(orjson.dumps(record), attributes))
    return messages


def reaction_messages(
    block: pa.RecordBatch,
    prediction_ids: Sequence[str],
    *,
    app: str,
    reaction: str,
    keys: Mapping[str, pa.Array],
    payload: Mapping[str, pa.Array],
) -> list[OutgoingMessage]:
    """One message for the topic ``<app>-reaction-<reaction>`` per row.

    Args:
        block: rows on which the reaction fires, with the envelope.
        prediction_ids: of each row.
        keys: as for :func:`prediction_messages`.
        payload: name to int64, float64, bool, string or timestamp (published as microseconds), one value per
            row, or a list of these, spread as features are; null is kept as null.

    Raises:
        ValueError: a number of the payload is not finite, or a column has another type.
    """
    envelope = _envelope(block)
    payloads, all_keys = _maps(spread(payload), block.num_rows), _keys(keys, block.num_rows)
    messages = []
    for row, prediction_id in enumerate(prediction_ids):
        event_type, event_id, event_time, publish_time = envelope[row]
        reaction_id = hashing.reaction_id(prediction_id, reaction)
        record = {
            "reaction_id": reaction_id,
            "prediction_id": prediction_id,
            "app": app,
            "reaction": reaction,
            "event_type": event_type,
            "event_id": event_id,
            "key": all_keys[row],
            "payload": payloads[row],
            "event_time": event_time,
            "publish_time": publish_time,
        }
        attributes = {
            "schema": REACTION,
            "encoding": "json",
            "reaction_id": reaction_id,
            "prediction_id": prediction_id,
            "reaction": reaction,
            "event_type": event_type,
            "event_id": event_id,
        }
        messages.append(OutgoingMessage(orjson.dumps(record), attributes))
    return messages


def plain(data: bytes) -> dict[str, Any]:
    """The record of a prediction or reaction with the unions taken off: ``{"double": 3.0}`` becomes 3.0.

    For people and tables; the type of a number is lost where JSON does not show it.

    Raises:
        ValueError: the data is no JSON object.
    """
    record = orjson.loads(data)
    if type(record) is not dict:
        raise ValueError("A prediction or reaction is a JSON object; this message is none.")
    for name in ("features", "payload"):
        if type(record.get(name)) is dict:
            record[name] = _without_branches(record[name])
    return record


def _without_branches(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: next(iter(value.values())) if type(value) is dict and len(value) == 1 else value
        for name, value in values.items()
    }


def columns_under(block: pa.RecordBatch, prefix: str) -> dict[str, pa.Array]:
    """The columns whose names begin with ``prefix``, by the rest of their names."""
    return {
        name[len(prefix) :]: block.column(index)
        for index, name in enumerate(block.schema.names)
        if name.startswith(prefix)
    }


def _envelope(block: pa.RecordBatch) -> list[tuple[str, str, int, int]]:
    """Type, identity, event time and publish time (0 if unknown) of each row, times in microseconds."""
    times = block.column("event_time").view(pa.int64()).to_pylist()
    published = block.column("publish_time").view(pa.int64()).fill_null(0).to_pylist()
    types, ids = block.column("event_type").to_pylist(), block.column("event_id").to_pylist()
    return list(zip(types, ids, times, published, strict=True))


def named_where(flags: Mapping[str, pa.Array], count: int) -> list[list[str]]:
    """The names of the flags that are set, for each of ``count`` rows."""
    found: list[list[str]] = [[] for _ in range(count)]
    for name, values in flags.items():
        for row in pc.indices_nonzero(values).to_pylist() if values.true_count else ():
            found[row].append(name)
    return found


def late_rows(block: pa.RecordBatch) -> np.ndarray:
    """Whether any keyed stage found the event late beyond grace; bool, shape [rows]."""
    late = np.zeros(block.num_rows, np.bool_)
    for name, values in columns_under(block, "stage.").items():
        if name.endswith(".late"):
            late |= np.asarray(values.fill_null(False) if values.null_count else values)
    return late


def _keys(keys: Mapping[str, pa.Array], count: int) -> list[dict[str, str]]:
    columns = {name: values.cast(pa.string()) for name, values in keys.items()}
    rows = _rows({name: values.to_pylist() for name, values in columns.items()}, count)
    if any(values.null_count for values in columns.values()):
        return [{name: value for name, value in row.items() if value is not None} for row in rows]
    return rows


def _maps(columns: Mapping[str, pa.Array], count: int) -> list[dict[str, Any]]:
    """Rows as Avro JSON maps of unions."""
    values = {}
    for name, column in columns.items():
        if column.type == TIMESTAMP:
            column = column.view(pa.int64())
        branch = _BRANCHES.get(column.type)
        if branch is None:
            wanted = ", ".join(str(kind) for kind in _BRANCHES)
            raise ValueError(f"{name!r} must be one of {wanted} to be published, got {column.type}.")
        if branch == "double" and not bool(pc.all(pc.is_finite(column), min_count=0).as_py()):
            raise ValueError(f"{name!r} must be finite or null to be published; NaN never leaves a feature.")
        values[name] = [None if value is None else {branch: value} for value in column.to_pylist()]
    return _rows(values, count)


def _rows(columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(count)]
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _each(value: int | pa.Array, count: int) -> list[int]:
    versions: Iterable[int] = [value] * count if isinstance(value, int) else value.to_pylist()
    return list(versions)
