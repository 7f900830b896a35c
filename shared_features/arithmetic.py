"""``+ - * /``: int64 exactly or null, float64 as IEEE 754 has it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from shared_features.columns import Column, Evaluator, both_valid
from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, Expression

_LEAST = np.iinfo(np.int64).min
_FLOAT_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}


class Arithmetic(Expression):
    """``+ - *`` (int64 on integers and booleans, else float64) and ``/`` (always float64).

    A difference of two timestamps is float64 seconds. Division by zero gives null, as does int64 overflow.
    An integer that meets a float, or a division, is taken as the nearest double first.
    """

    def __init__(self, operation: str, left: Expression, right: Expression) -> None:
        self.operation, self.left, self.right = operation, left, right
        self.definition = [operation, left.definition, right.definition]
        times = (left.dtype == "timestamp", right.dtype == "timestamp")
        if times == (True, True) and operation == "subtract":
            self.dtype = "float64"
        elif left.dtype in NUMERIC and right.dtype in NUMERIC:
            both_whole = left.dtype != "float64" and right.dtype != "float64"
            self.dtype = "int64" if both_whole and operation != "divide" else "float64"
        else:
            raise DefinitionError(
                f"cannot {operation} {left.dtype} and {right.dtype} in {self.key}: wanted two numbers, or the "
                "difference of two timestamps"
            )

    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def evaluate(self, of: Evaluator) -> Column:
        left, right = of.column(self.left), of.column(self.right)
        valid = both_valid(left, right)
        if self.left.dtype == "timestamp":
            return Column((left.values - right.values) / 1e6, valid)
        if self.dtype == "int64":
            a, b = left.values.astype(np.int64, copy=False), right.values.astype(np.int64, copy=False)
            values, wrapped = _checked_integer(self.operation, a, b)
            return Column(values, valid & ~wrapped)
        a, b = left.values.astype(np.float64, copy=False), right.values.astype(np.float64, copy=False)
        values = _FLOAT_OPERATIONS[self.operation](a, b)
        return Column(values, valid & np.isfinite(values))


def _checked_integer(operation: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Result in int64 and where it wrapped around."""
    if operation == "add":
        total = a + b
        return total, ((a ^ total) & (b ^ total)) < 0
    if operation == "subtract":
        difference = a - b
        return difference, ((a ^ b) & (a ^ difference)) < 0
    product = a * b
    # The product in doubles is off by at most some parts in 2^53: only near 2^63 it cannot tell.
    size = np.abs(a.astype(np.float64) * b.astype(np.float64))
    wrapped = size >= 2.0**63
    near = np.flatnonzero((size > 2.0**62) & (size < 2.0**64))
    if len(near):
        wrapped[near] = _wrapped_product(a[near], b[near], product[near])
    return product, wrapped


def _wrapped_product(a: np.ndarray, b: np.ndarray, product: np.ndarray) -> np.ndarray:
    """Whether ``product`` is a · b only modulo 2^64, by dividing back; b is never 0 here."""
    wrapped: np.ndarray = (product // b != a) | (product % b != 0)
    # −2^63 / −1 is itself an overflow, so that division cannot tell.
    wrapped |= (a == _LEAST) & (b == -1)
    return wrapped
