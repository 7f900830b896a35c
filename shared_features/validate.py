"""What an event must be before it is folded: one set of checks for live messages and for history rows.

Nothing that fails gets into a block: its row is left out, named by a stable reason code, and its
neighbours are what they would be without it (promise C4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.clean import Clean, bounds_sentence, clean_block, out_of_bounds
from shared_features.errors import HistoryError
from shared_features.schema import TIMESTAMP, EventSchema, FieldType

REASONS: Final[Mapping[str, str]] = {
    "malformed_json": "the data is no JSON (RFC 8259), or nested too deeply",
    "malformed_avro": "the data is no single Avro datum of the type's schema",
    "unknown_event_type": "the attribute event_type is missing or names no type of the app",
    "unknown_encoding": "the attribute encoding is none of json, avro, avro-file and arrow",
    "missing_field": "a required field is absent or null",
    "wrong_type": "a value is not of its field's type",
    "not_finite": "a number is NaN or infinite",
    "out_of_range": "a number or text is outside what its field or clean rule allows, or no symbol of its enum",
    "timestamp_out_of_range": "a timestamp is outside the years 1970 to 2100",
    "in_the_future": "the event time is more than max_future_s after the publish time",
    "missing_event_id": "the event has no identity: its id field is empty",
    "oversized": "the data is larger than max_event_bytes",
}
"""Every reason for which an event is refused before it is folded. Codes never change their meaning."""

MAX_FUTURE_S: Final = 600
MAX_EVENT_ID_BYTES: Final = 1024
"""A Pub/Sub attribute, which is how an identity travels on, holds no more."""

MIN_TIME_US: Final = 0
END_TIME_US: Final = int(datetime(2101, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
"""Timestamps are in [1970-01-01T00:00:00Z, 2101-01-01T00:00:00Z): the years 1970 to 2100."""

BoolArray = npt.NDArray[np.bool_]
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True, slots=True)
class Rejected:
    """One event that was refused.

    Attributes:
        index: which message of those given, or which row of the block.
        reason: a key of :data:`REASONS`.
        detail: one sentence for people.
    """

    index: int
    reason: str
    detail: str


class Faults:
    """The first fault of each row; rows are numbered within the columns being checked."""

    def __init__(self) -> None:
        self.by_row: dict[int, tuple[str, str]] = {}

    def add(self, row: int, reason: str, detail: str) -> None:
        """Notes a fault unless the row has one already."""
        self.by_row.setdefault(row, (reason, detail))

    def add_where(self, bad: BoolArray, reason: str, detail: Callable[[int], str]) -> None:
        """Notes a fault on every row where ``bad`` holds."""
        for row in np.flatnonzero(bad).tolist():
            if row not in self.by_row:
                self.by_row[row] = (reason, detail(row))


def check_column(values: pa.Array, field: FieldType, label: str, faults: Faults) -> None:
    """Checks one field over rows of its own type: nulls, finite numbers, ranges, symbols.

    Args:
        values: of the field's Arrow type.
        label: ``<type>.<field>``, for the sentences.
    """
    if values.null_count and not field.nullable:
        bad = np.asarray(values.is_null())
        faults.add_where(bad, "missing_field", lambda _: f"{label} is required, but absent or null.")
    if pa.types.is_floating(values.type):
        bad = ~np.isfinite(_numbers(values, np.dtype(np.float64)))
        if bad.any():
            bad &= np.asarray(values.is_valid())
            faults.add_where(
                bad, "not_finite", lambda row: f"{label} must be a finite number, got {values[row].as_py()}."
            )
    elif values.type == TIMESTAMP:
        times = _numbers(values, np.dtype(np.int64))
        bad = (times < MIN_TIME_US) | (times >= END_TIME_US)
        if bad.any():
            bad &= np.asarray(values.is_valid())
            faults.add_where(bad, "timestamp_out_of_range", lambda row: time_range(label, int(times[row])))
    elif field.avro == "int":
        numbers = _numbers(values, np.dtype(np.int64))
        bad = (numbers < -(2**31)) | (numbers >= 2**31)
        if bad.any():
            bad &= np.asarray(values.is_valid())
            faults.add_where(bad, "out_of_range", lambda row: f"{label} must fit 32 bits, got {numbers[row]}.")
    elif field.symbols:
        bad = ~np.asarray(pc.is_in(values, value_set=pa.array([*field.symbols, None], pa.string())))
        if bad.any():
            faults.add_where(
                bad,
                "out_of_range",
                lambda row: f"{label} must be one of {', '.join(field.symbols)}, got {shown(values[row].as_py())}.",
            )


def _check_bounds(values: pa.Array, rule: Clean, field: FieldType, label: str, faults: Faults) -> None:
    bad = out_of_bounds(values, rule, field)
    faults.add_where(bad, "out_of_range", lambda row: bounds_sentence(label, rule, values[row].as_py()))


def time_range(label: str, micros: int) -> str:
    """The sentence for a timestamp outside the allowed years."""
    return f"{label} must lie in the years 1970 to 2100, got {micros} microseconds since 1970."


def check_ids(event_ids: pa.Array, label: str, faults: Faults) -> None:
    """Checks that every event has an identity of 1 to 1,024 bytes."""
    lengths = np.asarray(pc.binary_length(event_ids).fill_null(0))
    bad = (lengths == 0) | (lengths > MAX_EVENT_ID_BYTES)
    if bad.any():
        faults.add_where(lengths == 0, "missing_event_id", lambda _: f"{label} must identify the event, got nothing.")
        faults.add_where(
            lengths > MAX_EVENT_ID_BYTES,
            "out_of_range",
            lambda row: f"{label} may have at most {MAX_EVENT_ID_BYTES} bytes, got {lengths[row]}.",
        )


def check_future(
    event_times: pa.Array, publish_times: pa.Array, max_future_s: float, label: str, faults: Faults
) -> None:
    """Checks that no event is later than its publication by more than ``max_future_s``.

    A clock far ahead would move the greatest event time of its key, and cut off honest events as too late
    (promise C2). Where the publish time is null (unknown), nothing is checked.
    """
    times = _numbers(event_times, np.dtype(np.int64))
    published = _numbers(publish_times, np.dtype(np.int64))
    bad = times > published + int(max_future_s * 1_000_000)
    if bad.any():
        bad &= np.asarray(event_times.is_valid()) & np.asarray(publish_times.is_valid())
        faults.add_where(
            bad,
            "in_the_future",
            lambda row: (
                f"{label} may be at most {max_future_s:g} s after the publish time, got "
                f"{(int(times[row]) - int(published[row])) / 1e6:g} s."
            ),
        )


class Validated(NamedTuple):
    """What :func:`validate_block` found.

    Attributes:
        ok: bool per row.
        rejected: why, for each row that is not.
        block: all rows as given, cleaned by the rules of their event types.
    """

    ok: BoolArray
    rejected: list[Rejected]
    block: pa.RecordBatch


def validate_block(
    block: pa.RecordBatch,
    schemas: Mapping[str, EventSchema],
    max_future_s: float = MAX_FUTURE_S,
) -> Validated:
    """Cleans and checks rows that come as Arrow already, by the rules and with the codes of live messages.

    Args:
        block: the envelope and the fields of every type in ``schemas``, flattened; further columns are not
            looked at, nor are a type's columns on rows of other types.
        schemas: event type to schema.
        max_future_s: see :data:`REASONS`; rows without a publish time are not checked for it.

    Raises:
        HistoryError: a column is missing or has another Arrow type: then no row can be right.
    """
    _check_columns(block, schemas)
    block = clean_block(block, schemas.values())
    types = block.column("event_type")
    found: dict[int, tuple[str, str]] = {}
    known = np.zeros(block.num_rows, np.bool_)
    for name, schema in schemas.items():
        here = np.asarray(pc.equal(types, name).fill_null(False))
        known |= here
        rows = np.flatnonzero(here)
        if len(rows) == 0:
            continue
        part = block if len(rows) == block.num_rows else block.take(pa.array(rows))
        for row, fault in _faults(part, schema, max_future_s).by_row.items():
            found[int(rows[row])] = fault
    for row in np.flatnonzero(~known).tolist():
        found[row] = ("unknown_event_type", unknown_type(types[row].as_py(), schemas))
    ok = np.ones(block.num_rows, np.bool_)
    ok[list(found)] = False
    return Validated(ok, [Rejected(row, *found[row]) for row in sorted(found)], block)


def check_rows(part: pa.RecordBatch, schema: EventSchema, max_future_s: float) -> tuple[pa.RecordBatch, Faults]:
    """Cleans rows of one event type and checks them: every way into a block goes through here or `validate_block`.

    Args:
        part: decoded rows of the type.
        schema: its fields, and its clean rules.
        max_future_s: see :data:`REASONS`.

    Returns:
        All rows, cleaned, and the first fault of each: the fields in the schema's order, then identity, then the clock.
    """
    part = clean_block(part, [schema])
    return part, _faults(part, schema, max_future_s)


def _faults(part: pa.RecordBatch, schema: EventSchema, max_future_s: float) -> Faults:
    faults = Faults()
    times = part.column("event_time")
    for field in schema.fields.values():
        if field.name == schema.time:
            check_column(times, field, f"{schema.name}.{field.name}", faults)
        elif field.name != schema.id:
            label = f"{schema.name}.{field.name}"
            column = part.column(label)
            check_column(column, field, label, faults)
            if field.name in schema.clean:
                _check_bounds(column, schema.clean[field.name], field, label, faults)
    check_ids(part.column("event_id"), f"{schema.name}.{schema.id or 'event_id'}", faults)
    label = f"{schema.name}.{schema.time}"
    check_future(times, part.column("publish_time"), max_future_s, label, faults)
    return faults


def unknown_type(got: str | None, known: Iterable[str]) -> str:
    """The sentence for an event of no known type."""
    return f"event_type must be one of {', '.join(known)}, got {'none' if got is None else shown(got)}."


def shown(value: object) -> str:
    """A value as it stands in a sentence: short, on one line."""
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_columns(block: pa.RecordBatch, schemas: Mapping[str, EventSchema]) -> None:
    wanted = {
        "event_type": pa.string(),
        "event_id": pa.string(),
        "event_time": TIMESTAMP,
        "publish_time": TIMESTAMP,
    }
    for schema in schemas.values():
        wanted.update({field.name: field.type for field in schema.block_fields})
    for name, kind in wanted.items():
        index = block.schema.get_field_index(name)
        got = block.schema.field(index).type if index >= 0 else "no such column"
        if got != kind:
            raise HistoryError(
                f"Column {name!r} of the events must be {kind}, got {got}; write the events with their schema."
            )


def _numbers(values: pa.Array, dtype: np.dtype[Number]) -> npt.NDArray[Number]:
    """The raw numbers of a 64-bit column, without a copy; arbitrary where the value is null."""
    if len(values) == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(values.buffers()[1], dtype, count=len(values), offset=values.offset * 8)
