"""True values of exp, log and trigonometry to 60 digits and more, slow and obvious, to measure the quick ones against.

Decimal knows exp and ln. Sine and cosine are summed from their series in whole numbers of 2^-400; the inverse
functions are judged by what the angle that they return is away from the true one, which needs sine and cosine only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction

from shared_features.trigonometry import PI as PI_80_DIGITS

_BITS = 400
_ONE = 1 << _BITS
_DECIMAL = Context(prec=70, Emax=10**6, Emin=-(10**6))


def _pi() -> int:
    """Machin: π = 16 atan(1/5) − 4 atan(1/239), in units of 2^-400."""

    def atan_of_inverse(n: int) -> int:
        total, term, k = 0, (_ONE << 20) // n, 1
        while term:
            total += term // k if k % 4 == 1 else -(term // k)
            term //= n * n
            k += 2
        return total

    return (16 * atan_of_inverse(5) - 4 * atan_of_inverse(239)) >> 20


PI = _pi()
assert abs(Fraction(PI, _ONE) - Fraction(PI_80_DIGITS)) < Fraction(1, 10**79)


def _fixed(x: float | Fraction) -> int:
    value = Fraction(x)
    return (value.numerator << _BITS) // value.denominator


def _sin_cos(angle: int) -> tuple[int, int]:
    angle %= 2 * PI
    quarters, angle = divmod(angle, PI // 2)
    square = (angle * angle) >> _BITS
    sine, cosine = 0, 0
    sine_term, cosine_term, n = angle, _ONE, 0
    while sine_term or cosine_term:
        sine, cosine = sine + sine_term, cosine + cosine_term
        cosine_term = -((cosine_term * square) >> _BITS) // ((n + 1) * (n + 2))
        sine_term = -((sine_term * square) >> _BITS) // ((n + 2) * (n + 3))
        n += 2
    for _ in range(quarters):
        sine, cosine = cosine, -sine
    return sine, cosine


def _ulps(difference: Fraction, true: float) -> float:
    return abs(float(difference / Fraction(math.ulp(true))))


def _of_decimal(true: Decimal, result: float) -> float:
    if math.isinf(result):
        return 0.0 if abs(true) > Decimal(2) ** 1024 - Decimal(2) ** 970 else math.inf
    return _ulps(Fraction(result) - Fraction(true), float(true))


def _error_of_sine(angle: int, cosine: bool, result: float) -> float:
    true = Fraction(_sin_cos(angle)[cosine], _ONE)
    return _ulps(Fraction(result) - true, float(true))


def _error_of_angle(result: float, y: int, x: int) -> float:
    """How far ``result`` is from the angle of (x, y), which are whole numbers in one unit."""
    sine, cosine = _sin_cos(_fixed(result))
    away = Fraction(y * cosine - x * sine, x * cosine + y * sine)  # its tangent; it is tiny
    return _ulps(away, result)


def _leg(x: float) -> int:
    return math.isqrt(_ONE * _ONE - _fixed(x) ** 2)


def _error_of_power(x: float, y: float, result: float) -> float:
    sign = -1 if x < 0 and y % 2 == 1 else 1
    exponent = _DECIMAL.multiply(Decimal(y), _DECIMAL.ln(Decimal(abs(x))))
    return _of_decimal(sign * _DECIMAL.exp(exponent), result)


ERROR: dict[str, Callable[..., float]] = {
    "exp": lambda x, result: _of_decimal(_DECIMAL.exp(Decimal(x)), result),
    "log": lambda x, result: _of_decimal(_DECIMAL.ln(Decimal(x)), result),
    # 1 + x would need more digits than there are if x is tiny: there the first terms of the series do.
    "log1p": lambda x, result: _of_decimal(
        _DECIMAL.ln(_DECIMAL.add(Decimal(1), Decimal(x)))
        if abs(x) > 1e-20
        else _DECIMAL.subtract(Decimal(x), _DECIMAL.divide(_DECIMAL.multiply(Decimal(x), Decimal(x)), Decimal(2))),
        result,
    ),
    "power": _error_of_power,
    "sin": lambda x, result: _error_of_sine(_fixed(x), False, result),
    "cos": lambda x, result: _error_of_sine(_fixed(x), True, result),
    "sin_deg": lambda x, result: _error_of_sine(_fixed(Fraction(x) * PI / 180) >> _BITS, False, result),
    "cos_deg": lambda x, result: _error_of_sine(_fixed(Fraction(x) * PI / 180) >> _BITS, True, result),
    "asin": lambda x, result: _error_of_angle(result, _fixed(x), _leg(x)),
    "acos": lambda x, result: _error_of_angle(result, _leg(x), _fixed(x)),
    "atan": lambda x, result: _error_of_angle(result, _fixed(x), _ONE),
    "atan2": lambda y, x, result: _error_of_angle(result, _fixed(y), _fixed(x)),
}
"""By function: the error of a result in units in the last place; called with the arguments, then the result."""
