"""Judging: is each value right by the case's definition, and do batch and stream give the same bits?"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from benchmarks.skew.cases import ANY, NO_ANSWER, Case, Value

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "n/a"

RELATIVE, ABSOLUTE = 1e-9, 1e-12
"""How far a float may be off and still count as right: the last bits are nobody's fault here."""


def right(wanted: Value, got: Value) -> bool:
    """Whether a value is the wanted one: integers and nulls exactly, floats to nine digits."""
    if wanted == ANY:
        return True
    if wanted is None or got is None or isinstance(wanted, str) or isinstance(got, str):
        return wanted is got
    if isinstance(wanted, int):
        return got == wanted
    return math.isclose(got, wanted, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def judged(case: Case, got: Sequence[Value] | Exception) -> tuple[str, str]:
    """`PASS` or `FAIL` of the values of a case, and for a failure the first difference in a sentence."""
    if isinstance(got, Exception):
        return FAIL, f"raised {type(got).__name__}: {str(got).splitlines()[0] if str(got) else ''}"
    if len(got) != len(case.events):
        return FAIL, f"gave {len(got)} values for {len(case.events)} events"
    for number, (event, value) in enumerate(zip(case.events, got, strict=True), start=1):
        if not right(event.expect, value):
            return FAIL, f"event {number}: wanted {shown(event.expect)}, got {shown(value)}. {event.why}"
    return PASS, ""


def agreed(case: Case, batch: Sequence[Value] | Exception, stream: Sequence[Value] | Exception) -> tuple[str, str]:
    """`PASS` if both give the same bits at every event, else `FAIL` and the first difference in a sentence."""
    if isinstance(batch, Exception) or isinstance(stream, Exception):
        return FAIL, "one of them raised"
    if not len(batch) == len(stream) == len(case.events):
        return FAIL, f"batch gave {len(batch)} values, stream {len(stream)}"
    for number, (one, other) in enumerate(zip(batch, stream, strict=True), start=1):
        if not same(one, other):
            return FAIL, f"event {number}: batch {shown(one)}, stream {shown(other)}"
    return PASS, ""


def same(one: Value, other: Value) -> bool:
    """Whether two values have the same type and bits."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return type(one) is type(other) and one == other


def shown(value: Value) -> str:
    """A value as it stands in a sentence."""
    if value is None:
        return "null"
    return value if value in (ANY, NO_ANSWER) else repr(value)
