"""exp, log and powers of one double, for compiled code; `elementary` has them for arrays, and says what they promise.

Methods: P. T. P. Tang, Table-driven implementation of the exponential function in IEEE floating-point arithmetic,
ACM TOMS 15, 1989, and of the logarithm function, ACM TOMS 16, 1990. Written from these; the tables are made here
with `decimal`, the coefficients are those of the Taylor series.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

import numpy as np

from shared_features.error_free import PRECISION, compiled, fast_two_sum, pair, two_product, two_sum

_LN_2: Final = PRECISION.ln(Decimal(2))
_NAN, _INFINITY = float("nan"), float("inf")

_EXP_STEPS = 128
_EXP_PER_STEP = float(PRECISION.divide(Decimal(_EXP_STEPS), _LN_2))
_EXP_STEP_HIGH, _EXP_STEP_LOW = pair(PRECISION.divide(_LN_2, Decimal(_EXP_STEPS)), binary_places=42)
_EXP_TABLE = np.array([pair(PRECISION.exp(PRECISION.divide(PRECISION.multiply(_LN_2, j), 128))) for j in range(128)])
_EXP_HIGH, _EXP_LOW = np.ascontiguousarray(_EXP_TABLE.T)

_LOG_FROM, _LOG_TO = 90, 182  # 128 · sqrt(1/2) rounded down, 128 · sqrt(2) rounded up
_LN_2_HIGH, _LN_2_LOW = pair(_LN_2, binary_places=42)
# Reciprocals of j / 128 with 20 binary places, so that their product with half a double is exact.
_RECIPROCALS = [round(2**27 / j) for j in range(_LOG_FROM, _LOG_TO)]
_LOG_RECIPROCAL = np.array(_RECIPROCALS) / 2.0**20
_LOG_TABLE = np.array([pair(PRECISION.ln(PRECISION.divide(2**20, c)), binary_places=42) for c in _RECIPROCALS])
_LOG_HIGH, _LOG_LOW = np.ascontiguousarray(_LOG_TABLE.T)
_SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
_LOW_27_BITS = (1 << 27) - 1


@compiled
def _exp_of_sum(x, low):  # type: ignore[no-untyped-def]
    """exp(x + low), |low| far below |x|: x + low = (128 m + j) · ln 2 / 128 + r, and exp r by its series."""
    if not x < 709.8:
        return x if x != x else _INFINITY
    if x < -745.2:
        return 0.0
    steps = np.floor(x * _EXP_PER_STEP + 0.5)
    r = (x - steps * _EXP_STEP_HIGH) - (steps * _EXP_STEP_LOW - low)
    step = np.int64(steps)
    j = step & 127
    growth = r + r * r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120))))
    value = _EXP_HIGH[j] + (_EXP_LOW[j] + _EXP_HIGH[j] * growth)
    m = step >> 7
    half = m >> 1  # 2^m itself may be no double
    return value * np.int64((half + 1023) << 52).view(np.float64) * np.int64((m - half + 1023) << 52).view(np.float64)


@compiled
def scalar_exp(x):  # type: ignore[no-untyped-def]
    """See `exp`."""
    return _exp_of_sum(x, 0.0)


@compiled
def _log_of_sum(x, low):  # type: ignore[no-untyped-def]
    """log(x + low) as a double and a rest, for finite x > 0 and |low| at most half a unit in the last place of x;
    low is 0 if x is above 2^64.

    x = 2^m z, and with c near 1/z: log x = m ln 2 − log c + log(1 + r), r = z c − 1 exactly; the series of the last.
    """
    m = np.int64(0)
    if x < 2.2250738585072014e-308:
        x *= 18014398509481984.0
        m = np.int64(-54)
    bits = np.float64(x).view(np.int64)
    power_of_two = (bits - _SQRT_HALF_BITS) >> 52
    bits -= power_of_two << 52
    z = np.int64(bits).view(np.float64)
    if low != 0.0:
        low *= np.int64((1023 - power_of_two) << 52).view(np.float64)
    m += power_of_two
    i = np.int64(z * 128.0 + 0.5) - _LOG_FROM
    c = _LOG_RECIPROCAL[i]
    upper = np.int64(bits & ~_LOW_27_BITS).view(np.float64)
    r, rest = two_sum(upper * c - 1.0, (z - upper) * c)
    r, lost = two_sum(r, low * c)
    rest += lost
    square, square_low = two_product(r, r)
    tail = 1 / 5 - r * (1 / 6 - r * (1 / 7 - r * (1 / 8 - r * (1 / 9))))
    series = r * square * (1 / 3 - r * (1 / 4 - r * tail))
    high, e1 = fast_two_sum(m * _LN_2_HIGH + _LOG_HIGH[i], r)
    high, e2 = fast_two_sum(high, -0.5 * square)
    rest = (e1 + (e2 + (rest - r * rest - 0.5 * square_low + series))) + (m * _LN_2_LOW + _LOG_LOW[i])
    return fast_two_sum(high, rest)


@compiled
def scalar_log(x):  # type: ignore[no-untyped-def]
    """See `log`."""
    if not 0.0 < x < _INFINITY:
        return -_INFINITY if x == 0.0 else (x if x > 0.0 else _NAN)
    return _log_of_sum(x, 0.0)[0]


@compiled
def scalar_log1p(x):  # type: ignore[no-untyped-def]
    """See `log1p`."""
    if not -1.0 < x < _INFINITY:
        return -_INFINITY if x == -1.0 else (x if x > 0.0 else _NAN)
    if abs(x) < 2.0**-54:
        return x
    total, low = two_sum(1.0, x)
    return _log_of_sum(total, low if x < 2.0**64 else 0.0)[0]


@compiled
def scalar_power(x, y):  # type: ignore[no-untyped-def]
    """See `power`."""
    if y == 0.0 or x == 1.0:
        return 1.0
    if not (abs(x) < _INFINITY and abs(y) < _INFINITY):
        return _NAN
    if x == 0.0:
        return 0.0 if y > 0.0 else _INFINITY
    sign = 1.0
    if x < 0.0:
        if np.floor(y) != y:
            return _NAN
        if np.floor(y * 0.5) * 2.0 != y:
            sign = -1.0
        x = -x
    high, low = _log_of_sum(x, 0.0)
    if not abs(high * y) < 750.0:
        return sign * (_INFINITY if (high > 0.0) == (y > 0.0) else 0.0) if high != 0.0 else sign
    exponent, rest = two_product(high, y)
    return sign * _exp_of_sum(exponent, rest + low * y)
