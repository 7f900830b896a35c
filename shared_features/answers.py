"""What the outputs of one window are for one row, from its events and its running sums: compiled, in integers.

An answer that needs a quotient is the quotient of two whole numbers of 128 bits, rounded once (`exact.quotient`).
Where that cannot be done here (the numbers are wider, or the quotient lies too near to the middle between two
doubles) the numbers go to a record, and `divide` finishes them with Python's integers, which have no limit.
"""

from __future__ import annotations

import numba
import numpy as np

from shared_features.distinct import count_distinct, most_frequent_value
from shared_features.exact import quotient, wide_add, wide_product, wide_subtract, wide_times
from shared_features.extremes import MAXIMA, MINIMA, extreme

COUNT, SUM_INTEGER, SUM_FLOAT, MEAN, VARIANCE, VARIANCE_SAMPLE, STD, STD_SAMPLE = range(8)
MIN, MAX, FIRST_VALUE, LAST_VALUE, LAG, SECONDS_SINCE_LAST = range(8, 14)
DISTINCT_COUNT, MOST_FREQUENT, SLOPE, DECAYED_SUM, DECAYED_MEAN = range(14, 19)

TIME, IDENTITY, VALUE = 0, 1, 2
RECORD_CELLS = 8
OF_QUOTIENT, OF_VARIANCE = 0, 1
"""Kinds of records [output, row, kind, …]: dividend and divisor in halves; n, upper, lower and both squares."""

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


@numba.njit(nogil=True)
def _room_for_record(records, recorded):  # type: ignore[no-untyped-def]
    """The records, grown if they are full."""
    if recorded < len(records):
        return records
    grown = np.empty((2 * len(records) + 16, RECORD_CELLS), np.int64)
    for i in range(recorded):
        for cell in range(RECORD_CELLS):
            grown[i, cell] = records[i, cell]
    return grown


@numba.njit(nogil=True)
def _variance(n, sample, inverse, high, low, square_high, square_low):  # type: ignore[no-untyped-def]
    """Dividend and divisor of a variance in halves, and whether they fit: (n Σv² − (Σv)²) / (n (n − sample) inverse²).

    ``high, low`` is Σv as a wide number; ``square_high, square_low`` is Σv².
    """
    squares = (float(square_high) + 1.0) * 18446744073709551616.0
    m = n - sample
    pairs = float(n) * float(m)
    if high != low >> 63 or abs(float(low)) > _NARROW or float(n) * squares > _WIDE or pairs > _NARROW:
        return 0, 0, 0, 1, False
    if pairs * float(inverse) * float(inverse) > _WIDE:
        return 0, 0, 0, 1, False
    a, b = wide_times(square_high, square_low, n)
    c, d = wide_product(low, low)
    a, b = wide_subtract(a, b, c, d)
    c, d = wide_product(n * m, inverse)
    c, d = wide_times(c, d, inverse)
    return a, b, c, d, True


@numba.njit(nogil=True)
def _slope(arena, low, high, inverse):  # type: ignore[no-untyped-def]
    """Dividend and divisor of the slope per second in halves; the divisor is 0 where there is none.

    There is none for fewer than two different times, nor where the sums could exceed 126 bits.
    """
    n = high - low
    origin = arena[low, TIME]
    span = float(arena[high - 1, TIME] - origin)
    greatest = 0.0
    for i in range(low, high):
        greatest = max(greatest, abs(float(arena[i, VALUE])))
    product = float(n) * float(n) * span * max(1.0, greatest) * 1e6
    if (
        n < 2
        or float(n) * greatest > _NARROW
        or product > _WIDE
        or float(n) * float(n) * span * span * float(inverse) > _WIDE
    ):
        return 0, 0, 0, 0
    times, values = 0, 0
    a, b, c, d = 0, 0, 0, 0
    for i in range(low, high):
        t, v = arena[i, TIME] - origin, arena[i, VALUE]
        times += t
        values += v
        p, q = wide_product(t, v)
        a, b = wide_add(a, b, p, q)
        p, q = wide_product(t, t)
        c, d = wide_add(c, d, p, q)
    a, b = wide_times(a, b, n)
    p, q = wide_product(times, values)
    a, b = wide_subtract(a, b, p, q)
    a, b = wide_times(a, b, 1_000_000)
    c, d = wide_times(c, d, n)
    p, q = wide_product(times, times)
    c, d = wide_subtract(c, d, p, q)
    c, d = wide_times(c, d, inverse)
    return a, b, c, d


