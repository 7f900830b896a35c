"""Aggregates over the past of a key: what can be asked of the events that a key has seen.

A window of length w at an event of time t covers the events of the same key that were folded before it, or it
itself, with event time in (t − w, t]; ``closed="both"`` makes it [t − w, t], ``include_self=False`` leaves the
event out. Nulls are skipped; an empty window gives null, and a count of 0 (contract C2, C4).

Means, sums and variances are computed in integers: a value is rounded once to its ``scale`` (1 for integers and
booleans, 1e-6 for floats unless said), so that the result does not depend on the order of adding (C3).
``min``, ``max``, ``first``, ``last`` and ``lag`` return values as they came, unrounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, Expression, Field

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_LONGEST_US = 400 * _UNITS_US["d"]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def duration_us(duration: str | timedelta, of: str) -> int:
    """Microseconds of a duration such as ``"90s"``, ``"30m"``, ``"1h"``, ``"7d"`` or a ``timedelta``.

    Raises:
        DefinitionError: it cannot be read, is not above 0, or exceeds 400 days; ``of`` names the place.

    >>> duration_us("3h", of="an example")
    10800000000
    """
    if isinstance(duration, timedelta):
        length_us = duration // timedelta(microseconds=1)
    else:
        match = re.fullmatch(r"(\d{1,9})(ms|s|m|h|d)", duration)
        if not match:
            raise DefinitionError(f"{of} got the duration {duration!r}, wanted one such as '90s', '30m', '1h', '7d'")
        length_us = int(match[1]) * _UNITS_US[match[2]]
    if not 0 < length_us <= _LONGEST_US:
        raise DefinitionError(f"{of} got the duration {duration!r}, wanted more than 0 and at most 400 days")
    return length_us


class Key:
    """What a keyed stage groups by: for each event type that takes part, the field that holds the key.

    >>> by_origin = Key("origin", departed.origin, weather.origin)  # doctest: +SKIP
    """

    def __init__(self, name: str, *fields: Field) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"key name {name!r} is not a lower-case name of at most 64 letters, digits and _")
        if not fields:
            raise DefinitionError(f"key {name!r} names no field: give one field per event type that takes part")
        self.name = name
        self.fields: dict[str, Field] = {}
        for field in fields:
            if not isinstance(field, Field):
                raise DefinitionError(f"key {name!r} got {field!r}, wanted a field of an event type")
            if field.event_type in self.fields:
                raise DefinitionError(f"key {name!r} names two fields of event type {field.event_type!r}, wanted one")
            if field.dtype not in ("string", "int64"):
                raise DefinitionError(f"key {name!r} uses {field.key} of type {field.dtype}, wanted string or integer")
            self.fields[field.event_type] = field
        if len({field.dtype for field in fields}) > 1:
            raise DefinitionError(f"key {name!r} mixes string and integer fields: wanted one type in all event types")
        self.dtype = fields[0].dtype

    @property
    def definition(self) -> list[Any]:
        """The key as plain JSON values, for the fingerprint."""
        return [self.name, {event_type: field.field for event_type, field in sorted(self.fields.items())}]


SUMMED = ("sum", "mean", "variance", "variance_sample", "std", "std_sample")


class Aggregate(Expression):
    """One aggregate of one value over one window of one key. Built by the functions below."""

    def __init__(
        self,
        operation: str,
        value: Expression,
        *,
        by: Key,
        over: str | timedelta,
        where: Expression | None = None,
        closed: str = "right",
        include_self: bool = True,
        scale: float | None = None,
        k: int = 0,
    ) -> None:
        place = f"{operation} of {value.key} by {by.name!r}"
        self.operation, self.value, self.by, self.where, self.k = operation, value, by, where, k
        self.window_us = duration_us(over, place)
        if closed not in ("right", "both"):
            raise DefinitionError(f"{place} got closed={closed!r}, wanted 'right' (t-w, t] or 'both' [t-w, t]")
        self.closed, self.include_self = closed, include_self
        self.event_type = _only_event_type(place, [value] if where is None else [value, where])
        if self.event_type not in by.fields:
            raise DefinitionError(
                f"{place} reads event type {self.event_type!r}, which key {by.name!r} does not name: "
                f"add its field to the key, which names {sorted(by.fields)}"
            )
        if where is not None and where.dtype != "bool":
            raise DefinitionError(f"{place} got a {where.dtype} as where=, wanted a boolean")
        self.scale_inverse = self._scale_inverse(place, scale) if operation in SUMMED else 1
        self.dtype = self._result_dtype(place)
        self.definition = [
            operation,
            value.definition,
            {
                "by": by.definition,
                "over_us": self.window_us,
                "where": None if where is None else where.definition,
                "closed": closed,
                "include_self": include_self,
                "scale_inverse": self.scale_inverse,
                "k": k,
            },
        ]

    def _scale_inverse(self, place: str, scale: float | None) -> int:
        if scale is None:
            return 1_000_000 if self.value.dtype == "float64" else 1
        inverse = round(1 / scale) if 0 < scale <= 1 else 0
        if inverse < 1 or inverse > 10**12 or abs(inverse * scale - 1) > 1e-9:
            raise DefinitionError(f"{place} got scale={scale!r}, wanted 1 divided by a whole number up to 1e12")
        return inverse

    def _result_dtype(self, place: str) -> str:
        if self.operation == "count":
            return "int64"
        if self.operation == "seconds_since_last":
            return "float64"
        if self.operation in SUMMED:
            if self.value.dtype not in NUMERIC:
                raise DefinitionError(f"{place} got a {self.value.dtype}, wanted a number or a boolean")
            whole = self.operation == "sum" and self.value.dtype != "float64"
            return "int64" if whole else "float64"
        if self.value.dtype not in (*NUMERIC, "timestamp"):
            raise DefinitionError(f"{place} got a {self.value.dtype}, wanted a number, boolean or timestamp")
        return self.value.dtype


def _only_event_type(place: str, expressions: Sequence[Expression]) -> str:
    found = set()
    for expression in expressions:
        for node in expression.walk():
            if isinstance(node, Aggregate):
                raise DefinitionError(
                    f"{place} contains the aggregate {node.key}: aggregates take row-level inputs only, "
                    "combine aggregates by arithmetic outside instead"
                )
            if isinstance(node, Field):
                found.add(node.event_type)
    if len(found) != 1:
        raise DefinitionError(f"{place} reads event types {sorted(found)}, wanted fields of exactly one")
    return found.pop()


def count(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Number of non-null values in the window, int64; 0 in an empty window."""
    return Aggregate("count", value, by=by, over=over, **options)


