"""Whole numbers of 128 bits, and their quotient as the nearest double, for compiled code.

A wide number is a pair of int64, its upper and its lower 64 bits in two's complement. The arithmetic is LLVM's own
on 128-bit integers; it wraps around, so callers keep magnitudes below 2^126.

`quotient` follows Dekker ("A floating-point technique for extending the available precision", 1971) for the value
and Ziv ("Fast evaluation of elementary mathematical functions with correctly rounded last bit", 1991) for the
decision whether that value is certain to round as the true one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import extending, types

intrinsic: Any = extending.intrinsic  # untyped: a call leaves out the typing context

compiled: Any = functools.partial(numba.njit, nogil=True, _nrt=False, error_model="numpy")
"""Compiled without reference counts: such code cannot make arrays, and does not count those that it is given, which
costs several times what the window pass itself does."""
compiled_to_allocate: Any = functools.partial(numba.njit, nogil=True, _nrt=True)
"""Compiled code that makes arrays."""

_WIDE = ir.IntType(128)
_WORD = ir.IntType(64)
_PAIR: Any = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]
LOW_HALF = 0xFFFFFFFF
_INTEGERS_EXACT = 2**53
_UNSURE = 2.0**-95
"""More than the relative error of a quotient of two double-doubles (about 2^-100)."""


def _join(builder: Any, high: Any, low: Any) -> Any:
    shifted = builder.shl(builder.sext(high, _WIDE), ir.Constant(_WIDE, 64))
    return builder.or_(shifted, builder.zext(low, _WIDE))


def _part(context: Any, builder: Any, value: Any) -> Any:
    high = builder.trunc(builder.ashr(value, ir.Constant(_WIDE, 64)), _WORD)
    return context.make_tuple(builder, _PAIR, [high, builder.trunc(value, _WORD)])


def _wide_operation(operation: str, *, narrow: int) -> Callable[..., Any]:
    """Code of a binary operation on wide numbers; the last ``narrow`` operands are int64."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        words = list(args)
        operands = []
        for is_narrow in [*[False] * (2 - narrow), *[True] * narrow]:
            if is_narrow:
                operands.append(builder.sext(words.pop(0), _WIDE))
            else:
                operands.append(_join(builder, words.pop(0), words.pop(0)))
        return _part(context, builder, getattr(builder, operation)(*operands))

    return generate


@intrinsic
def wide_product(typing_context, a, b):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """a · b of two int64 as a wide number."""
    return _PAIR(types.int64, types.int64), _wide_operation("mul", narrow=2)


@intrinsic
def wide_times(typing_context, high, low, b):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """A wide number times an int64."""
    return _PAIR(types.int64, types.int64, types.int64), _wide_operation("mul", narrow=1)


@intrinsic
def wide_add(typing_context, high, low, other_high, other_low):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """The sum of two wide numbers."""
    return _PAIR(types.int64, types.int64, types.int64, types.int64), _wide_operation("add", narrow=0)


@intrinsic
def wide_subtract(typing_context, high, low, other_high, other_low):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """The difference of two wide numbers."""
    return _PAIR(types.int64, types.int64, types.int64, types.int64), _wide_operation("sub", narrow=0)


@intrinsic
def _fused(typing_context, a, b, c):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """a · b + c, rounded once (IEEE 754 fusedMultiplyAdd): an instruction, or the C library's function."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), generate


@compiled()
def wide_float(high, low):  # type: ignore[no-untyped-def]
    """A wide number that is not negative as the sum of two doubles, the greater first; error below 2^-104 of it."""
    upper = float(high >> 32) * 79228162514264337593543950336.0  # 2^96
    second = float(high & LOW_HALF) * 18446744073709551616.0  # 2^64
    third = float((low >> 32) & LOW_HALF) * 4294967296.0
    last = float(low & LOW_HALF)
    total = upper + second
    error = second - (total - upper)
    rest = third + last
    rest_error = last - (rest - third)
    result = total + rest
    part = result - total
    tail = ((total - (result - part)) + (rest - part)) + (error + rest_error)
    final = result + tail
    return final, tail - (final - result)


@compiled()
def quotient(high, low, divisor_high, divisor_low):  # type: ignore[no-untyped-def]
    """The quotient of two wide numbers, rounded once, and whether that is certain.

    Args:
        high, low: the dividend, magnitude below 2^126.
        divisor_high, divisor_low: the divisor, above 0 and below 2^126.

    Returns:
        The nearest double, and True; or an approximation, and False where the true quotient lies too near to the
        middle between two doubles to tell (about once in 2^42, and in exact halves).
    """
    if high == low >> 63 and divisor_high == 0 and abs(low) < _INTEGERS_EXACT and 0 < divisor_low < _INTEGERS_EXACT:
        return float(low) / float(divisor_low), True
    negative = high < 0
    if negative:
        high, low = wide_subtract(0, 0, high, low)
    n0, n1 = wide_float(high, low)
    d0, d1 = wide_float(divisor_high, divisor_low)
    q0 = n0 / d0
    remainder = _fused(-q0, d0, n0) + (n1 - q0 * d1)
    q1 = remainder / d0
    result = q0 + q1
    error = q1 - (result - q0)
    slack = result * _UNSURE
    sure = result + (error + slack) == result and result + (error - slack) == result
    return (-result if negative else result), sure


@intrinsic
def prefetch(typing_context, address):  # type: ignore[no-untyped-def]  # noqa: ARG001
    """Ask for the memory at ``address``; changes nothing, and may be any address."""

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        )
        arguments = [builder.inttoptr(args[0], pointer), *(ir.Constant(word, value) for value in (0, 3, 1))]
        builder.call(function, arguments)
        return ir.Constant(ir.IntType(64), 0)

    return types.int64(types.intp), generate