@numba.njit(nogil=True)
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


@numba.njit(nogil=True)
def answer(  # type: ignore[no-untyped-def]
    row, t, arena, tree, low, high, upper, lower, square_high, square_low, distinct, inverse,
    output_from, output_to, outputs, answers, floats, valid, records, recorded,
):  # fmt: skip
    """Write every output of one window for one row.

    The window is arena[low:high]; Σv = upper · 2^32 + lower and Σv² = (square_high, square_low) are given where an
    output needs them, ``distinct`` is -1 where the table does not know it.
    """
    n = high - low
    a, b, c, d, e = 0, 0, 0, 0, 0
    for f in range(output_from, output_to):
        operation = outputs[f, 0]
        known = n > 0
        if operation == COUNT:
            answers[f, row] = n
            known = True
        elif operation == DISTINCT_COUNT:
            answers[f, row] = distinct if distinct >= 0 else count_distinct(arena, low, high)
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
                    answers[f, row] = b
                elif operation == SUM_FLOAT:
                    c, d = 0, inverse
                else:
                    c, d = wide_product(n, inverse)
            elif operation <= STD_SAMPLE:
                sample = 1 if operation in (VARIANCE_SAMPLE, STD_SAMPLE) else 0
                known = n > sample
                a, b = wide_add(upper >> 32, upper << 32, lower >> 63, lower)
                a, b, c, d, fits = _variance(n, sample, inverse, a, b, square_high, square_low)
                if not fits:
                    kind = OF_VARIANCE
            elif operation == SLOPE:
                a, b, c, d = _slope(arena, low, high, inverse)
                known = c != 0 or d != 0
            else:
                a, b, c, d = _decayed(arena, low, high, t, outputs[f, 1], inverse, operation == DECAYED_MEAN)
                known = c != 0 or d != 0
            if known and divides:
                result, sure = 0.0, False
                if kind == OF_QUOTIENT:
                    result, sure = quotient(a, b, c, d)
                if not sure:
                    records = _room_for_record(records, recorded)
                    records[recorded, 0], records[recorded, 1], records[recorded, 2] = f, row, kind
                    if kind == OF_VARIANCE:
                        a, b, c, d, e = n, upper, lower, square_high, square_low
                    records[recorded, 3], records[recorded, 4], records[recorded, 5] = a, b, c
                    records[recorded, 6], records[recorded, 7] = d, e
                    recorded += 1
                floats[f, row] = np.sqrt(result) if operation in (STD, STD_SAMPLE) else result
        elif operation == LAST_VALUE:
            answers[f, row] = arena[high - 1, VALUE]
        elif operation == FIRST_VALUE:
            answers[f, row] = arena[low, VALUE]
        elif operation == LAG:
            known = n > outputs[f, 1]
            if known:
                answers[f, row] = arena[high - 1 - outputs[f, 1], VALUE]
        elif operation == SECONDS_SINCE_LAST:
            floats[f, row] = (t - arena[high - 1, TIME]) / 1e6
        elif operation == MIN:
            answers[f, row] = extreme(tree, arena, low, high, np.int64(MINIMA))
        elif operation == MAX:
            answers[f, row] = extreme(tree, arena, low, high, np.int64(MAXIMA))
        else:
            answers[f, row] = most_frequent_value(arena, low, high)
        valid[f, row] = known
    return records, recorded


def divide(record: list[int], operation: int, inverse: int) -> float:
    """Finish one record: Python's quotient of integers is rounded exactly once.

    Args:
        record: its cells. operation: of its output. inverse: 1 / scale of its values.
    """
    _, _, kind, a, b, c, d, e = record
    if kind == OF_QUOTIENT:
        result = ((a << 64) + b % 2**64) / ((c << 64) + d % 2**64)
    else:
        total = (b << 32) + c
        squares = ((d % 2**64) << 64) + e % 2**64
        sample = operation in (VARIANCE_SAMPLE, STD_SAMPLE)
        result = (a * squares - total * total) / (a * (a - sample) * inverse * inverse)
    return float(np.sqrt(result)) if operation in (STD, STD_SAMPLE) else result
