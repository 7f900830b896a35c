"""Intake: messages as they were pulled -> rows of one block, in order, and what is refused, event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from shared_features.blocks import block_schema, concat_blocks, empty_block
from shared_features.decode import MAX_EVENT_BYTES, Decoder
from shared_features.external import Ask, answered
from shared_features.schema import EventSchema
from shared_features.validate import MAX_FUTURE_S, shown, unknown_type
from streaming.compression import CODECS, CompressionError, TooLargeError, decompress
from streaming.event_blocks import (
    BLOCK_ENCODINGS,
    BlockError,
    BlockLimits,
    EventBlock,
    checked_rows,
    read_block,
    row_as_event,
)
from streaming.resolution import Resolutions, WriterSchema, read_schema
from streaming.revisions import Fetch, UnknownSchemaError, WriterSchemas, read_revised
from streaming.topics import Message
from streaming.work import Refused

_SPECIAL = frozenset({"compression", "schema_revision", "googclient_schemarevisionid"})
"""Attributes that single events seldom have, and that make them more than the decoder's business."""


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
        schemas_folder: has ``<revision>.avsc`` files of schemas that events were written with.
        fetch: the Schema service, asked for revisions that are not in the folder.
        ask: puts texts to the external models of the event types; without it their fields stay as they came.
    """

    def __init__(
        self,
        schemas: Mapping[str, EventSchema],
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_future_s: float = MAX_FUTURE_S,
        limits: BlockLimits | None = None,
        schemas_folder: Path | None = None,
        fetch: Fetch | None = None,
        ask: Ask | None = None,
    ) -> None:
        self.schemas = dict(schemas)
        self._ask = ask
        self.limits = limits or BlockLimits(event_bytes=max_event_bytes)
        self.max_event_bytes, self.max_future_s = max_event_bytes, max_future_s
        self._decoder = Decoder(schemas, max_event_bytes=max_event_bytes, max_future_s=max_future_s)
        self._columns = block_schema(self.schemas)
        self._resolutions = Resolutions()
        self._writers = WriterSchemas(self._resolutions, schemas_folder, fetch)
        self._own: dict[str, WriterSchema] = {}

    def take(self, messages: Sequence[Message]) -> Taken:
        """Every event of every message, as a row or refused; a bad one never changes another.

        Waits for external models, for as long as it takes.
        """
        taken = self._taken(messages)
        if self._ask is None:
            return taken
        block, unsaid = answered(taken.block, self.schemas, self._ask)
        taken = replace(taken, block=block)
        return without(self.schemas, messages, taken, "external_refused", unsaid) if unsaid else taken

    def _taken(self, messages: Sequence[Message]) -> Taken:
        refused: list[Refused] = []
        single: list[Message] = []
        single_at: list[int] = []
        revised: dict[tuple[str, str, str], list[tuple[int, Message]]] = {}
        read: dict[str, list[tuple[int, EventBlock]]] = {}
        events = 0
        for index, message in enumerate(messages):
            attributes = message.attributes
            encoding = attributes.get("encoding", "")
            if encoding not in BLOCK_ENCODINGS and _SPECIAL.isdisjoint(attributes):
                single.append(message)
                single_at.append(index)
                continue
            try:
                data = self._data(message, is_block=encoding in BLOCK_ENCODINGS)
                if encoding in BLOCK_ENCODINGS:
                    event_type, block = self._block(message, data, encoding)
                    read.setdefault(event_type, []).append((index, block))
                    events += block.count
                    continue
                message = message._replace(data=data)
                key = self._revision(message)
            except BlockError as error:
                refused.append(Refused(index, error.reason, error.detail))
                events += 1
                continue
            if key is None:
                single.append(message)
                single_at.append(index)
            else:
                revised.setdefault(key, []).append((index, message))
                events += 1
        blocks = [self._rows_of(self.schemas[event_type], messages, found) for event_type, found in read.items()]
        blocks += [
            self._revised(self.schemas[event_type], said, text, members)
            for (event_type, said, text), members in revised.items()
        ]
        decoded = self._decoder.decode(single)
        events += len(single)
        at = np.array(single_at, np.int64)
        refused += [one for _, _, bad in blocks for one in bad]
        refused += [Refused(single_at[one.index], one.reason, one.detail) for one in decoded.rejected]
        refused.sort(key=lambda one: one.index)
        if not blocks:
            return Taken(decoded.block, at[decoded.rows], refused, events)
        parts = [(at[decoded.rows], decoded.block)] if decoded.block.num_rows else []
        parts += [(at, rows) for rows, at, _ in blocks if rows.num_rows]
        return Taken(*self._merged(parts), refused, events)

    def _revision(self, message: Message) -> tuple[str, str, str] | None:
        """Event type, encoding and writer's schema of a message that was written with another schema than the app's."""
        try:
            writer = self._writers.of(message.attributes)
        except UnknownSchemaError as error:
            raise BlockError("unknown_schema", str(error)) from error
        only = next(iter(self.schemas)) if len(self.schemas) == 1 else None
        event_type = message.attributes.get("event_type", only)
        encoding = encoding_of(message.attributes)
        if writer is None or event_type not in self.schemas or encoding not in ("json", "avro"):
            return None  # the decoder says what is wrong, if anything
        if len(message.data) > self.max_event_bytes:
            return None
        own = self._own.get(event_type)
        if own is None:
            own = self._own[event_type] = read_schema(self.schemas[event_type].path.read_text(encoding="utf-8"))
        if writer.wire == own.wire and writer.fields == own.fields:
            return None
        resolution = self._resolutions.between(writer, self.schemas[event_type])
        if resolution.refused is not None:
            raise BlockError("incompatible_schema", resolution.refused)
        return event_type, encoding, writer.text

    def _revised(
        self, schema: EventSchema, encoding: str, text: str, members: Sequence[tuple[int, Message]]
    ) -> tuple[pa.RecordBatch, np.ndarray, list[Refused]]:
        """The good rows of messages written with one other schema, where they came from, and the bad ones."""
        writer = self._resolutions.schema(text)
        rows, faults = read_revised(
            [message for _, message in members],
            [message.data for _, message in members],
            encoding,
            writer,
            self._resolutions.between(writer, schema).convert,
            schema,
            self._columns,
            self.max_future_s,
        )
        at = np.array([index for index, _ in members], np.int64)
        keep = np.ones(len(members), bool)
        keep[list(faults)] = False
        return rows.filter(pa.array(keep)), at[keep], [Refused(members[row][0], *faults[row]) for row in sorted(faults)]

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
            if is_block and len(message.data) > most:
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

    def _block(self, message: Message, data: bytes, encoding: str) -> tuple[str, EventBlock]:
        """Event type and events of a message with a block."""
        only = next(iter(self.schemas)) if len(self.schemas) == 1 else None
        event_type = message.attributes.get("event_type", only)
        schema = None if event_type is None else self.schemas.get(event_type)
        if schema is None:
            raise BlockError("unknown_event_type", unknown_type(event_type, self.schemas))
        return schema.name, read_block(data, encoding, schema, limits=self.limits, resolutions=self._resolutions)

    def _rows_of(
        self, schema: EventSchema, messages: Sequence[Message], blocks: Sequence[tuple[int, EventBlock]]
    ) -> tuple[pa.RecordBatch, np.ndarray, list[Refused]]:
        """The good rows of blocks of one event type, where they came from, and the bad ones."""
        found = checked_rows(
            [(messages[index], block) for index, block in blocks],
            schema,
            self._columns,
            limits=self.limits,
            max_future_s=self.max_future_s,
        )
        at = np.array([index for index, _ in blocks])[found.block]
        if not found.faults:
            return found.rows, at, []
        ids, refused = found.rows.column("event_id"), []
        for row in sorted(found.faults):
            number, as_event = int(found.number[row]), blocks[found.block[row]][1].as_event
            own_id = _own_id(schema, ids[row].as_py())
            refused.append(Refused(int(at[row]), *found.faults[row], as_event(number), number, own_id))
        keep = np.ones(len(at), bool)
        keep[list(found.faults)] = False
        return found.rows.filter(pa.array(keep)), at[keep], refused


def encoding_of(attributes: Mapping[str, str]) -> str:
    """How a single event is encoded: as the attribute says, or Pub/Sub of a topic with a schema, or JSON."""
    said = {"JSON": "json", "BINARY": "avro"}.get(attributes.get("googclient_schemaencoding", "JSON"), "")
    return attributes.get("encoding", said)


def _own_id(schema: EventSchema, event_id: object) -> str:
    """The identity as an attribute, for events that do not carry it themselves."""
    return event_id if schema.id is None and isinstance(event_id, str) and len(event_id.encode()) <= 1024 else ""


def without(
    schemas: Mapping[str, EventSchema],
    messages: Sequence[Message],
    taken: Taken,
    reason: str,
    details: Mapping[int, str],
) -> Taken:
    """What was taken, but some rows refused for a reason: by row a sentence."""
    refused = [
        refuse_row(schemas, messages, int(taken.rows[row]), taken.block, row, reason, detail)
        for row, detail in details.items()
    ]
    keep = np.ones(taken.block.num_rows, bool)
    keep[list(details)] = False
    block, rows = taken.block.filter(pa.array(keep)), taken.rows[keep]
    return replace(taken, block=block, rows=rows, refused=taken.refused + refused)


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
