"""Arrow columns of strangers as columns of our own: the map of types, and a fault for each value that does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.schema import TIMESTAMP, FieldType
from shared_features.validate import END_TIME_US, Faults, time_range
from streaming.arrow_frames import FrameError, check_frames

_PER_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}


def read_stream(data: bytes, *, max_rows: int, max_bytes: int) -> pa.RecordBatch:
    """An Arrow IPC stream as one batch, validated in full.

    Raises:
        FrameError: it is no such stream, or has columns of nested, dictionary or extension types.
        FrameLimitError: it is too large.
    """
    check_frames(data, max_rows=max_rows, max_bytes=max_bytes)
    try:
        with pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(use_threads=False)) as reader:
            names = reader.schema.names
            if len(set(names)) != len(names):
                raise FrameError("two columns have one name")
            for field in reader.schema:
                if not _is_plain(field.type) or b"ARROW:extension:name" in (field.metadata or {}):
                    raise FrameError(
                        f"column {field.name[:80]!r} is {str(field.type)[:80]}; wanted numbers, booleans, texts or "
                        "timestamps"
                    )
            table = pa.Table.from_batches(list(reader), reader.schema)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(str(error).partition("\n")[0]) from error
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def _is_plain(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
    )


def arrow_column(values: pa.Array, field: FieldType, label: str, faults: Faults) -> pa.Array:
    """A column of a field's own Arrow type; null, and a fault, where a value cannot be one.

    Args:
        values: integers of any width for numbers and for instants in the schema's unit, floats of any width for
            floats, booleans, text, timestamps of any unit with a zone.
        field: what the values must be.
        label: ``<type>.<field>``, for the sentences.
        faults: gets ``wrong_type``, ``out_of_range`` or ``timestamp_out_of_range``.
    """
    kind = values.type
    if kind == field.arrow:
        return values
    if pa.types.is_null(kind):
        return pa.nulls(len(values), field.arrow)
    if field.arrow == TIMESTAMP:
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            return _instants(values, label, faults)
        if pa.types.is_integer(kind):
            unit = "ms" if field.avro == "timestamp-millis" else "us"
            whole = _integers(values, label, faults)
            return _instants(whole.view(pa.timestamp(unit, "UTC")), label, faults)
    elif field.arrow == pa.int64() and pa.types.is_integer(kind):
        return _integers(values, label, faults)
    elif field.arrow == pa.float64() and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return values.cast(pa.float64(), safe=False)
    elif field.arrow == pa.string() and pa.types.is_large_string(kind):
        return values.cast(pa.string())
    wanted = f"must be {_wanted(field)}, got {kind}"
    faults.add_where(np.asarray(values.is_valid()), "wrong_type", lambda _: f"{label} {wanted}.")
    return pa.nulls(len(values), field.arrow)


def _wanted(field: FieldType) -> str:
    if field.arrow == TIMESTAMP:
        return "a timestamp with a zone, or an integer in the schema's unit"
    return {pa.int64(): "an integer", pa.float64(): "a number", pa.bool_(): "a boolean"}.get(field.arrow, "a string")


def _integers(values: pa.Array, label: str, faults: Faults) -> pa.Array:
    if values.type != pa.uint64():
        return values.cast(pa.int64())
    large = np.asarray(pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())).fill_null(False))
    if large.any():
        faults.add_where(large, "out_of_range", lambda row: f"{label} must fit 64 bits, got {values[row].as_py()}.")
        values = pc.if_else(pa.array(large), pa.scalar(None, pa.uint64()), values)
    return values.cast(pa.int64())


def _instants(values: pa.Array, label: str, faults: Faults) -> pa.Array:
    """Microseconds; what lies below them is cut off."""
    numbers = values.view(pa.int64())
    unit = values.type.unit
    if unit == "ns":
        return pc.floor(pc.divide(numbers, 1000)).cast(pa.int64()).view(TIMESTAMP)
    per_unit = _PER_UNIT_US[unit]
    outside = np.asarray(
        pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, END_TIME_US // per_unit)).fill_null(False)
    )
    if per_unit > 1 and outside.any():
        faults.add_where(
            outside,
            "timestamp_out_of_range",
            lambda row: time_range(label, int(numbers[row].as_py()) * per_unit),
        )
        numbers = pc.if_else(pa.array(outside), pa.scalar(None, pa.int64()), numbers)
    return pc.multiply(numbers, per_unit).view(TIMESTAMP)


def plain_value(values: pa.Array, row: int, field: FieldType | None) -> Any:
    """One value as it stands in a single event's JSON, so that it is refused there for the same reason."""
    one = values.slice(row, 1)
    kind = one.type
    if pa.types.is_timestamp(kind):
        number = one.view(pa.int64())[0].as_py()
        if number is None or kind.tz is None or field is None or field.arrow != TIMESTAMP:
            return None if number is None else f"{number} {kind}"
        micros = number // 1000 if kind.unit == "ns" else number * _PER_UNIT_US[kind.unit]
        if field.avro != "timestamp-millis":
            return micros
        return micros // 1000 if micros % 1000 == 0 else pc.strftime(one, "%Y-%m-%dT%H:%M:%SZ")[0].as_py()
    if pa.types.is_date(kind):
        return one.cast(pa.string())[0].as_py()
    value = one[0].as_py()
    return plain_text(value) if isinstance(value, bytes) else value


def plain_text(value: object) -> Any:
    """What JSON has no form for: bytes as Avro's JSON encoding has them, which no text can be taken for."""
    return {"bytes": value.decode("latin-1")} if isinstance(value, bytes) else str(value)
