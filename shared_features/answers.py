"""What the outputs of one window are for one row, from its events and its running sums: compiled, in integers.

An answer that needs a quotient is the quotient of two whole numbers of 128 bits, rounded once (`exact.quotient`).
Where that cannot be done here (the numbers are wider, or the quotient lies too near to the middle between two
doubles) the numbers go to a record, and `divide` finishes them with Python's integers, which have no limit.
"""

from __future__ import annotations

import math

import numpy as np

from shared_features.distinct import count_distinct, most_frequent_value
from shared_features.exact import LOW_HALF, compiled, quotient, wide_add, wide_product, wide_subtract, wide_times
from shared_features.extremes import extreme
from shared_features.layout import HOLE, TIME, VALUE

COUNT, SUM_INTEGER, SUM_FLOAT, MEAN, VARIANCE, VARIANCE_SAMPLE, STD, STD_SAMPLE = range(8)
MIN, MAX, FIRST_VALUE, LAST_VALUE, LAG, SECONDS_SINCE_LAST = range(8, 14)
DISTINCT_COUNT, MOST_FREQUENT, SLOPE, DECAYED_SUM, DECAYED_MEAN = range(14, 19)

RECORD_CELLS = 13
OF_QUOTIENT, OF_VARIANCE, OF_SLOPE = 0, 1, 2
"""Kinds of records [output, row, kind, …]: dividend and divisor in halves; see `_note_variance`; see `_slope`."""

_WIDE = 2.0**125
_NARROW = 9.0e18
_MOST_DECAYED = 2**22
STEPS_PER_HALF_LIFE = 16
_WEIGHT_ONE = 40  # weights are in units of 2^-40


