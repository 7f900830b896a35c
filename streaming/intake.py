"""Intake: messages as they were pulled -> rows of one block, in order, and what is refused, event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shared_features.blocks import block_schema, concat_blocks, empty_block
from shared_features.decode import MAX_EVENT_BYTES, Decoder
from shared_features.schema import EventSchema
from shared_features.validate import MAX_FUTURE_S, shown, unknown_type
from streaming.compression import CODECS, CompressionError, TooLargeError, decompress
from streaming.event_blocks import BLOCK_ENCODINGS, BlockError, BlockLimits, read_block, row_as_event
from streaming.resolution import Resolutions
from streaming.topics import Message
from streaming.work import Refused


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of some messages.

    Attributes:
        block: the accepted events, in the order of the messages and of the events in them.
        rows: int64, for each row the index of its message.
        refused: the others.
        events: how many events the messages brought; a message that cannot be read counts as one.
    """

    block: pa.RecordBatch
    rows: np.ndarray
    refused: list[Refused]
    events: int


class Intake:
    """Decodes and checks the messages of one app, single events and blocks alike.

    Args:
        schemas: event type to schema.
        max_event_bytes: larger events are refused.
        max_future_s: how far an event time may lie after its publish time.
        limits: how large a block may be.
    """

    def __init__(
        self,
        schemas: Mapping[str, EventSchema],
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_future_s: float = MAX_FUTURE_S,
        limits: BlockLimits | None = None,
    ) -> None:
        self.schemas = dict(schemas)
        self.limits = limits or BlockLimits(event_bytes=max_event_bytes)
        self.max_event_bytes, self.max_future_s = max_event_bytes, max_future_s
        self._decoder = Decoder(schemas, max_event_bytes=max_event_bytes, max_future_s=max_future_s)
        self._columns = block_schema(self.schemas)
        self._resolutions = Resolutions()

    def take(self, messages: Sequence[Message]) -> Taken:
        """Every event of every message, as a row or refused; a bad one never changes another."""
        refused: list[Refused] = []
        single: list[Message] = []
        single_at: list[int] = []
        blocks: list[tuple[int, pa.RecordBatch]] = []
        events = 0
        for index, message in enumerate(messages):
            attributes = message.attributes
            encoding = attributes.get("encoding", "")
            if encoding not in BLOCK_ENCODINGS and "compression" not in attributes:
                single.append(message)
                single_at.append(index)
                continue
            try:
                data = self._data(message, is_block=encoding in BLOCK_ENCODINGS)
                if encoding not in BLOCK_ENCODINGS:
                    single.append(message._replace(data=data))
                    single_at.append(index)
                    continue
                rows, bad, count = self._block(index, message, data, encoding)
            except BlockError as error:
                refused.append(Refused(index, error.reason, error.detail))
                events += 1
                continue
            events += count
            refused += bad
            blocks.append((index, rows))
        decoded = self._decoder.decode(single)
        events += len(single)
        at = np.array(single_at, np.int64)
        refused += [Refused(single_at[one.index], one.reason, one.detail) for one in decoded.rejected]
        refused.sort(key=lambda one: one.index)
        if not blocks:
            return Taken(decoded.block, at[decoded.rows], refused, events)
        parts = [(at[decoded.rows], decoded.block)] if decoded.block.num_rows else []
        parts += [(np.full(rows.num_rows, index), rows) for index, rows in blocks if rows.num_rows]
        return Taken(*self._merged(parts), refused, events)

    def _merged(self, parts: Sequence[tuple[np.ndarray, pa.RecordBatch]]) -> tuple[pa.RecordBatch, np.ndarray]:
        if not parts:
            return empty_block(self._columns), np.zeros(0, np.int64)
        at = np.concatenate([indexes for indexes, _ in parts])
        block = concat_blocks([rows for _, rows in parts])
        if (at[1:] < at[:-1]).any():
            order = np.argsort(at, kind="stable")
            block, at = block.take(pa.array(order)), at[order]
        return block, at

    def _data(self, message: Message, *, is_block: bool) -> bytes:
        """The message's data without its compression."""
        most = self.limits.bytes if is_block else self.max_event_bytes
        codec = message.attributes.get("compression")
        if codec is None:
            if len(message.data) > most:
                raise BlockError("oversized", f"A block may have {most} bytes at most, got {len(message.data)}.")
            return message.data
        if codec not in CODECS:
            detail = f"The attribute compression must be one of {', '.join(CODECS)}, got {shown(codec)}."
            raise BlockError("unknown_encoding", detail)
        try:
            return decompress(message.data, codec, most)
        except TooLargeError as error:
            raise BlockError("oversized", str(error)) from error
        except CompressionError as error:
            raise BlockError("malformed_compression", str(error)) from error

    def _block(
        self, index: int, message: Message, data: bytes, encoding: str
    ) -> tuple[pa.RecordBatch, list[Refused], int]:
        """The good rows of a message with a block, its bad ones, and how many it has."""
        only = next(iter(self.schemas)) if len(self.schemas) == 1 else None
        event_type = message.attributes.get("event_type", only)
        schema = None if event_type is None else self.schemas.get(event_type)
        if schema is None:
            raise BlockError("unknown_event_type", unknown_type(event_type, self.schemas))
        found = read_block(
            message,
            data,
            encoding,
            schema,
            self._columns,
            limits=self.limits,
            max_future_s=self.max_future_s,
            resolutions=self._resolutions,
        )
        rows, count = found.rows, found.rows.num_rows
        if not found.faults:
            return rows, [], count
        ids = rows.column("event_id")
        refused = [
            Refused(index, *found.faults[row], found.as_event(row), row, _own_id(schema, ids[row].as_py()))
            for row in sorted(found.faults)
        ]
        keep = np.ones(count, bool)
        keep[list(found.faults)] = False
        return rows.filter(pa.array(keep)), refused, count


def _own_id(schema: EventSchema, event_id: object) -> str:
    """The identity as an attribute, for events that do not carry it themselves."""
    return event_id if schema.id is None and isinstance(event_id, str) and len(event_id.encode()) <= 1024 else ""


def refuse_row(
    schemas: Mapping[str, EventSchema],
    messages: Sequence[Message],
    index: int,
    block: pa.RecordBatch,
    row: int,
    reason: str,
    detail: str,
) -> Refused:
    """A decoded row that must not be folded, or that the model refused.

    Args:
        messages, index: the messages and which of them brought the row.
        block, row: where the row is.
    """
    if messages[index].attributes.get("encoding") not in BLOCK_ENCODINGS:
        return Refused(index, reason, detail)
    schema = schemas[block.column("event_type")[row].as_py()]
    number = int(str(block.column("message_id")[row].as_py()).rpartition("/")[2])
    event_id = _own_id(schema, block.column("event_id")[row].as_py())
    return Refused(index, reason, detail, row_as_event(schema, block, row), number, event_id)
