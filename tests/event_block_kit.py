"""Blocks of the sample events, as their publishers make them."""

from __future__ import annotations

import io
from typing import Any

import fastavro
import pyarrow as pa

from streaming.intake import Intake
from streaming.topics import Message
from tests.sample_events import AT_US, GOOD, SCHEMAS

INTAKE = Intake(SCHEMAS)


def received(data: bytes, *, event_type: str = "departed", message_id: str = "m", **attributes: str) -> Message:
    return Message(data, {"event_type": event_type, **attributes}, message_id, AT_US + 1_000_000, f"ack {message_id}")


def ipc(columns: dict[str, Any] | pa.RecordBatch, compression: str | None = None) -> bytes:
    batch = columns if isinstance(columns, pa.RecordBatch) else pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def arrow(columns: dict[str, Any], **attributes: str) -> Message:
    return received(ipc(columns), encoding="arrow", **attributes)


def container(records: list[dict[str, Any]], schema: Any, codec: str = "null") -> bytes:
    sink = io.BytesIO()
    fastavro.writer(sink, fastavro.parse_schema(schema), records, codec=codec)
    return sink.getvalue()


def good(count: int) -> dict[str, Any]:
    """Columns of good events of the type ``departed``."""
    columns = {name: [value] * count for name, value in GOOD.items()}
    return {**columns, "flight": [f"F{number}" for number in range(count)]}


def records(count: int) -> list[dict[str, Any]]:
    columns = good(count)
    return [{name: values[row] for name, values in columns.items()} for row in range(count)]


def avro_file(count: int, codec: str = "null") -> bytes:
    return container(records(count), SCHEMAS["departed"].avro, codec)


def without_ids(block: pa.RecordBatch) -> pa.RecordBatch:
    return block.drop_columns(["message_id"])
