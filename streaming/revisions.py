"""Revisions of schemas: which schema a message was written with, and its event as the app's.

Pub/Sub says so of every message of a topic with a schema (attributes ``googclient_schemaname`` and
``googclient_schemarevisionid``); publishers to other topics may say it themselves (``schema_revision``). The schema
comes from a folder, or from the topic's Schema service, once for each revision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import pyarrow as pa
from google.pubsub_v1 import types

from shared_features.decode import MAX_DEPTH
from shared_features.json_columns import json_column
from shared_features.parse import parse_avro, parse_json
from shared_features.schema import TIMESTAMP, EventSchema
from shared_features.validate import Faults, check_column, check_rows, shown
from streaming.resolution import MAX_SCHEMA_BYTES, Resolutions, WriterSchema, WriterSchemaError
from streaming.topics import Endpoint, Message, TopicError
from streaming.topics.endpoint import RETRYABLE, retrying, stub

_REVISION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME: Final = re.compile(r"projects/[^/@]{1,100}/schemas/[A-Za-z][A-Za-z0-9_.~+%-]{2,254}")
_MAX_KNOWN: Final = 1000

Fetch = Callable[[str, str], str | None]
"""Schema name and revision to the schema's JSON, or None if there is none."""


class UnknownSchemaError(ValueError):
    """No schema of this name and revision is known."""


class WriterSchemas:
    """The schemas that messages say they were written with.

    Args:
        resolutions: reads schemas, and knows those that it has read.
        folder: has ``<revision>.avsc`` files; asked first.
        fetch: the Schema service; None if there is none.
    """

    def __init__(self, resolutions: Resolutions, folder: Path | None = None, fetch: Fetch | None = None) -> None:
        self._resolutions, self._folder, self._fetch = resolutions, folder, fetch
        self._texts: dict[tuple[str, str], str | None] = {}

    def of(self, attributes: Mapping[str, str]) -> WriterSchema | None:
        """The schema that a message of these attributes was written with; None if it says nothing.

        Raises:
            UnknownSchemaError: there is none of this name and revision, or it cannot be read.
            TopicError: the Schema service could not be reached.
        """
        name = attributes.get("googclient_schemaname", "")
        revision = attributes.get("schema_revision") or attributes.get("googclient_schemarevisionid")
        if not revision or (self._folder is None and (self._fetch is None or not name)):
            return None
        key = (name, revision)
        if key not in self._texts:
            if len(self._texts) >= _MAX_KNOWN:
                self._texts.pop(next(iter(self._texts)))
            self._texts[key] = self._find(name, revision)
        text = self._texts[key]
        if text is None:
            raise UnknownSchemaError(f"No schema has the revision {shown(revision)}; wanted one that is stored.")
        try:
            return self._resolutions.schema(text)
        except WriterSchemaError as error:
            raise UnknownSchemaError(f"The schema of revision {shown(revision)} cannot be used: {error}.") from error

    def _find(self, name: str, revision: str) -> str | None:
        if _REVISION.fullmatch(revision) is None:
            return None
        if self._folder is not None:
            path = self._folder / f"{revision}.avsc"
            if path.is_file() and path.stat().st_size <= MAX_SCHEMA_BYTES:
                return path.read_text(encoding="utf-8")
        if self._fetch is None or _NAME.fullmatch(name) is None:
            return None
        return self._fetch(name, revision)


def schema_service(endpoint: Endpoint, *, deadline_s: float = 30.0) -> Fetch:
    """Asks the Schema service where the topics are; what it refuses for good is no schema."""

    def fetch(name: str, revision: str) -> str | None:
        request = types.GetSchemaRequest.pb()(name=f"{name}@{revision}", view=types.SchemaView.FULL)
        data = request.SerializeToString()
        channel = endpoint.channel()
        try:
            call = stub(channel, "SchemaService/GetSchema")
            metadata = (("x-goog-request-params", f"name={name}@{revision}"),)
            answer = retrying(
                lambda left_s: call(data, timeout=left_s, metadata=metadata), deadline_s, endpoint, f"GetSchema {name}"
            )
        except TopicError as error:
            if error.code in RETRYABLE and error.code is not grpc.StatusCode.UNKNOWN:
                raise
            return None
        finally:
            channel.close()
        schema: Any = types.Schema.pb().FromString(answer)
        return schema.definition if schema.type_ == types.Schema.Type.AVRO else None

    return fetch


def read_revised(
    messages: Sequence[Message],
    data: Sequence[bytes],
    encoding: str,
    writer: WriterSchema,
    convert: Callable[[dict[str, Any]], dict[str, Any]],
    schema: EventSchema,
    columns: pa.Schema,
    max_future_s: float,
) -> tuple[pa.RecordBatch, Mapping[int, tuple[str, str]]]:
    """Single events that were written with another schema: a row each, and the faults of those that are bad.

    Args:
        messages: all of one writer's schema, event type and encoding.
        data: of each, without compression.
        encoding: ``json`` or ``avro``.
        writer, convert: the schema that they were written with, and how its records become the event type's.
        schema: the event type.
        columns: of the app's blocks.
        max_future_s: how far an event time may lie after the publish time.
    """
    faults = Faults()
    if encoding == "avro":
        read = parse_avro(data, writer.wire, schema.name, faults)
    else:
        read = parse_json(data, MAX_DEPTH, faults)
    records = [convert(record) for record in read]
    values = {
        name: json_column([record.get(name) for record in records], field, f"{schema.name}.{name}", faults)
        for name, field in schema.fields.items()
    }
    if schema.id:
        check_column(values[schema.id], schema.fields[schema.id], f"{schema.name}.{schema.id}", faults)
    own = values[schema.id].to_pylist() if schema.id else [None] * len(messages)
    known = {
        "event_type": pa.repeat(schema.name, len(messages)),
        "event_id": pa.array(
            [
                message.attributes.get("event_id") or message.message_id if one is None else one
                for one, message in zip(own, messages, strict=True)
            ],
            pa.string(),
        ),
        "event_time": values[schema.time],
        "publish_time": pa.array([message.publish_time_us or None for message in messages], pa.int64()).view(TIMESTAMP),
        "message_id": pa.array([message.message_id for message in messages], pa.string()),
        **{f"{schema.name}.{name}": column for name, column in values.items()},
    }
    arrays = [known[f.name] if f.name in known else pa.nulls(len(messages), f.type) for f in columns]
    rows = pa.RecordBatch.from_arrays(arrays, schema=columns)
    rows, found = check_rows(rows, schema, max_future_s)
    for row, fault in found.by_row.items():
        faults.add(row, *fault)
    return rows, faults.by_row