def sum(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Sum: int64 of integers (null if it overflows), float64 of floats rounded once to ``scale``."""
    return Aggregate("sum", value, by=by, over=over, **options)


def mean(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Mean, float64: the exact mean of the values at their ``scale``, rounded once.

    The mean of a boolean is the share of rows for which it is true.
    """
    return Aggregate("mean", value, by=by, over=over, **options)


def variance(value: Expression, *, by: Key, over: str | timedelta, sample: bool = False, **options: Any) -> Aggregate:
    """Population variance (``sample=True``: divided by n − 1, null for n = 1), float64, rounded once."""
    return Aggregate("variance_sample" if sample else "variance", value, by=by, over=over, **options)


def std(value: Expression, *, by: Key, over: str | timedelta, sample: bool = False, **options: Any) -> Aggregate:
    """Standard deviation: the IEEE square root of `variance`."""
    return Aggregate("std_sample" if sample else "std", value, by=by, over=over, **options)


def min(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Least value in the window, of the value's own type."""
    return Aggregate("min", value, by=by, over=over, **options)


def max(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Greatest value in the window, of the value's own type."""
    return Aggregate("max", value, by=by, over=over, **options)


def first(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Value of the earliest event in the window by (event time, identity)."""
    return Aggregate("first", value, by=by, over=over, **options)


def last(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Value of the latest event in the window by (event time, identity)."""
    return Aggregate("last", value, by=by, over=over, **options)


def lag(value: Expression, k: int, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Value k events before the latest in the window; null if the window has no more than k."""
    if not isinstance(k, int) or not 1 <= k <= 1000:
        raise DefinitionError(f"lag of {value.key} got k={k!r}, wanted a whole number from 1 to 1000")
    return Aggregate("lag", value, by=by, over=over, k=k, **options)


def seconds_since_last(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Seconds from the latest non-null value in the window to this event's time, float64, at least 0."""
    return Aggregate("seconds_since_last", value, by=by, over=over, **options)
