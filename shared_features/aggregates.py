"""Aggregates over the past of a key: what can be asked of the events that a key has seen.

A window of length w at an event of time t covers the events of the same key that were folded before it, or it
itself, with event time in (t − w, t]; ``closed="both"`` makes it [t − w, t], ``include_self=False`` leaves the
event out. Nulls are skipped; an empty window gives null, and a count of 0 (contract C2, C4).

A window ``over="10 events"`` holds the last ten events of the key that carry the value, by (event time, identity),
with event time up to t. It has no limit in time; behind the lateness L it reaches the ten latest of the events
older than M - L, where M is the newest event time of the key.

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
from shared_features.keys import Key
from shared_features.lists import Listed

_UNITS_US = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_LONGEST_US = 400 * _UNITS_US["d"]
_EVENTS = re.compile(r"(\d{1,9}) events?")
MOST_EVENTS = 10_000


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


SUMMED = ("sum", "mean", "variance", "variance_sample", "std", "std_sample")
SCALED = (*SUMMED, "slope", "decayed_sum", "decayed_mean")
"""Operations whose values are rounded once to their scale and then added as integers."""


class Aggregate(Expression):
    """One aggregate of one value over one window of one key. Built by the functions below.

    Attributes:
        window_us: length of the event-time window in microseconds; 0 for a window of the last n events.
        window_events: n for a window of the last n events; 0 for an event-time window.
        half_life_us: of the decaying aggregates; 0 for the others.
    """

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
        half_life: str | timedelta | None = None,
    ) -> None:
        place = f"{operation} of {value.key} by {by.name!r}"
        self.operation, self.value, self.by, self.where, self.k = operation, value, by, where, k
        self.window_us, self.window_events = _window(over, place)
        self.half_life_us = 0 if half_life is None else duration_us(half_life, f"half_life= of {place}")
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
        self.scale_inverse = self._scale_inverse(place, scale) if operation in SCALED else 1
        self.dtype = self._result_dtype(place)
        options: dict[str, Any] = {
            "by": by.definition,
            "over_us": self.window_us,
            "where": None if where is None else where.definition,
            "closed": closed,
            "include_self": include_self,
            "scale_inverse": self.scale_inverse,
            "k": k,
        }
        if self.window_events:
            options["over_events"] = self.window_events
        if self.half_life_us:
            options["half_life_us"] = self.half_life_us
        self.definition = [operation, value.definition, options]

    def _scale_inverse(self, place: str, scale: float | None) -> int:
        if scale is None:
            return 1_000_000 if self.value.dtype == "float64" else 1
        inverse = round(1 / scale) if 0 < scale <= 1 else 0
        if inverse < 1 or inverse > 10**12 or abs(inverse * scale - 1) > 1e-9:
            raise DefinitionError(f"{place} got scale={scale!r}, wanted 1 divided by a whole number up to 1e12")
        return inverse if self.value.dtype == "float64" else 1  # whole numbers are exact at any scale

    def _result_dtype(self, place: str) -> str:
        given = self.value.dtype
        if given not in (*NUMERIC, "timestamp", "string"):
            raise DefinitionError(f"{place} got a {given}, wanted a number, boolean, timestamp or string")
        if self.operation in SCALED:
            if given not in NUMERIC:
                raise DefinitionError(f"{place} got a {given}, wanted a number or a boolean")
            whole = self.operation == "sum" and given != "float64"
            return "int64" if whole else "float64"
        if self.operation in ("min", "max") and given == "string":
            raise DefinitionError(f"{place} got a {given}, wanted a number, boolean or timestamp")
        fixed = {"count": "int64", "distinct_count": "int64", "seconds_since_last": "float64"}
        return fixed.get(self.operation, given)


def _window(over: str | timedelta, place: str) -> tuple[int, int]:
    """Length in microseconds and number of events of a window; one of them is 0."""
    match = _EVENTS.fullmatch(over) if isinstance(over, str) else None
    if match is None:
        return duration_us(over, place), 0
    events = int(match[1])
    if not 1 <= events <= MOST_EVENTS:
        raise DefinitionError(f"{place} got over={over!r}, wanted 1 to {MOST_EVENTS} events")
    return 0, events


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


def distinct_count(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Number of different non-null values in the window, exact, int64; 0 in an empty window."""
    return Aggregate("distinct_count", value, by=by, over=over, **options)


def most_frequent(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """The value that occurs most often in the window, of the value's own type.

    Among equally frequent values it is the one whose latest occurrence is the latest by (event time, identity).
    """
    return Aggregate("most_frequent", value, by=by, over=over, **options)


def slope(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Slope of the least-squares line of the value over event time, per second, float64.

    (n Σtv − Σt Σv) / (n Σt² − (Σt)²) in integers, of the values at their ``scale`` and event times in whole
    microseconds, rounded once. Null for fewer than two different event times.
    """
    return Aggregate("slope", value, by=by, over=over, **options)


def decayed_sum(
    value: Expression, half_life: str | timedelta, *, by: Key, over: str | timedelta, **options: Any
) -> Aggregate:
    """Sum of the values, each weighted by half for every ``half_life`` of its age, float64.

    An event of age a has the weight W(k) / 2^40 with k = ⌊16 a / half_life⌋ and W(k) = 2^40 · 2^(−k/16) rounded
    half to even; beyond k = 640 it is 0. The weights are integers and depend on the age alone, so that the sum is
    an integer sum, rounded once: exact, and the same however the events come in blocks. Null in an empty window.
    """
    return Aggregate("decayed_sum", value, by=by, over=over, half_life=half_life, **options)


def decayed_mean(
    value: Expression, half_life: str | timedelta, *, by: Key, over: str | timedelta, **options: Any
) -> Aggregate:
    """Mean of the values with the weights of `decayed_sum`, float64, rounded once; null if all weights are 0."""
    return Aggregate("decayed_mean", value, by=by, over=over, half_life=half_life, **options)


def last_values(value: Expression, n: int, *, by: Key, over: str | timedelta, **options: Any) -> Expression:
    """The last ``n`` values in the window as a list of that length, newest first, filled up with nulls."""
    if not isinstance(n, int) or not 1 <= n <= 1000:
        raise DefinitionError(f"last_values of {value.key} got n={n!r}, wanted a whole number from 1 to 1000")
    return Listed([Aggregate("lag", value, by=by, over=over, k=k, **options) for k in range(n)])


def difference(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Expression:
    """The event's own value minus the last one before it (by event time and identity); null if either is."""
    return value - last(value, by=by, over=over, include_self=False, **options)


def rate(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Expression:
    """Non-null values per second: their count divided by the length of the window, float64.

    Raises:
        DefinitionError: the window is one of the last n events, which has no length.
    """
    counted = count(value, by=by, over=over, **options)
    if counted.window_events:
        raise DefinitionError(f"rate of {value.key} got over={over!r}, wanted a duration such as '1h'")
    return counted / (counted.window_us / 1e6)


def share(condition: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Share of events for which the condition is true, among those for which it is not null, float64."""
    if condition.dtype != "bool":
        raise DefinitionError(f"share got the {condition.dtype} {condition.key}, wanted a boolean condition")
    return mean(condition, by=by, over=over, **options)


def seconds_since_last(value: Expression, *, by: Key, over: str | timedelta, **options: Any) -> Aggregate:
    """Seconds from the latest non-null value in the window to this event's time, float64, at least 0."""
    return Aggregate("seconds_since_last", value, by=by, over=over, **options)
