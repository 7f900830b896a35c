"""Messages → blocks: each message is decoded, checked, and either one row or one rejection.

JSON is read strictly (RFC 8259: no NaN, no trailing text, valid UTF-8; of a name that comes twice the last
counts), Avro as one binary datum of the type's schema without anything behind it. Fields that the schema
does not name are ignored, as Avro readers do. A missing optional field is null; the schema's ``default``
is never filled in. Negative zero stays what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from fastavro.schema import parse_schema

from shared_features.blocks import block_schema, concat_blocks, empty_block
from shared_features.encode import encode_event, rows_to_messages
from shared_features.json_columns import json_column
from shared_features.parse import parse_avro, parse_json, wire_schema
from shared_features.schema import TIMESTAMP, EventSchema
from shared_features.validate import (
    MAX_FUTURE_S,
    REASONS,
    Faults,
    Rejected,
    check_column,
    check_rows,
    shown,
    unknown_type,
    validate_block,
)

__all__ = [
    "REASONS",
    "Decoded",
    "Decoder",
    "MessageLike",
    "Rejected",
    "encode_event",
    "rows_to_messages",
    "validate_block",
]

MAX_EVENT_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 64


class Received(NamedTuple):
    """A message as the decoder takes it, for events that are checked before they are published."""

    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    publish_time_us: int


class MessageLike(Protocol):
    """What the decoder needs of a received message; ``streaming.topics.Message`` is one."""

    @property
    def data(self) -> bytes:
        """One event."""
        ...

    @property
    def attributes(self) -> Mapping[str, str]:
        """``event_type``, ``encoding`` and ``event_id``, each optional."""
        ...

    @property
    def message_id(self) -> str:
        """What the topic calls the message; the event's identity if it has no other."""
        ...

    @property
    def publish_time_us(self) -> int:
        """Microseconds since 1970; 0 means unknown."""
        ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of some messages: every one is either a row of the block or rejected.

    Attributes:
        block: the accepted events in the order of the messages, with the columns of
            :func:`shared_features.blocks.block_schema`.
        rows: int64, for each row of the block the index of its message.
        rejected: the others, by index.
    """

    block: pa.RecordBatch
    rows: npt.NDArray[np.int64]
    rejected: list[Rejected]


class Decoder:
    """Decodes messages of one app.

    Args:
        schemas: event type to schema. A message may leave its attribute ``event_type`` out if there is one.
        max_event_bytes: larger data is refused as ``oversized``.
        max_future_s: an event time further after its publish time is refused as ``in_the_future``.
        max_depth: JSON nested deeper is refused, before it is parsed.
    """

    def __init__(
        self,
        schemas: Mapping[str, EventSchema],
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
        max_future_s: float = MAX_FUTURE_S,
        max_depth: int = MAX_DEPTH,
    ) -> None:
        self.schemas = dict(schemas)
        self.schema = block_schema(self.schemas)
        self.max_event_bytes = max_event_bytes
        self.max_future_s = max_future_s
        self.max_depth = max_depth
        self._only = next(iter(self.schemas)) if len(self.schemas) == 1 else None
        self._wire: dict[str, Any] = {n: parse_schema(wire_schema(s)) for n, s in self.schemas.items()}

    def decode(self, messages: Sequence[MessageLike]) -> Decoded:
        """Decodes each message by itself: a bad one never changes the row of another.

        Args:
            messages: any number, in the order in which they are to be folded.
        """
        rejected: dict[int, tuple[str, str]] = {}
        parts: list[pa.RecordBatch] = []
        order: list[int] = []
        for name, (json_indexes, avro_indexes) in self._sorted_out(messages, rejected).items():
            indexes = json_indexes + avro_indexes
            faults = Faults()
            members = [messages[index] for index in indexes]
            part = self._part(self.schemas[name], members, len(json_indexes), faults)
            if faults.by_row:
                rejected.update((indexes[row], fault) for row, fault in faults.by_row.items())
                good = [row for row in range(len(indexes)) if row not in faults.by_row]
                part, indexes = part.take(pa.array(good, pa.int64())), [indexes[row] for row in good]
            parts.append(part)
            order += indexes
        block = concat_blocks(parts) if parts else empty_block(self.schema)
        rows = np.array(order, np.int64)
        if len(rows) > 1 and not (rows[1:] > rows[:-1]).all():
            sorting = np.argsort(rows)
            block, rows = block.take(pa.array(sorting)), rows[sorting]
        return Decoded(block, rows, [Rejected(index, *rejected[index]) for index in sorted(rejected)])

    def _sorted_out(
        self, messages: Sequence[MessageLike], rejected: dict[int, tuple[str, str]]
    ) -> dict[str, tuple[list[int], list[int]]]:
        """By event type: the indexes of its JSON messages, and of its Avro messages."""
        groups: dict[str, tuple[list[int], list[int]]] = {}
        for index, message in enumerate(messages):
            attributes = message.attributes
            event_type = attributes.get("event_type", self._only)
            encoding = _encoding(attributes)
            if event_type is None or event_type not in self.schemas:
                rejected[index] = ("unknown_event_type", unknown_type(event_type, self.schemas))
            elif len(message.data) > self.max_event_bytes:
                detail = f"An event may have {self.max_event_bytes} bytes at most, got {len(message.data)}."
                rejected[index] = ("oversized", detail)
            elif encoding not in ("json", "avro"):
                detail = f"The attribute encoding must be json or avro, got {shown(encoding)}."
                rejected[index] = ("unknown_encoding", detail)
            else:
                group = groups.get(event_type)
                if group is None:
                    group = groups[event_type] = ([], [])
                group[encoding == "avro"].append(index)
        return groups

    def _part(self, schema: EventSchema, members: list[MessageLike], json_count: int, faults: Faults) -> pa.RecordBatch:
        """Messages of one type as a block of one row each; first the JSON ones, then the Avro ones."""
        data = [message.data for message in members]
        records = parse_json(data[:json_count], self.max_depth, faults)
        if json_count < len(data):
            wire = self._wire[schema.name]
            records += parse_avro(data[json_count:], wire, schema.name, faults, json_count)
        values = {
            name: json_column(column, schema.fields[name], f"{schema.name}.{name}", faults)
            for name, column in _transposed(records, list(schema.fields)).items()
        }
        if schema.id:
            check_column(values[schema.id], schema.fields[schema.id], f"{schema.name}.{schema.id}", faults)
        columns = {f"{schema.name}.{name}": column for name, column in values.items()}
        columns["event_type"] = pa.repeat(schema.name, len(members))
        columns["event_id"] = _identities(values[schema.id] if schema.id else None, members)
        columns["event_time"] = values[schema.time]
        published = [message.publish_time_us or None for message in members]
        columns["publish_time"] = pa.array(published, pa.int64()).view(TIMESTAMP)
        columns["message_id"] = pa.array([message.message_id for message in members], pa.string())
        arrays = [
            columns[field.name] if field.name in columns else pa.nulls(len(members), field.type)
            for field in self.schema
        ]
        part = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        part, found = check_rows(part, schema, self.max_future_s)
        for row, fault in found.by_row.items():
            faults.add(row, *fault)
        return part


def _encoding(attributes: Mapping[str, str]) -> str:
    """``encoding``, or what Pub/Sub itself says of a topic with a schema, or else JSON."""
    encoding = attributes.get("encoding")
    if encoding is None:
        said = attributes.get("googclient_schemaencoding", "JSON")
        encoding = {"JSON": "json", "BINARY": "avro"}.get(said, said)
    return encoding


def _transposed(records: list[dict[str, Any]], names: list[str]) -> dict[str, Sequence[Any]]:
    """Records as one sequence per name; None where a record lacks it."""
    if len(names) > 1 and records:
        try:
            columns = zip(*map(operator.itemgetter(*names), records), strict=True)
            return dict(zip(names, columns, strict=True))
        except KeyError:
            pass
    return {name: [record.get(name) for record in records] for name in names}


def _identities(own: pa.Array | None, members: list[MessageLike]) -> pa.Array:
    """The id field, else the attribute ``event_id``, else the message id (promise C5)."""
    if own is not None and own.null_count == 0:
        return own
    given = [message.attributes.get("event_id") or message.message_id for message in members]
    if own is None:
        return pa.array(given, pa.string())
    return pc.coalesce(own, pa.array(given, pa.string()))
