"""Error-free transformations: the sum and the product of two doubles as a double and its exact rounding error.

They need only that + − * round to nearest, as IEEE 754 asks of every CPU; no fused multiply-add is used, and
the compiler may not put one in (`numba.njit` without ``fastmath`` leaves every operation as it is written).

Sources: Knuth, The Art of Computer Programming 2, 4.2.2 (two_sum); Dekker, A floating-point technique for
extending the available precision, Numer. Math. 18, 1971 (fast_two_sum, two_product).
"""

from __future__ import annotations

from decimal import Context, Decimal

import numba

PRECISION = Context(prec=80)
"""Decimal arithmetic, which is exact to the last digit on every machine, for constants and tables."""

compiled = numba.njit(  # type: ignore[call-overload]  # the wrappers are options that Numba's types forget
    nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
)
"""Compiles a function that only compiled code calls: strict IEEE arithmetic, division by zero as NumPy has it."""

_SPLITTER = 134217729.0  # 2^27 + 1


@compiled
def two_sum(a, b):  # type: ignore[no-untyped-def]
    """Rounded sum and its error; float64."""
    total = a + b
    from_b = total - a
    return total, (a - (total - from_b)) + (b - from_b)


@compiled
def fast_two_sum(a, b):  # type: ignore[no-untyped-def]
    """Rounded sum and its error, for |a| ≥ |b| or a = 0; float64."""
    total = a + b
    return total, b - (total - a)


@compiled
def two_product(a, b):  # type: ignore[no-untyped-def]
    """Rounded product and its error, for |a|, |b| < 2^995 and an error above 2^-1022; float64."""
    product = a * b
    scaled = _SPLITTER * a
    a_high = scaled - (scaled - a)
    a_low = a - a_high
    scaled = _SPLITTER * b
    b_high = scaled - (scaled - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def pair(value: Decimal, binary_places: int | None = None) -> tuple[float, float]:
    """``value`` as a double and a double of what is left; the first has ``binary_places`` after the point if given.

    >>> pair(Decimal("0.1"))
    (0.1, -5.551115123125783e-18)
    >>> pair(Decimal("0.1"), binary_places=4)
    (0.125, -0.025)
    """
    if binary_places is None:
        high = float(value)
    else:
        unit = 2**binary_places
        high = int(PRECISION.to_integral_value(PRECISION.multiply(value, unit))) / unit
    return high, float(PRECISION.subtract(value, Decimal(high)))
