"""Blocks of events in one message: an Arrow IPC stream or an Avro object container file, of one event type.

Each event of a block is checked as if it had come alone, by the same rules and with the same reasons. What cannot be
read as a block at all is refused as one message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.json_columns import json_column
from shared_features.schema import TIMESTAMP, EventSchema, FieldType
from shared_features.validate import Faults, check_column, check_rows
from streaming.arrow_columns import arrow_column, plain_text, plain_value, read_stream
from streaming.arrow_frames import FrameError, FrameLimitError
from streaming.avro_files import AvroFileError, AvroLimitError, read_avro_file
from streaming.compression import compress
from streaming.resolution import Resolutions
from streaming.topics import Message, OutgoingMessage

ARROW, AVRO_FILE = "arrow", "avro-file"
BLOCK_ENCODINGS: Final = (ARROW, AVRO_FILE)


class BlockError(ValueError):
    """A message that cannot be read as a block.

    Attributes:
        reason, detail: of its dead letter.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """How large a block may be.

    Attributes:
        events: in one block.
        bytes: of the block when decompressed.
        event_bytes: of one event's texts.
    """

    events: int = 20_000
    bytes: int = 64 << 20
    event_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class EventBlock:
    """The events of one message as they were read; `checked_rows` says what they are good for.

    Attributes:
        values: by the name of the schema's field its column, of the field's own Arrow type.
        ids: identities, where the schema has no field for them and the block has a column.
        count: of the events.
        faults: of values that cannot be of their field's type; those are null.
        as_event: a row as the JSON of a single event, for dead letters: the values as they came.
    """

    values: Mapping[str, pa.Array]
    ids: pa.Array | None
    count: int
    faults: Faults
    as_event: Callable[[int], bytes]


def read_block(
    data: bytes, encoding: str, schema: EventSchema, *, limits: BlockLimits, resolutions: Resolutions
) -> EventBlock:
    """The events of a message that carries a block.

    Args:
        data: of the message, without compression.
        encoding: one of `BLOCK_ENCODINGS`.
        schema: the event type of all its events.
        limits: how large it may be.
        resolutions: how events of other schemas become events of this one.

    Raises:
        BlockError: it is no such block, or too large.
    """
    if encoding == ARROW:
        return _from_arrow(data, schema, limits)
    return _from_avro(data, schema, limits, resolutions)


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """The events of blocks of one type, checked.

    Attributes:
        rows: one row per event, in the order of the blocks and of the events in them, with an app's columns.
        block: int64, for each row the index of its block.
        number: int64, for each row its place there.
        faults: row to reason and sentence; such a row must not be folded.
    """

    rows: pa.RecordBatch
    block: np.ndarray
    number: np.ndarray
    faults: Mapping[int, tuple[str, str]]


def checked_rows(
    blocks: Sequence[tuple[Message, EventBlock]],
    schema: EventSchema,
    columns: pa.Schema,
    *,
    limits: BlockLimits,
    max_future_s: float,
) -> CheckedRows:
    """Blocks of one event type as rows, checked together: a call for each block would cost more than its checks.

    Args:
        blocks: at least one, with the message it came in: identity and publish time come from it.
        schema: the event type.
        columns: the columns of the app's blocks.
        limits: how large an event may be.
        max_future_s: how far an event time may lie after the publish time.
    """
    counts = np.array([one.count for _, one in blocks])
    starts = np.cumsum(counts) - counts
    block = np.repeat(np.arange(len(blocks)), counts)
    number = np.arange(len(block)) - starts[block]
    faults = Faults()
    for start, (_, one) in zip(starts.tolist(), blocks, strict=True):
        for row, fault in one.faults.by_row.items():
            faults.add(start + row, *fault)
    values = {name: pa.concat_arrays([one.values[name] for _, one in blocks]) for name in schema.fields}
    given = [pa.nulls(one.count, pa.string()) if one.ids is None else one.ids for _, one in blocks]
    own = values[schema.id] if schema.id else pa.concat_arrays(given)
    rows = _rows(values, own, [message for message, _ in blocks], block, number, schema, columns)
    _check_sizes(values, schema, limits, faults)
    if schema.id:
        check_column(values[schema.id], schema.fields[schema.id], f"{schema.name}.{schema.id}", faults)
    rows, found = check_rows(rows, schema, max_future_s)
    for row, fault in found.by_row.items():
        faults.add(row, *fault)
    return CheckedRows(rows, block, number, faults.by_row)


def _from_arrow(data: bytes, schema: EventSchema, limits: BlockLimits) -> EventBlock:
    faults = Faults()
    try:
        batch = read_stream(data, max_rows=limits.events, max_bytes=limits.bytes)
    except FrameLimitError as error:
        raise BlockError("oversized", f"A block is too large: {error}.") from error
    except FrameError as error:
        raise BlockError("malformed_block", f"The data is no block as an Arrow IPC stream: {error}.") from error
    count = batch.num_rows
    names = set(batch.schema.names)
    values = {
        name: arrow_column(batch.column(name), field, f"{schema.name}.{name}", faults)
        if name in names
        else pa.nulls(count, field.arrow)
        for name, field in schema.fields.items()
    }
    ids = None
    if schema.id is None and "event_id" not in schema.fields and "event_id" in names:
        ids = arrow_column(
            batch.column("event_id"), FieldType("event_id", pa.string(), nullable=True), "event_id", faults
        )

    def raw(row: int) -> bytes:
        one = {name: plain_value(batch.column(name), row, schema.fields.get(name)) for name in batch.schema.names}
        return json.dumps({name: value for name, value in one.items() if value is not None}).encode()

    return EventBlock(values, ids, count, faults, raw)


