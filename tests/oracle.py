"""The oracle: every aggregate computed slowly and obviously, row by row, from the contract's own words.

It shares no code with the kernel but the definitions and the hash that orders events of one microsecond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from shared_features.aggregates import SUMMED, Aggregate


@dataclass
class Row:
    """One event as the oracle sees it: values of the aggregates' inputs are computed by the test."""

    key: Any
    time_us: int
    identity: int
    inputs: dict[str, Any] = field(default_factory=dict)  # aggregate.key -> value, None where null or not counted
    asked: bool = True


def answers(rows: Sequence[Row], aggregates: Sequence[Aggregate], lateness_us: int) -> list[dict[str, Any]]:
    """For each row, in fold order: aggregate key to value (None for null)."""
    longest_us = max(aggregate.window_us for aggregate in aggregates)
    results: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        if row.key is None or not row.asked:
            results.append({})
            continue
        folded = [other for other in rows[: i + 1] if other.key == row.key]
        newest = max(other.time_us for other in folded)
        reach = newest - lateness_us - longest_us
        results.append({a.key: _aggregate(a, row, folded, reach) for a in aggregates})
    return results


def _aggregate(a: Aggregate, row: Row, folded: Sequence[Row], reach: int) -> Any:
    def inside(other: Row) -> bool:
        age = row.time_us - other.time_us
        in_window = 0 <= age <= a.window_us if a.closed == "both" else 0 <= age < a.window_us
        return in_window and other.time_us >= reach and (a.include_self or other is not row)

    window = [other for other in folded if inside(other) and other.inputs.get(a.key) is not None]
    window.sort(key=lambda other: (other.time_us, other.identity))
    values = [other.inputs[a.key] for other in window]
    if a.operation == "count":
        return len(values)
    if not values:
        return None
    if a.operation in SUMMED:
        return _sums(a, values)
    if a.operation == "seconds_since_last":
        return (row.time_us - window[-1].time_us) / 1e6
    if a.operation == "lag":
        return values[-1 - a.k] if len(values) > a.k else None
    if a.operation in ("first", "last"):
        return values[0 if a.operation == "first" else -1]
    return {"min": min, "max": max}[a.operation](values)


def _sums(a: Aggregate, values: Sequence[Any]) -> Any:
    scaled = [
        _round_half_even(value * float(a.scale_inverse)) if isinstance(value, float) else int(value) for value in values
    ]
    n, total = len(scaled), Fraction(sum(scaled))
    if a.operation == "sum":
        if a.dtype == "int64":
            return int(total) if -(2**63) <= total < 2**63 else None
        return _nearest(total / a.scale_inverse)
    if a.operation == "mean":
        return _nearest(total / n / a.scale_inverse)
    sample = a.operation.endswith("_sample")
    if sample and n == 1:
        return None
    mean = total / n
    variance = sum((value - mean) ** 2 for value in scaled) / (n - sample) / a.scale_inverse**2
    return math.sqrt(_nearest(Fraction(variance))) if a.operation.startswith("std") else _nearest(Fraction(variance))


def _nearest(value: Fraction) -> float:
    return value.numerator / value.denominator  # Python rounds a quotient of integers exactly once


def _round_half_even(value: float) -> int:
    return round(value)
