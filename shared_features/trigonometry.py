"""Sine, cosine and their inverses of one double, for compiled code; `elementary` has them for arrays.

Methods: Cody and Waite, Software Manual for the Elementary Functions, 1980 (the argument is reduced by a constant in
parts whose products are exact); Taylor series for what is left; for atan a table of atan(k / 64), made here.
"""

from __future__ import annotations

from decimal import Decimal
from math import factorial
from typing import Final

import numpy as np

from shared_features.error_free import PRECISION, compiled, fast_two_sum, pair, two_product, two_sum

PI: Final = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899863")
_NAN, _INFINITY = float("nan"), float("inf")
_HALF_PI: Final = PRECISION.divide(PI, 2)
_HALF_PI_HIGH, _HALF_PI_LOW = pair(_HALF_PI)
_PI_HIGH, _PI_LOW = pair(PI)
_QUARTERS_PER_RADIAN = float(PRECISION.divide(1, _HALF_PI))
_DEGREE_HIGH, _DEGREE_LOW = pair(PRECISION.divide(PI, 180))
DEGREES_PER_RADIAN: Final = float(PRECISION.divide(180, PI))
LARGEST_RADIANS: Final = 2.0**28
"""sin and cos of more (8 years in seconds) give NaN: there the doubles lie too wide apart to mean an angle."""
LARGEST_DEGREES: Final = 2.0**45
"""sin_deg and cos_deg of more give NaN."""


def _quarter_turn() -> list[float]:
    """π/2 in five parts of at most 25 bits (the last of 53): their products with whole numbers to 2^28 are exact."""
    parts, rest = [], _HALF_PI
    for places in (24, 49, 74, 99):
        part, _ = pair(rest, places)
        parts.append(part)
        rest = PRECISION.subtract(rest, Decimal(part))
    return [*parts, float(rest)]