def _from_avro(data: bytes, schema: EventSchema, limits: BlockLimits, resolutions: Resolutions) -> EventBlock:
    faults = Faults()
    try:
        file = read_avro_file(data, max_events=limits.events, max_bytes=limits.bytes, resolutions=resolutions)
    except AvroLimitError as error:
        raise BlockError("oversized", f"A block is too large: {error}.") from error
    except AvroFileError as error:
        raise BlockError("malformed_block", f"The data is no block as an Avro container file: {error}.") from error
    resolution = resolutions.between(file.schema, schema)
    if resolution.refused is not None:
        raise BlockError("incompatible_schema", resolution.refused)
    records = [resolution.convert(record) for record in file.records]
    values = {
        name: json_column([record.get(name) for record in records], field, f"{schema.name}.{name}", faults)
        for name, field in schema.fields.items()
    }
    ids = None
    if schema.id is None and "event_id" not in schema.fields:
        given = [record.get("event_id") for record in file.records]
        if any(isinstance(one, str) and one for one in given):
            ids = pa.array([one if isinstance(one, str) else None for one in given], pa.string())

    def raw(row: int) -> bytes:
        merged = {**file.records[row], **records[row]}
        kept = {name: value for name, value in merged.items() if value is not None}
        return json.dumps(kept, default=plain_text).encode()

    return EventBlock(values, ids, len(records), faults, raw)


def _rows(
    values: Mapping[str, pa.Array],
    own: pa.Array,
    messages: Sequence[Message],
    block: np.ndarray,
    number: np.ndarray,
    schema: EventSchema,
    columns: pa.Schema,
) -> pa.RecordBatch:
    """The columns of an app's blocks; an event without an identity of its own is ``<message id>/<row>``."""
    count = len(block)
    ids = pa.array([message.message_id for message in messages], pa.string()).take(pa.array(block))
    message_ids = pc.binary_join_element_wise(ids, pa.array(number).cast(pa.string()), "/")
    published = np.array([message.publish_time_us or 0 for message in messages], np.int64)[block]
    known = {
        "event_type": pa.repeat(schema.name, count),
        "event_id": pc.coalesce(own, message_ids) if own.null_count else own,
        "event_time": values[schema.time],
        "publish_time": pa.array(published, mask=published == 0).view(TIMESTAMP),
        "message_id": message_ids,
        **{f"{schema.name}.{name}": column for name, column in values.items()},
    }
    arrays = [known[f.name] if f.name in known else pa.nulls(count, f.type) for f in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _check_sizes(values: Mapping[str, pa.Array], schema: EventSchema, limits: BlockLimits, faults: Faults) -> None:
    """No event of a block may be larger than one that comes alone; only its texts can be."""
    texts = [column for column in values.values() if column.type == pa.string()]
    if sum(column.nbytes for column in texts) <= limits.event_bytes:
        return
    sizes = np.zeros(len(texts[0]), np.int64)
    for column in texts:
        sizes += np.asarray(pc.binary_length(column).fill_null(0))
    faults.add_where(
        sizes > limits.event_bytes,
        "oversized",
        lambda row: f"An event of {schema.name} may have {limits.event_bytes} bytes at most, got {sizes[row]} of text.",
    )


def row_as_event(schema: EventSchema, block: pa.RecordBatch, row: int) -> bytes:
    """A row of a block as the JSON of a single event that gives the very same row again."""
    values: dict[str, Any] = {}
    for name, field in schema.fields.items():
        source = {schema.time: "event_time", schema.id: "event_id"}.get(name, f"{schema.name}.{name}")
        column = block.column(source).slice(row, 1)
        if field.arrow == TIMESTAMP:  # as text, which keeps microseconds whatever the schema's unit is
            column = pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ")
        values[name] = column[0].as_py()
    return json.dumps({name: value for name, value in values.items() if value is not None}).encode()


def block_message(schema: EventSchema, rows: pa.RecordBatch, *, compression: str | None = None) -> OutgoingMessage:
    """Events of one type as one message, for publishers.

    Args:
        schema: of all rows.
        rows: valid rows with an app's columns, as decoding or a history gives them.
        compression: of the whole data, one of `streaming.compression.CODECS`; None leaves it as it is.
    """
    named = {
        name: rows.column({schema.time: "event_time", schema.id: "event_id"}.get(name, f"{schema.name}.{name}"))
        for name in schema.fields
    }
    if schema.id is None and "event_id" not in named:
        named["event_id"] = rows.column("event_id")
    batch = pa.RecordBatch.from_arrays(list(named.values()), names=list(named))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = bytes(sink.getvalue())
    attributes = {"event_type": schema.name, "encoding": ARROW}
    if compression is not None:
        return OutgoingMessage(compress(data, compression), {**attributes, "compression": compression})
    return OutgoingMessage(data, attributes)
