"""Events → messages, for publishers: the inverse of :mod:`shared_features.decode`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from fastavro import schemaless_writer

from shared_features.errors import EventError
from shared_features.json_columns import json_column
from shared_features.parse import wire_schema
from shared_features.schema import TIMESTAMP, EventSchema, FieldType
from shared_features.validate import Faults, check_column, shown, unknown_type

Encoding = Literal["json", "avro"]


class EventMessage(NamedTuple):
    """The data and attributes of one event's message; the topic adds the rest."""

    data: bytes
    attributes: dict[str, str]


def encode_event(schema: EventSchema, values: Mapping[str, Any], encoding: Encoding = "json") -> bytes:
    """One event as the data of a message.

    Args:
        schema: the event's type.
        values: field to value; a timestamp is a datetime with a zone, RFC 3339 text, or an integer in the
            schema's unit; an absent field is null; names that the schema lacks are left out.
        encoding: ``json`` (plain, timestamps as integers) or ``avro`` (one binary datum).

    Raises:
        EventError: a value would be refused on the other side, with the reason that it would get there.
    """
    faults = Faults()
    record = {}
    for field in schema.fields.values():
        label = f"{schema.name}.{field.name}"
        column = json_column([_plain(values.get(field.name))], field, label, faults)
        check_column(column, field, label, faults)
        if not faults.by_row:
            record[field.name] = _in_unit(column, field, label)[0]
    if faults.by_row:
        raise EventError(*faults.by_row[0])
    return _encoder(schema, encoding)(record)


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's own, datetimes as text."""
    if isinstance(value, np.generic):
        value = value.item()
    return value.isoformat() if isinstance(value, datetime) else value


def rows_to_messages(
    block: pa.RecordBatch, schemas: Mapping[str, EventSchema], encoding: Encoding = "json"
) -> list[EventMessage]:
    """Rows of history as the messages that would have brought them.

    Args:
        block: the envelope and the fields of every type, flattened, and valid
            (:func:`shared_features.validate.validate_block`).
        schemas: event type to schema.
        encoding: of every message.

    Returns:
        One message per row, in the block's order, with the attributes ``event_type``, ``encoding`` (unless
        it is JSON) and ``event_id`` (where the schema has no id field).

    Raises:
        EventError: a row's type is unknown, or its value does not survive the schema's own type: a float
            that 32 bits round, or microseconds in a timestamp-millis, would make the live value another one.
    """
    types = block.column("event_type")
    messages: list[EventMessage | None] = [None] * block.num_rows
    for name, schema in schemas.items():
        rows = np.flatnonzero(np.asarray(pc.equal(types, name).fill_null(False)))
        if len(rows) == 0:
            continue
        part = block if len(rows) == block.num_rows else block.take(pa.array(rows))
        shared = {"event_type": name} | ({} if encoding == "json" else {"encoding": encoding})
        ids = part.column("event_id").to_pylist()
        data = map(_encoder(schema, encoding), _records(part, schema))
        for row, datum, event_id in zip(rows.tolist(), data, ids, strict=True):
            own = shared if schema.id else {**shared, "event_id": event_id}
            messages[row] = EventMessage(datum, dict(own))
    done = [message for message in messages if message is not None]
    if len(done) != len(messages):
        got = types[messages.index(None)].as_py()
        raise EventError("unknown_event_type", unknown_type(got, schemas))
    return done


def _records(part: pa.RecordBatch, schema: EventSchema) -> list[dict[str, Any]]:
    names = list(schema.fields)
    columns = []
    for field in schema.fields.values():
        label = f"{schema.name}.{field.name}"
        source = {schema.time: "event_time", schema.id: "event_id"}.get(field.name, label)
        columns.append(_in_unit(part.column(source), field, label))
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _in_unit(column: pa.Array, field: FieldType, label: str) -> Sequence[Any]:
    """A column as Python values of the schema's own type, instants as integers in its unit."""
    if field.arrow == TIMESTAMP:
        column = column.view(pa.int64())
        if field.avro == "timestamp-millis":
            millis = pc.divide(column, 1000)
            _check_kept(pc.multiply(millis, 1000), column, "timestamp-millis", label)
            column = millis
    elif field.avro == "float":
        _check_kept(column.cast(pa.float32(), safe=False).cast(pa.float64()), column, "float", label)
    values: list[Any] = column.to_pylist() if column.null_count else column.to_numpy(False).tolist()
    return values


def _check_kept(narrow: pa.Array, column: pa.Array, kind: str, label: str) -> None:
    lost = pc.not_equal(narrow, column).fill_null(False)
    row = pc.index(lost, True).as_py()
    if row >= 0:
        raise EventError(
            "out_of_range",
            f"{label} is {kind} in the schema, which cannot hold {shown(column[row].as_py())} exactly; declare "
            f"it wider.",
        )


def _encoder(schema: EventSchema, encoding: Encoding) -> Callable[[dict[str, Any]], bytes]:
    if encoding == "json":
        return orjson.dumps
    if encoding != "avro":
        raise EventError("unknown_encoding", f"encoding must be json or avro, got {shown(encoding)}.")
    wire = wire_schema(schema)

    def to_avro(record: dict[str, Any]) -> bytes:
        sink = BytesIO()
        schemaless_writer(sink, wire, record)
        return sink.getvalue()

    return to_avro