def _weights() -> np.ndarray:
    """round_half_even(2^40 · 2^(-k/16)) for k up to 640, by whole numbers only; no weight is an exact half."""
    weights = []
    for k in range(_WEIGHT_ONE * STEPS_PER_HALF_LIFE + 1):
        power = 2 ** (_WEIGHT_ONE * STEPS_PER_HALF_LIFE - k)  # the weight is its 16th root
        low, high = 0, 2 ** (_WEIGHT_ONE + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if middle**STEPS_PER_HALF_LIFE <= power:
                low = middle
            else:
                high = middle
        up = (2 * low + 1) ** STEPS_PER_HALF_LIFE <= power * 2**STEPS_PER_HALF_LIFE
        weights.append(low + up)
    return np.array(weights, np.int64)


WEIGHTS = _weights()


@compiled()
def _variance(n, sample, inverse, largest, upper, lower, square_high, square_low):  # type: ignore[no-untyped-def]
    """Dividend and divisor of a variance in halves, and whether they fit: (n Σv² − (Σv)²) / (n (n − sample) inverse²).

    Σv² is known modulo 2^128; that it is less follows from n and the ``largest`` magnitude of a value.
    """
    if (n | inverse) >> 20 != 0 or largest >> 31 != 0:  # else it fits by far
        pairs = float(n) * float(n - sample)
        greatest = float(n) * float(largest)
        if greatest * greatest > _WIDE or greatest > _NARROW or pairs * float(inverse) * float(inverse) > _WIDE:
            return 0, 0, 0, 1, False
    total = (upper << 32) + lower
    a, b = wide_times(square_high, square_low, n)
    c, d = wide_product(total, total)
    a, b = wide_subtract(a, b, c, d)
    c, d = wide_product(n * (n - sample), inverse)
    c, d = wide_times(c, d, inverse)
    return a, b, c, d, True


@compiled()
def _note_variance(  # type: ignore[no-untyped-def]
    arena, cell, low, high, n, largest, upper, lower, square_high, square_low, records, recorded
):
    """Into the next record: n, Σv in halves, and Σv² in parts that are to be shifted by 64, 33 and 0 bits.

    Only where Σv² itself may exceed 128 bits are the events read again.
    """
    a, b, c, d, e, f = 0, 0, 0, 0, square_high, square_low
    if float(n) * float(largest) * float(largest) > _WIDE:
        e, f = 0, 0
        for i in range(low, high):
            if arena[i, cell] == HOLE:
                continue
            left, right = arena[i, cell] >> 32, arena[i, cell] & LOW_HALF
            p, q = wide_product(left, left)
            a, b = wide_add(a, b, p, q)
            p, q = wide_product(left, right)
            c, d = wide_add(c, d, p, q)
            e, f = wide_add(e, f, 0, right * right)
    for part, value in enumerate((n, upper, lower, a, b, c, d, e, f)):
        records[recorded, 3 + part] = value


@compiled()
def _slope(arena, low, high, inverse, records, recorded):  # type: ignore[no-untyped-def]
    """Dividend and divisor of the slope per second in halves, and whether they fit.

    The divisor is 0 where there is no slope: for fewer than two different times. What does not fit stands in the
    next record: n, Σt, Σt² in halves, Σv and Σtv of the upper and of the lower 32 bits of the values.
    """
    n = high - low
    origin = arena[low, TIME]
    span = float(arena[high - 1, TIME] - origin)
    if span == 0.0:
        return 0, 0, 0, 0, True
    times, uppers, lowers, greatest = 0, 0, 0, 1.0
    a, b, c, d, e, f = 0, 0, 0, 0, 0, 0
    for i in range(low, high):
        t, v = arena[i, TIME] - origin, arena[i, VALUE]
        greatest = max(greatest, abs(float(v)))
        times += t
        uppers += v >> 32
        lowers += v & LOW_HALF
        p, q = wide_product(t, v >> 32)
        a, b = wide_add(a, b, p, q)
        p, q = wide_product(t, v & LOW_HALF)
        e, f = wide_add(e, f, p, q)
        p, q = wide_product(t, t)
        c, d = wide_add(c, d, p, q)
    squared = float(n) * float(n) * span * span
    if (
        float(n) * greatest > _NARROW
        or float(n) * float(n) * span * greatest * 1e6 > _WIDE
        or squared * float(inverse) > _WIDE
    ):
        for cell, value in enumerate((n, times, c, d, uppers, lowers, a, b, e, f)):
            records[recorded, 3 + cell] = value
        return 0, 0, 0, 1, False
    a, b = wide_times(a, b, 1 << 32)
    a, b = wide_add(a, b, e, f)
    a, b = wide_times(a, b, n)
    p, q = wide_product(times, (uppers << 32) + lowers)
    a, b = wide_subtract(a, b, p, q)
    a, b = wide_times(a, b, 1_000_000)
    c, d = wide_times(c, d, n)
    p, q = wide_product(times, times)
    c, d = wide_subtract(c, d, p, q)
    c, d = wide_times(c, d, inverse)
    return a, b, c, d, True


@compiled()
def _decayed(arena, low, high, t, half_life_us, inverse, is_mean):  # type: ignore[no-untyped-def]
    """Dividend and divisor of a decayed sum or mean in halves; the divisor is 0 where there is none.

    There is none where all weights are 0 (mean), nor for more than 2^22 events, whose sums could exceed 126 bits.
    """
    a, b, total = 0, 0, 0
    if high - low > _MOST_DECAYED:
        return 0, 0, 0, 0
    for i in range(high - 1, low - 1, -1):
        k = (t - arena[i, TIME]) // half_life_us
        if k > _WEIGHT_ONE:
            break
        k = (t - arena[i, TIME]) * STEPS_PER_HALF_LIFE // half_life_us
        if k >= len(WEIGHTS):
            break
        total += WEIGHTS[k]
        p, q = wide_product(WEIGHTS[k], arena[i, VALUE])
        a, b = wide_add(a, b, p, q)
    if is_mean:
        c, d = wide_product(total, inverse)
    else:
        c, d = wide_product(1 << _WEIGHT_ONE, inverse)
    return a, b, c, d


@compiled(forceinline=True)
def answer(  # type: ignore[no-untyped-def]
    row, t, arena, tree, low, high, cell, n, first, last, upper, lower, square_high, square_low, distinct, largest,
    inverse, output_from, output_to, outputs, answers, floats, valid, records, recorded,
):  # fmt: skip
    """Write every output of one window for one row.

    The window is arena[low:high], its values the ``n`` in ``cell`` that are not holes, ``first`` and ``last`` the
    elements of its first and last value, if n > 0; Σv = upper · 2^32 + lower and Σv² = (square_high, square_low) are
    given where an output needs them, ``distinct`` is -1 where the table does not know it, no value exceeds ``largest``
    in magnitude. Operations that read more than the first and last event are asked of groups of one track only.
    Returns the number of records; there is room for one of each output.
    """
    a, b, c, d = 0, 0, 0, 0
    for f in range(output_from, output_to):
        operation = outputs[f, 0]
        known = n > 0
        if operation == COUNT:
            answers[row, f] = n
            known = True
        elif operation == DISTINCT_COUNT:
            answers[row, f] = distinct if distinct >= 0 else count_distinct(arena, low, high)
            known = True
        elif n == 0:
            pass
        elif operation <= STD_SAMPLE or operation >= SLOPE:
            divides, kind = True, OF_QUOTIENT
            if operation <= MEAN:
                a, b = wide_add(upper >> 32, upper << 32, lower >> 63, lower)
                if operation == SUM_INTEGER:
                    divides = False
                    known = a == b >> 63
                    answers[row, f] = b
                elif operation == SUM_FLOAT:
                    c, d = 0, inverse
                else:
                    c, d = wide_product(n, inverse)
            elif operation <= STD_SAMPLE:
                sample = 1 if operation in (VARIANCE_SAMPLE, STD_SAMPLE) else 0
                known = n > sample
                a, b, c, d, fits = _variance(n, sample, inverse, largest, upper, lower, square_high, square_low)
                if not fits:
                    kind = OF_VARIANCE
                    _note_variance(
                        arena, cell, low, high, n, largest, upper, lower, square_high, square_low, records, recorded
                    )
            elif operation == SLOPE:
                a, b, c, d, fits = _slope(arena, low, high, inverse, records, recorded)
                known = c != 0 or d != 0
                if not fits:
                    kind = OF_SLOPE
            else:
                a, b, c, d = _decayed(arena, low, high, t, outputs[f, 1], inverse, operation == DECAYED_MEAN)
                known = c != 0 or d != 0
            if known and divides:
                result, sure = 0.0, False
                if kind == OF_QUOTIENT:
                    result, sure = quotient(a, b, c, d)
                if not sure:
                    records[recorded, 0], records[recorded, 1], records[recorded, 2] = f, row, kind
                    if kind == OF_QUOTIENT:
                        records[recorded, 3], records[recorded, 4] = a, b
                        records[recorded, 5], records[recorded, 6] = c, d
                    recorded += 1
                floats[row, f] = np.sqrt(result) if operation in (STD, STD_SAMPLE) else result
        elif operation == LAST_VALUE:
            answers[row, f] = arena[last, cell]
        elif operation == FIRST_VALUE:
            answers[row, f] = arena[first, cell]
        elif operation == LAG:
            known = n > outputs[f, 1]
            if known:
                answers[row, f] = arena[high - 1 - outputs[f, 1], VALUE]
        elif operation == SECONDS_SINCE_LAST:
            floats[row, f] = (t - arena[last, TIME]) / 1e6
        elif operation in (MIN, MAX):
            answers[row, f] = extreme(tree, arena, low, high, operation - MIN)
        else:
            answers[row, f] = most_frequent_value(arena, low, high)
        valid[row, f] = known
    return recorded


def divide(record: list[int], operation: int, inverse: int) -> float:
    """Finish one record: Python's quotient of integers is rounded exactly once.

    Args:
        record: its cells. operation: of its output. inverse: 1 / scale of its values.
    """
    kind, cells = record[2], record[3:]
    if kind == OF_QUOTIENT:
        return _root(_whole(*cells[:2]) / _whole(*cells[2:4]), operation)
    if kind == OF_VARIANCE:
        n, total = cells[0], (cells[1] << 32) + cells[2]
        squares = (_whole(*cells[3:5]) << 64) + (_whole(*cells[5:7]) << 33) + _whole(*cells[7:9])
        sample = operation in (VARIANCE_SAMPLE, STD_SAMPLE)
        return _root((n * squares - total * total) / (n * (n - sample) * inverse * inverse), operation)
    n, times, squares, values = cells[0], cells[1], _whole(*cells[2:4]), (cells[4] << 32) + cells[5]
    products = (_whole(*cells[6:8]) << 32) + _whole(*cells[8:10])
    return (n * products - times * values) * 1_000_000 / ((n * squares - times * times) * inverse)


def _whole(high: int, low: int) -> int:
    """The integer of a wide number."""
    return (high << 64) + low % 2**64


def _root(result: float, operation: int) -> float:
    return math.sqrt(result) if operation in (STD, STD_SAMPLE) else result
