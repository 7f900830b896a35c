"""The oracle: every aggregate computed slowly and obviously, row by row, from the contract's own words.

It shares no code with the kernel but the definitions and the hash that orders events of one microsecond. Integers
and fractions only; a float is made once, at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from shared_features.aggregates import SUMMED, Aggregate


@dataclass
class Row:
    """One event as the oracle sees it: values of the aggregates' inputs are computed by the test.

    A composite key is a tuple, or None where any part is null; a row whose key is None takes no part.
    """

    key: Any
    time_us: int
    identity: int
    inputs: dict[str, Any] = field(default_factory=dict)  # aggregate.key -> value, None where null or not counted
    asked: bool = True


def answers(rows: Sequence[Row], aggregates: Sequence[Aggregate], lateness_us: int) -> list[dict[str, Any]]:
    """For each row, in fold order: aggregate key to value (None for null); empty where nothing is asked."""
    longest_us = max(aggregate.window_us for aggregate in aggregates)
    results: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        if row.key is None or not row.asked:
            results.append({})
            continue
        folded = [other for other in rows[: i + 1] if other.key == row.key]
        grace = max(other.time_us for other in folded) - lateness_us
        results.append({a.key: _aggregate(a, row, folded, grace, grace - longest_us) for a in aggregates})
    return results


def late(rows: Sequence[Row], lateness_us: int) -> list[bool | None]:
    """For each row, in fold order: whether it is beyond grace; None without a key."""
    results: list[bool | None] = []
    for i, row in enumerate(rows):
        newest = max((other.time_us for other in rows[: i + 1] if other.key == row.key), default=0)
        results.append(None if row.key is None else row.time_us < newest - lateness_us)
    return results


# -- windows: which events an aggregate sees, in the order of (event time, identity) ------------------------------


def _window(a: Aggregate, row: Row, folded: Sequence[Row], grace: int, reach: int) -> list[Row]:
    """The events that carry a value in the window of ``a`` at ``row``.

    ``include_self=False`` leaves the event out as if it had never been folded, but its time counts for the reach.
    """
    carrying = [other for other in folded if other.inputs.get(a.key) is not None]
    seen = [other for other in carrying if a.include_self or other is not row]
    seen.sort(key=lambda other: (other.time_us, other.identity))
    if a.window_events:
        return _last_events(a.window_events, row, seen, grace)
    return [other for other in seen if other.time_us >= reach and _in_time(a, row.time_us - other.time_us)]


def _in_time(a: Aggregate, age_us: int) -> bool:
    return 0 <= age_us <= a.window_us if a.closed == "both" else 0 <= age_us < a.window_us


def _last_events(n: int, row: Row, seen: Sequence[Row], grace: int) -> list[Row]:
    """The last n up to the row's time, among those not older than the grace and the n latest that are."""
    older = [other for other in seen if other.time_us < grace][-n:]
    reachable = older + [other for other in seen if other.time_us >= grace]
    return [other for other in reachable if other.time_us <= row.time_us][-n:]


# -- aggregates: what they give for these events ------------------------------------------------------------------


def _aggregate(a: Aggregate, row: Row, folded: Sequence[Row], grace: int, reach: int) -> Any:
    window = _window(a, row, folded, grace, reach)
    values = [_plain(other.inputs[a.key]) for other in window]
    ages_us = [row.time_us - other.time_us for other in window]
    if a.operation == "count":
        return len(values)
    if a.operation == "distinct_count":
        return len(set(values))
    if not values:
        return None
    if a.operation in SUMMED:
        return _sums(a, [_scaled(a, value) for value in values])
    if a.operation == "slope":
        return _slope(a, [_scaled(a, value) for value in values], [other.time_us for other in window])
    if a.operation in ("decayed_sum", "decayed_mean"):
        return _decayed(a, [_scaled(a, value) for value in values], ages_us)
    if a.operation == "seconds_since_last":
        return _nearest(Fraction(ages_us[-1], 1_000_000))
    if a.operation == "most_frequent":
        return _most_frequent(values)
    if a.operation == "lag":
        return values[-1 - a.k] if len(values) > a.k else None
    return {"first": values[0], "last": values[-1], "min": min(values), "max": max(values)}[a.operation]


def _plain(value: Any) -> Any:
    return value + 0.0 if isinstance(value, float) else value  # -0.0 is taken as 0.0


def _scaled(a: Aggregate, value: float) -> int:
    """The value in units of the scale: Python's round() of a double goes half to even."""
    return round(value * float(a.scale_inverse)) if isinstance(value, float) else int(value) * a.scale_inverse


def _sums(a: Aggregate, scaled: Sequence[int]) -> Any:
    n, total = len(scaled), Fraction(sum(scaled), a.scale_inverse)
    if a.operation == "sum":
        if a.dtype == "int64":
            return int(total) if -(2**63) <= total < 2**63 else None
        return _nearest(total)
    mean = total / n
    if a.operation == "mean":
        return _nearest(mean)
    sample = a.operation.endswith("_sample")
    if sample and n == 1:
        return None
    spread = sum(((Fraction(value, a.scale_inverse) - mean) ** 2 for value in scaled), Fraction(0))
    variance = _nearest(spread / (n - sample))
    return math.sqrt(variance) if a.operation.startswith("std") else variance


def _slope(a: Aggregate, scaled: Sequence[int], times_us: Sequence[int]) -> float | None:
    """Σ (t − mean t)(v − mean v) / Σ (t − mean t)², in units per second."""
    n = len(scaled)
    mean_time, mean_value = Fraction(sum(times_us), n), Fraction(sum(scaled), n)
    spread = sum(((t - mean_time) ** 2 for t in times_us), Fraction(0))
    if spread == 0:
        return None
    together = sum(((t - mean_time) * (v - mean_value) for t, v in zip(times_us, scaled, strict=True)), Fraction(0))
    return _nearest(together / spread * 1_000_000 / a.scale_inverse)


def _decayed(a: Aggregate, scaled: Sequence[int], ages_us: Sequence[int]) -> float | None:
    weights = [decay_weight(age_us * 16 // a.half_life_us) for age_us in ages_us]
    total = Fraction(sum(w * v for w, v in zip(weights, scaled, strict=True)), a.scale_inverse)
    if a.operation == "decayed_sum":
        return _nearest(total / 2**40)
    return _nearest(total / sum(weights)) if sum(weights) else None


def decay_weight(step: int) -> int:
    """2^40 · 2^(−step/16), the 16th root of 2^(640 − step), rounded half to even; 0 beyond step 640."""
    if step > 640:
        return 0
    power = 2 ** (640 - step)
    below = math.isqrt(math.isqrt(math.isqrt(math.isqrt(power))))
    is_above = (2 * below + 1) ** 16 < power * 2**16  # never equal: one side is odd
    return below + 1 if is_above else below


def _most_frequent(values: Sequence[Any]) -> Any:
    """Of the values that occur most often, the one that occurs last."""
    occurrences = Counter(values)
    return next(value for value in reversed(values) if occurrences[value] == max(occurrences.values()))


def _nearest(value: Fraction) -> float:
    return value.numerator / value.denominator  # Python rounds a quotient of integers exactly once
