"""Choices between values: ``where``, ``coalesce``, ``minimum`` and ``maximum``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.columns import FEW_ROWS, NUMPY_TYPES, Column, Evaluator, both_valid
from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, Expression, literal


class Choice(Expression):
    """``where(condition, then, otherwise)``; a null condition gives null."""

    def __init__(self, condition: Expression, then: Expression, otherwise: Expression) -> None:
        self.condition, self.then, self.otherwise = condition, then, otherwise
        self.definition = ["where", condition.definition, then.definition, otherwise.definition]
        if condition.dtype != "bool":
            raise DefinitionError(f"where in {self.key} got a {condition.dtype} condition, wanted a boolean")
        self.dtype = _common_dtype(self.key, then, otherwise)

    def parts(self) -> tuple[Expression, ...]:
        return (self.condition, self.then, self.otherwise)

    def evaluate(self, of: Evaluator) -> Column:
        condition = of.column(self.condition)
        chosen = _choose(condition.values, of.column(self.then), of.column(self.otherwise), self.dtype)
        return Column(chosen.values, both_valid(chosen, condition))


class Coalesce(Expression):
    """The first of two values that is not null."""

    def __init__(self, first: Expression, second: Expression) -> None:
        self.first, self.second = first, second
        self.definition = ["coalesce", first.definition, second.definition]
        self.dtype = _common_dtype(self.key, first, second)

    def parts(self) -> tuple[Expression, ...]:
        return (self.first, self.second)

    def evaluate(self, of: Evaluator) -> Column:
        first = of.column(self.first)
        return _choose(first.valid, first, of.column(self.second), self.dtype)


class Extreme(Expression):
    """The lesser or the greater of two numbers or timestamps; null if either is; of equal ones the first."""

    def __init__(self, operation: str, left: Expression, right: Expression) -> None:
        self.operation, self.left, self.right = operation, left, right
        self.definition = [operation, left.definition, right.definition]
        if left.dtype in ("string", "list") or left.dtype == right.dtype == "bool":
            raise DefinitionError(f"{operation} in {self.key} got a {left.dtype}, wanted two numbers or two timestamps")
        self.dtype = _common_dtype(self.key, left, right)

    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def evaluate(self, of: Evaluator) -> Column:
        left, right = of.column(self.left), of.column(self.right)
        numpy_type = NUMPY_TYPES[self.dtype]
        a, b = left.values.astype(numpy_type, copy=False), right.values.astype(numpy_type, copy=False)
        # Not np.minimum: which of 0.0 and -0.0 it gives depends on the CPU.
        second = b < a if self.operation == "minimum" else b > a
        return Column(np.where(second, b, a), both_valid(left, right))


def where(condition: Expression, then: Any, otherwise: Any) -> Expression:
    """``then`` where the condition is true, ``otherwise`` where it is false, null where it is null."""
    return Choice(condition, literal(then), literal(otherwise))


def coalesce(first: Expression, *others: Any) -> Expression:
    """The first value that is not null, from left to right."""
    result = first
    for other in others:
        result = Coalesce(result, literal(other))
    return result


def minimum(first: Any, second: Any) -> Expression:
    """The lesser of two numbers or timestamps of one row (not `min`, which looks at the past); null if either is."""
    return Extreme("minimum", literal(first), literal(second))


def maximum(first: Any, second: Any) -> Expression:
    """The greater of two numbers or timestamps of one row (not `max`, which looks at the past); null if either is."""
    return Extreme("maximum", literal(first), literal(second))


def clip(value: Expression, low: Any, high: Any) -> Expression:
    """``value``, but not below ``low`` and not above ``high``; None is no bound."""
    plain = isinstance(low, int | float) and isinstance(high, int | float)
    if (low is None and high is None) or (plain and low > high):
        raise DefinitionError(f"clip of {value.key} got low={low!r} and high={high!r}, wanted low up to high, or one")
    result = value if low is None else maximum(value, low)
    return result if high is None else minimum(result, high)


def _common_dtype(key: str, a: Expression, b: Expression) -> str:
    if a.dtype in NUMERIC and b.dtype in NUMERIC and a.dtype != b.dtype:
        return "float64" if "float64" in (a.dtype, b.dtype) else "int64"
    if a.dtype != b.dtype or a.dtype == "list":
        raise DefinitionError(f"{key} mixes {a.dtype} and {b.dtype}: wanted two values of one type, and no lists")
    return a.dtype


def _choose(first: np.ndarray, a: Column, b: Column, dtype: str) -> Column:
    valid = a.valid if a.valid is b.valid else np.where(first, a.valid, b.valid)
    if dtype == "string":
        return Column(_choose_strings(first, a.values, b.values), valid)
    numpy_type = NUMPY_TYPES[dtype]
    x, y = a.values.astype(numpy_type, copy=False), b.values.astype(numpy_type, copy=False)
    return Column(np.where(first, x, y), valid)


def _choose_strings(first: np.ndarray, a: pa.StringArray, b: pa.StringArray) -> pa.StringArray:
    if len(first) > FEW_ROWS:
        return pc.if_else(pa.array(first), a, b)
    rows = zip(first.tolist(), a.to_pylist(), b.to_pylist(), strict=True)
    return pa.array([x if chosen else y for chosen, x, y in rows], pa.string())
