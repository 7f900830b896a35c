"""Parsed JSON values of one field → one Arrow column, with a fault for each value of another type.

The usual column is converted by one Arrow call; only a column with an unusual value (Avro's JSON form of
a union, text where a number belongs, an integer beyond 64 bits) is looked at value by value. Both ways
give the same value for the same JSON: what a row means never depends on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from shared_features.schema import TIMESTAMP, FieldType
from shared_features.validate import END_TIME_US, Faults, shown, time_range

_NONE: Final = type(None)
_INTEGERS: Final = frozenset({int, _NONE})
_NUMBERS: Final = frozenset({int, float, _NONE})
_TEXTS: Final = frozenset({str, _NONE})
_BOOLS: Final = frozenset({bool, _NONE})

_INT64: Final = 2**63

# RFC 3339, and what differs from it only in the eye: a blank for T, a zone without colon. Fractions go to
# the nanosecond, since some clocks print that; what lies below the microsecond is cut off.
_RFC3339: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:?[0-9]{2})$"
_BELOW_MICROS: Final = r"(\.[0-9]{6})[0-9]+"


def json_column(values: Sequence[Any], field: FieldType, label: str, faults: Faults) -> pa.Array:
    """One field's values as an Arrow column.

    Args:
        values: what the JSON parser gave, None where the field is absent or null.
        field: what the values must be.
        label: ``<type>.<field>``, for the sentences.
        faults: gets ``wrong_type``, ``out_of_range``, ``not_finite`` or ``timestamp_out_of_range`` for
            values that the column cannot hold; null stands in their place.
    """
    if field.arrow == TIMESTAMP:
        return _timestamps(values, field, label, faults)
    kinds, clean = _PLAIN[field.arrow]
    if kinds.issuperset(map(type, values)):
        try:
            return pa.array(values, field.arrow)
        except (pa.ArrowInvalid, OverflowError):  # an integer beyond 64 bits, or beyond 53 for a float
            pass
    return pa.array([clean(value, row, field, label, faults) for row, value in enumerate(values)], field.arrow)


def _unwrapped(value: Any, field: FieldType) -> Any:
    """The value inside Avro's JSON form of an optional value: ``{"double": 3.0}`` is 3.0."""
    if field.nullable and type(value) is dict and len(value) == 1:
        ((branch, inner),) = value.items()
        if branch in field.branch and inner is not None:
            return inner
    return value


def _integer(value: Any, row: int, field: FieldType, label: str, faults: Faults) -> int | None:
    value = _unwrapped(value, field)
    if type(value) is int and -_INT64 <= value < _INT64:
        return value
    if value is None:
        return None
    if type(value) is int or (type(value) is float and abs(value) >= _INT64):
        faults.add(row, "out_of_range", f"{label} must fit 64 bits, got {shown(value)}.")
    else:
        faults.add(row, "wrong_type", f"{label} must be an integer, got {shown(value)}.")
    return None


def _number(value: Any, row: int, field: FieldType, label: str, faults: Faults) -> float | None:
    value = _unwrapped(value, field)
    if type(value) is float or value is None:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            faults.add(row, "out_of_range", f"{label} must fit a 64-bit float, got {shown(value)}.")
            return None
    faults.add(row, "wrong_type", f"{label} must be a number, got {shown(value)}.")
    return None


def _bool(value: Any, row: int, field: FieldType, label: str, faults: Faults) -> bool | None:
    value = _unwrapped(value, field)
    if type(value) is bool or value is None:
        return value
    faults.add(row, "wrong_type", f"{label} must be true or false, got {shown(value)}.")
    return None


def _text(value: Any, row: int, field: FieldType, label: str, faults: Faults) -> str | None:
    value = _unwrapped(value, field)
    if type(value) is str or value is None:
        return value
    faults.add(row, "wrong_type", f"{label} must be a string, got {shown(value)}.")
    return None


_Clean = Callable[[Any, int, FieldType, str, Faults], Any]
_PLAIN: Final[Mapping[pa.DataType, tuple[frozenset[object], _Clean]]] = {
    pa.int64(): (_INTEGERS, _integer),
    pa.float64(): (_NUMBERS, _number),
    pa.bool_(): (_BOOLS, _bool),
    pa.string(): (_TEXTS, _text),
}


def _timestamps(values: Sequence[Any], field: FieldType, label: str, faults: Faults) -> pa.Array:
    """Integers in the schema's unit, or RFC 3339 text with a zone."""
    per_unit = 1_000 if field.avro == "timestamp-millis" else 1
    kinds = set(map(type, values))
    if kinds <= _INTEGERS:
        column = _scaled(values, per_unit)
        if column is not None:
            return column
    elif kinds <= _TEXTS:
        column = _parsed(pa.array(values, pa.string()))
        if column is not None:
            return column
    clean = [_instant(value, row, field, per_unit, label, faults) for row, value in enumerate(values)]
    return pa.array(clean, pa.int64()).view(TIMESTAMP)


def _scaled(values: Sequence[Any], per_unit: int) -> pa.Array | None:
    """Integer instants as microseconds; None if one of them does not fit."""
    try:
        column = pa.array(values, pa.int64())
        if per_unit != 1:
            column = pc.multiply_checked(column, per_unit)
    except (pa.ArrowInvalid, OverflowError):
        return None
    return column.view(TIMESTAMP)


def _parsed(texts: pa.Array) -> pa.Array | None:
    """RFC 3339 texts as microseconds; None if one of them is no instant."""
    if not pc.all(pc.match_substring_regex(texts, _RFC3339), min_count=0).as_py():
        return None
    for cut in (False, True):
        try:
            if cut:
                texts = pc.replace_substring_regex(texts, _BELOW_MICROS, r"\1")
            return pc.cast(texts, TIMESTAMP)
        except pa.ArrowInvalid:
            continue
    return None


def _instant(value: Any, row: int, field: FieldType, per_unit: int, label: str, faults: Faults) -> int | None:
    value = _unwrapped(value, field)
    if value is None:
        return None
    if type(value) is str:
        column = _parsed(pa.array([value], pa.string()))
        if column is not None:
            micros: int = column.view(pa.int64())[0].as_py()
            return micros
    elif type(value) is int or (type(value) is float and abs(value) >= _INT64 and math.isfinite(value)):
        micros = int(value) * per_unit
        if 0 <= micros < END_TIME_US:
            return micros
        faults.add(row, "timestamp_out_of_range", time_range(label, micros))
        return None
    faults.add(
        row,
        "wrong_type",
        f"{label} must be an integer of {'milli' if per_unit > 1 else 'micro'}seconds since 1970, or RFC 3339 "
        f"text with a zone such as 2013-11-01T05:00:00Z, got {shown(value)}.",
    )
    return None
