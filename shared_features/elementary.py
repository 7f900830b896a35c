"""exp, log, power, sine and the like in float64, with the same bits on every CPU (contract C3).

``np.exp`` and its kin take another path on another CPU and differ in the last bit. The functions here are built
from + − × / and the square root, which IEEE 754 fixes to the bit, from whole-number steps on the bits of a double,
and from tables made with `decimal`. They are compiled by Numba without ``fastmath``, so nothing is reordered or
fused; a test pins the bits of 100,000 results of each and reads the machine code for fused operations.

Accuracy: the worst error measured over 400,000 random arguments of each, in units in the last place (0.5 is the best
possible, less than 1 means one of the two doubles next to the true value; tests/elementary_reference.py is the truth):

    exp 0.75 (0.51 where the result is at least 2^-1022)    log 0.51        log1p 0.51      power 0.51
    sin 0.75        cos 0.75        sin_deg 0.75    cos_deg 0.75
    asin 0.65       acos 0.65       atan 0.65       atan2 0.65

Arguments are numbers or arrays of any shape, taken as float64; the result is a float64 array of that shape. NaN,
and an argument where the function has no value, gives NaN; too large a result is infinite, too small a one 0.
A feature never sees either: expressions turn what is not finite into null.

The first call of a function on a machine compiles it (0.1 to 0.8 s); in later processes it is loaded (`machine_code`).
After that a call for one value takes 1 to 2 µs, a value in a large array 2 (exp) to 30 ns (asin).

The methods are told in `exponential` and `trigonometry`, which hold the functions of one double.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_features import exponential, trigonometry
from shared_features.machine_code import kept

Float64Array = npt.NDArray[np.float64]

_IN, _OUT = "Array(float64, 1, 'C', readonly=True)", "float64[::1]"


@cache
def loop(scalar: Any, inputs: int) -> Any:
    """``scalar``, a compiled function of one to four doubles, over arrays: f(input, …, output), each float64 [n].

    ``scalar`` has to be in this package, because `machine_code.kept` looks there for what has changed.

    Raises:
        KeyError: ``inputs`` is not 1 to 4.
    """

    def over_one(a: Any, out: Any) -> None:
        for i in range(len(out)):
            out[i] = scalar(a[i])

    def over_two(a: Any, b: Any, out: Any) -> None:
        for i in range(len(out)):
            out[i] = scalar(a[i], b[i])

    def over_three(a: Any, b: Any, c: Any, out: Any) -> None:
        for i in range(len(out)):
            out[i] = scalar(a[i], b[i], c[i])

    def over_four(a: Any, b: Any, c: Any, d: Any, out: Any) -> None:
        for i in range(len(out)):
            out[i] = scalar(a[i], b[i], c[i], d[i])

    body = {1: over_one, 2: over_two, 3: over_three, 4: over_four}[inputs]
    package, _, module = scalar.__module__.rpartition(".")
    assert package == __package__, scalar.__module__
    body.__name__ = f"over_{module}_{scalar.__name__}"
    return kept(f"void({', '.join([_IN] * inputs)}, {_OUT})")(body)


def map_scalar(scalar: Any, *inputs: npt.ArrayLike) -> Float64Array:
    """A compiled function of one to four doubles at each place of some arrays, which are broadcast; float64."""
    arrays = [np.asarray(values, np.float64, order="C") for values in inputs]
    if len(arrays) > 1 and len({array.shape for array in arrays}) > 1:
        arrays = [np.asarray(array, order="C") for array in np.broadcast_arrays(*arrays)]
    result = np.empty(arrays[0].shape)
    loop(scalar, len(arrays))(*[array.ravel() for array in arrays], result.ravel())
    return result


def exp(x: npt.ArrayLike) -> Float64Array:
    """e to the power x; infinite above 709.78, 0 below −745.2.

    >>> exp([0.0, 1.0])
    array([1.        , 2.71828183])
    """
    return map_scalar(exponential.scalar_exp, x)


def log(x: npt.ArrayLike) -> Float64Array:
    """Natural logarithm; −infinity of 0, NaN of less.

    >>> log([1.0, 10.0])
    array([0.        , 2.30258509])
    """
    return map_scalar(exponential.scalar_log, x)


def log1p(x: npt.ArrayLike) -> Float64Array:
    """Natural logarithm of 1 + x, exact also where x is tiny; −infinity of −1, NaN of less.

    >>> log1p([0.0, 1e-20])
    array([0.e+00, 1.e-20])
    """
    return map_scalar(exponential.scalar_log1p, x)


def power(x: npt.ArrayLike, y: npt.ArrayLike) -> Float64Array:
    """x to the power y; 1 where y is 0 or x is 1; NaN where x < 0 and y is no whole number.

    >>> power([2.0, -8.0, 0.0], [0.5, 3.0, 2.0])
    array([   1.41421356, -512.        ,    0.        ])
    """
    return map_scalar(exponential.scalar_power, x, y)


def sin(x: npt.ArrayLike) -> Float64Array:
    """Sine of x in radians; NaN for |x| above 2^28, where neighbouring doubles begin to lie far apart.

    >>> sin([0.0, 1.0])
    array([0.        , 0.84147098])
    """
    return map_scalar(trigonometry.scalar_sin, x)


def cos(x: npt.ArrayLike) -> Float64Array:
    """Cosine of x in radians; NaN for |x| above 2^28.

    >>> cos([0.0, 1.0])
    array([1.        , 0.54030231])
    """
    return map_scalar(trigonometry.scalar_cos, x)


def sin_deg(x: npt.ArrayLike) -> Float64Array:
    """Sine of x in degrees, exact at multiples of 90; NaN for |x| above 2^45.

    >>> sin_deg([45.0, 90.0, 180.0])
    array([0.70710678, 1.        , 0.        ])
    """
    return map_scalar(trigonometry.scalar_sin_deg, x)


def cos_deg(x: npt.ArrayLike) -> Float64Array:
    """Cosine of x in degrees, exact at multiples of 90; NaN for |x| above 2^45.

    >>> cos_deg([0.0, 60.0, 90.0])
    array([1. , 0.5, 0. ])
    """
    return map_scalar(trigonometry.scalar_cos_deg, x)


def asin(x: npt.ArrayLike) -> Float64Array:
    """Angle in radians, [−π/2, π/2], whose sine is x; NaN for |x| > 1.

    >>> asin([0.0, 1.0])
    array([0.        , 1.57079633])
    """
    return map_scalar(trigonometry.scalar_asin, x)


def acos(x: npt.ArrayLike) -> Float64Array:
    """Angle in radians, [0, π], whose cosine is x; NaN for |x| > 1.

    >>> acos([1.0, -1.0])
    array([0.        , 3.14159265])
    """
    return map_scalar(trigonometry.scalar_acos, x)


def atan(x: npt.ArrayLike) -> Float64Array:
    """Angle in radians, [−π/2, π/2], whose tangent is x.

    >>> atan([0.0, 1.0])
    array([0.        , 0.78539816])
    """
    return map_scalar(trigonometry.scalar_atan, x)


def atan2(y: npt.ArrayLike, x: npt.ArrayLike) -> Float64Array:
    """Angle in radians, (−π, π], of the point (x, y) from the positive x axis; 0 at the origin; no signed zeros.

    >>> atan2([1.0, 0.0], [1.0, -1.0])
    array([0.78539816, 3.14159265])
    """
    return map_scalar(trigonometry.scalar_atan2, y, x)


def degrees(x: npt.ArrayLike) -> Float64Array:
    """x radians in degrees: x · (180 / π), one rounding of the constant and one of the product."""
    return np.asarray(x, np.float64) * trigonometry.DEGREES_PER_RADIAN