_QUARTER_1, _QUARTER_2, _QUARTER_3, _QUARTER_4, _QUARTER_5 = _quarter_turn()
_S3, _S5, _S7, _S9, _S11, _S13, _S15, _S17 = ((-1) ** (n // 2) / factorial(n) for n in range(3, 18, 2))
_C4, _C6, _C8, _C10, _C12, _C14, _C16, _C18 = ((-1) ** (n // 2) / factorial(n) for n in range(4, 19, 2))


def _atan_table() -> list[tuple[float, float]]:
    """atan(k / 64) for k from 0 to 64, each from the one before: atan a − atan b = atan((a − b) / (1 + a b))."""
    total, table = Decimal(0), [(0.0, 0.0)]
    for k in range(1, 65):
        step = PRECISION.divide(64, 4096 + k * (k - 1))
        square, power_of_step = PRECISION.multiply(step, step), step
        for n in range(1, 50, 2):
            term = PRECISION.divide(power_of_step, n)
            total = PRECISION.add(total, term if n % 4 == 1 else -term)
            power_of_step = PRECISION.multiply(power_of_step, square)
        table.append(pair(total))
    return table


_ATAN_HIGH, _ATAN_LOW = np.ascontiguousarray(np.array(_atan_table()).T)


@compiled
def _sin_series(r, low):  # type: ignore[no-untyped-def]
    """sin(r + low) for |r| up to a little more than π/4."""
    z = r * r
    tail = _S9 + z * (_S11 + z * (_S13 + z * (_S15 + z * _S17)))
    return r + (r * (z * (_S3 + z * (_S5 + z * (_S7 + z * tail)))) + low * (1.0 - 0.5 * z))


@compiled
def _cos_series(r, low):  # type: ignore[no-untyped-def]
    """cos(r + low) for |r| up to a little more than π/4."""
    z, z_low = two_product(r, r)
    tail = _C10 + z * (_C12 + z * (_C14 + z * (_C16 + z * _C18)))
    high, rest = fast_two_sum(1.0, -0.5 * z)
    return high + (rest - 0.5 * z_low + (z * z * (_C4 + z * (_C6 + z * (_C8 + z * tail))) - r * low))


@compiled
def _sine_of_quarter(quarter, r, low):  # type: ignore[no-untyped-def]
    """sin(quarter · π/2 + r + low)."""
    value = _cos_series(r, low) if quarter & 1 else _sin_series(r, low)
    return (-value if quarter & 2 else value) + 0.0  # never a negative zero


@compiled
def _reduce(x):  # type: ignore[no-untyped-def]
    """x = quarters · π/2 + r + low; the quarters, r and low."""
    quarters = np.floor(x * _QUARTERS_PER_RADIAN + 0.5)
    r = (x - quarters * _QUARTER_1) - quarters * _QUARTER_2  # both differences are exact
    r, e1 = two_sum(r, -quarters * _QUARTER_3)
    r, e2 = two_sum(r, -quarters * _QUARTER_4)
    r, low = two_sum(r, e1 + (e2 - quarters * _QUARTER_5))
    return np.int64(quarters), r, low


@compiled
def _reduce_degrees(x):  # type: ignore[no-untyped-def]
    """x degrees = quarters · π/2 + r + low; the difference in degrees is exact."""
    quarters = np.floor(x / 90.0 + 0.5)
    degrees = x - quarters * 90.0
    r, low = two_product(degrees, _DEGREE_HIGH)
    return np.int64(quarters), r, low + degrees * _DEGREE_LOW


@compiled
def scalar_sin(x):  # type: ignore[no-untyped-def]
    """See `sin`."""
    if not abs(x) <= LARGEST_RADIANS:
        return _NAN
    quarters, r, low = _reduce(x)
    return _sine_of_quarter(quarters, r, low)


@compiled
def scalar_cos(x):  # type: ignore[no-untyped-def]
    """See `cos`."""
    if not abs(x) <= LARGEST_RADIANS:
        return _NAN
    quarters, r, low = _reduce(x)
    return _sine_of_quarter(quarters + 1, r, low)


@compiled
def scalar_sin_deg(x):  # type: ignore[no-untyped-def]
    """See `sin_deg`."""
    if not abs(x) <= LARGEST_DEGREES:
        return _NAN
    quarters, r, low = _reduce_degrees(x)
    return _sine_of_quarter(quarters, r, low)


@compiled
def scalar_cos_deg(x):  # type: ignore[no-untyped-def]
    """See `cos_deg`."""
    if not abs(x) <= LARGEST_DEGREES:
        return _NAN
    quarters, r, low = _reduce_degrees(x)
    return _sine_of_quarter(quarters + 1, r, low)


@compiled
def _atan_of_ratio(a, a_low, b, b_low):  # type: ignore[no-untyped-def]
    """atan((a + a_low) / (b + b_low)) as a double and a rest, for 0 ≤ a ≤ b, b > 0.

    With c = k / 64 near the ratio t: atan t = atan c + atan((t − c) / (1 + t c)), the last by its series.
    """
    t = a / b
    t_low = 0.0
    if t > 2.0**-30:  # below, the rest changes nothing
        if b > 2.0**500:
            a, a_low, b, b_low = a * 2.0**-600, a_low * 2.0**-600, b * 2.0**-600, b_low * 2.0**-600
        elif b < 2.0**-500:
            a, a_low, b, b_low = a * 2.0**500, a_low * 2.0**500, b * 2.0**500, b_low * 2.0**500
        product, product_low = two_product(t, b)
        t_low = (((a - product) - product_low) + a_low - t * b_low) / b
    k = np.int64(t * 64.0 + 0.5)
    if t < 0.0625:
        k = np.int64(0)
    c = k * 0.015625
    v = ((t - c) + t_low) / (1.0 + t * c)
    z = v * v
    series = v * (z * (1 / 3 - z * (1 / 5 - z * (1 / 7 - z * (1 / 9 - z * (1 / 11 - z * (1 / 13 - z / 15)))))))
    if k == 0:
        return t, t_low - series
    return _ATAN_HIGH[k], _ATAN_LOW[k] + (v - series)


@compiled
def _atan2_of_sums(y, y_low, x, x_low):  # type: ignore[no-untyped-def]
    """Angle of the point (x + x_low, y + y_low), (−π, π]; 0 at the origin."""
    down, left = y < 0.0, x < 0.0
    if down:
        y, y_low = -y, -y_low
    if left:
        x, x_low = -x, -x_low
    steep = y > x
    if steep:
        x, x_low, y, y_low = y, y_low, x, x_low
    if x == 0.0:
        return 0.0
    angle, low = _atan_of_ratio(y, y_low, x, x_low)
    base, base_low = 0.0, 0.0
    if steep:
        base, base_low = _HALF_PI_HIGH, _HALF_PI_LOW
    elif left:
        base, base_low = _PI_HIGH, _PI_LOW
    if steep != left:  # one reflection
        angle, low = -angle, -low
    total, rest = two_sum(base, angle)
    total += rest + (base_low + low)
    return -total if down else total


@compiled
def scalar_atan2(y, x):  # type: ignore[no-untyped-def]
    """See `atan2`."""
    if not (abs(y) < _INFINITY and abs(x) < _INFINITY):
        return _NAN
    return _atan2_of_sums(y, 0.0, x, 0.0)


@compiled
def scalar_atan(x):  # type: ignore[no-untyped-def]
    """See `atan`."""
    return _atan2_of_sums(x, 0.0, 1.0, 0.0) if x == x else x


@compiled
def _leg(x):  # type: ignore[no-untyped-def]
    """sqrt(1 − x²) as a double and a rest, for |x| ≤ 1."""
    square, square_low = two_product(x, x)
    p, p_low = two_sum(1.0, -square)
    p, p_low = fast_two_sum(p, p_low - square_low)
    if not p > 0.0:
        return 0.0, 0.0
    root = np.sqrt(p)
    product, product_low = two_product(root, root)
    return root, (((p - product) - product_low) + p_low) / (2.0 * root)


@compiled
def scalar_asin(x):  # type: ignore[no-untyped-def]
    """See `asin`."""
    if not abs(x) <= 1.0:
        return _NAN
    leg, leg_low = _leg(x)
    return _atan2_of_sums(x, 0.0, leg, leg_low)


@compiled
def scalar_acos(x):  # type: ignore[no-untyped-def]
    """See `acos`."""
    if not abs(x) <= 1.0:
        return _NAN
    leg, leg_low = _leg(x)
    return _atan2_of_sums(leg, leg_low, x, 0.0)
