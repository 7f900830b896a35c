"""The inner nodes of expressions: arithmetic, comparison, logic, choice and the calendar."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features import timezones
from shared_features.columns import NUMPY_TYPES, Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, Expression, literal

_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000


class Arithmetic(Expression):
    """``+ - *`` (int64 on integers and booleans, else float64) and ``/`` (always float64).

    A difference of two timestamps is float64 seconds. Division by zero gives null, as does int64 overflow.
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
        valid = left.valid & right.valid
        if self.left.dtype == "timestamp":
            return Column((left.values - right.values) / 1e6, valid)
        if self.dtype == "int64":
            a, b = left.values.astype(np.int64), right.values.astype(np.int64)
            values, wrapped = _checked_integer(self.operation, a, b)
            return Column(values, valid & ~wrapped)
        a, b = left.values.astype(np.float64), right.values.astype(np.float64)
        values = _FLOAT_OPERATIONS[self.operation](a, b)
        return Column(values, valid & np.isfinite(values))


_FLOAT_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}


def _checked_integer(operation: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Result in int64 and where it wrapped around."""
    if operation == "add":
        total = a + b
        return total, ((a ^ total) & (b ^ total)) < 0
    if operation == "subtract":
        difference = a - b
        return difference, ((a ^ b) & (a ^ difference)) < 0
    product = a * b
    # The double product is off by at most one part in 2^53, so near 2^63 it cannot tell: refuse a hair early.
    return product, np.abs(a.astype(np.float64) * b.astype(np.float64)) >= 2.0**63 * (1 - 2.0**-50)


class Comparison(Expression):
    """``== != < <= > >=`` between two numbers, two strings (only == and !=) or two timestamps; bool."""

    dtype = "bool"

    def __init__(self, operation: str, left: Expression, right: Expression) -> None:
        self.operation, self.left, self.right = operation, left, right
        self.definition = [operation, left.definition, right.definition]
        numbers = left.dtype in NUMERIC and right.dtype in NUMERIC
        strings = left.dtype == right.dtype == "string" and operation in ("eq", "ne")
        if not (numbers or strings or left.dtype == right.dtype == "timestamp"):
            raise DefinitionError(
                f"cannot compare {left.dtype} with {right.dtype} by {operation} in {self.key}: "
                "wanted two numbers, two timestamps, or == and != of two strings"
            )

    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def evaluate(self, of: Evaluator) -> Column:
        left, right = of.column(self.left), of.column(self.right)
        valid = left.valid & right.valid
        if self.left.dtype == "string":
            equal = pc.fill_null(pc.equal(left.values, right.values), False).to_numpy(zero_copy_only=False)
            return Column(equal if self.operation == "eq" else ~equal, valid)
        return Column(getattr(operator, self.operation)(left.values, right.values), valid)


class Logic(Expression):
    """Kleene ``and`` and ``or`` of two booleans: null only where the known side does not decide."""

    dtype = "bool"

    def __init__(self, operation: str, left: Expression, right: Expression) -> None:
        self.operation, self.left, self.right = operation, left, right
        self.definition = [operation, left.definition, right.definition]
        if left.dtype != "bool" or right.dtype != "bool":
            raise DefinitionError(f"{operation} in {self.key} got {left.dtype} and {right.dtype}, wanted two booleans")

    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def evaluate(self, of: Evaluator) -> Column:
        left, right = of.column(self.left), of.column(self.right)
        decides = self.operation == "or"  # True decides an or, False decides an and
        decided = (left.valid & (left.values == decides)) | (right.valid & (right.values == decides))
        values = decided if decides else ~decided
        return Column(values, decided | (left.valid & right.valid))


class Not(Expression):
    """Negation of a boolean; null stays null."""

    dtype = "bool"

    def __init__(self, part: Expression) -> None:
        self.part = part
        self.definition = ["not", part.definition]
        if part.dtype != "bool":
            raise DefinitionError(f"not in {self.key} got {part.dtype}, wanted a boolean")

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        return Column(~column.values, column.valid)


class IsNull(Expression):
    """True where the part is null."""

    dtype = "bool"

    def __init__(self, part: Expression) -> None:
        self.part = part
        self.definition = ["is_null", part.definition]

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        return Column(~of.column(self.part).valid, np.ones(of.rows, dtype=bool))


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
        return Column(chosen.values, chosen.valid & condition.valid)


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


def where(condition: Expression, then: Any, otherwise: Any) -> Expression:
    """``then`` where the condition is true, ``otherwise`` where it is false, null where it is null."""
    return Choice(condition, literal(then), literal(otherwise))


def coalesce(first: Expression, *others: Any) -> Expression:
    """The first value that is not null, from left to right."""
    result = first
    for other in others:
        result = Coalesce(result, literal(other))
    return result


def _common_dtype(key: str, a: Expression, b: Expression) -> str:
    if a.dtype == b.dtype:
        return a.dtype
    if a.dtype in NUMERIC and b.dtype in NUMERIC:
        return "float64" if "float64" in (a.dtype, b.dtype) else "int64"
    raise DefinitionError(f"{key} mixes {a.dtype} and {b.dtype}: wanted two values of one type")


def _choose(first: np.ndarray, a: Column, b: Column, dtype: str) -> Column:
    valid = np.where(first, a.valid, b.valid)
    if dtype == "string":
        return Column(pc.if_else(pa.array(first), a.values, b.values), valid)
    numpy_type = NUMPY_TYPES[dtype]
    return Column(np.where(first, a.values.astype(numpy_type), b.values.astype(numpy_type)), valid)


class Calendar(Expression):
    """A part of the wall clock of a timestamp in a named time zone; int64."""

    dtype = "int64"

    def __init__(self, unit: str, part: Expression, zone: str) -> None:
        self.unit, self.part, self.zone = unit, part, zone
        self.definition = [unit, part.definition, zone]
        if part.dtype != "timestamp":
            raise DefinitionError(f"{unit} in {self.key} got {part.dtype}, wanted a timestamp")
        timezones.check_zone(zone)

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        local_us = timezones.to_local_us(np.where(column.valid, column.values, 0), self.zone)
        if self.unit == "hour":
            values = local_us % _DAY_US // _HOUR_US
        elif self.unit == "minute_of_day":
            values = local_us % _DAY_US // 60_000_000
        elif self.unit == "weekday":
            values = (local_us // _DAY_US + 3) % 7  # 1970-01-01 was a Thursday
        else:
            days = (local_us // _DAY_US).astype("datetime64[D]")
            values = days.astype("datetime64[M]").astype(np.int64) % 12 + 1
        return Column(values, column.valid)
