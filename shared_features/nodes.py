"""Conditions: comparison, logic, ``is_null`` and ``isin``; all boolean."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.columns import FEW_ROWS, NUMPY_TYPES, Column, Evaluator, all_valid, both_valid
from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, Expression, Literal

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_WIDEST_EXACT = 2.0**53
"""Up to here every integer is a double."""


class Comparison(Expression):
    """``== != < <= > >=`` between two numbers, two strings (only == and !=) or two timestamps; bool.

    Numbers compare by value, an integer with a float too: 2^53 + 1 is not equal to 2.0^53.
    """

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
        self._mixed = {left.dtype, right.dtype} == {"int64", "float64"}

    def parts(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def evaluate(self, of: Evaluator) -> Column:
        if self.left.dtype == "string":
            return self._strings(of)
        left, right = of.column(self.left), of.column(self.right)
        values = _OPERATORS[self.operation](left.values, right.values)
        if self._mixed:
            values = self._exactly(left.values, right.values, values)
        return Column(values, both_valid(left, right))

    def _exactly(self, a: np.ndarray, b: np.ndarray, as_doubles: np.ndarray) -> np.ndarray:
        """Mend the rows whose integer is too wide to be a double: there Python's numbers compare exactly."""
        whole = a if self.left.dtype == "int64" else b
        wide = np.flatnonzero((whole >= _WIDEST_EXACT) | (whole <= -_WIDEST_EXACT))
        if len(wide):
            compare = _OPERATORS[self.operation]
            pairs = zip(a[wide].tolist(), b[wide].tolist(), strict=True)
            as_doubles[wide] = [compare(x, y) for x, y in pairs]
        return as_doubles

    def _strings(self, of: Evaluator) -> Column:
        left = of.column(self.left)
        if isinstance(self.right, Literal):
            valid, wanted = left.valid, self.right.value
            if of.rows <= FEW_ROWS:
                equal = np.array([one == wanted for one in left.values.to_pylist()], bool)
            else:
                equal = _booleans(pc.equal(left.values, wanted))
        else:
            right = of.column(self.right)
            valid, equal = both_valid(left, right), _booleans(pc.equal(left.values, right.values))
        return Column(equal if self.operation == "eq" else ~equal, valid)


def _booleans(array: pa.BooleanArray) -> np.ndarray:
    values: np.ndarray = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return values


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
        if self.operation == "or":  # True decides an or, False decides an and
            values = decided = (left.valid & left.values) | (right.valid & right.values)
        else:
            decided = (left.valid & ~left.values) | (right.valid & ~right.values)
            values = ~decided
        return Column(values, decided | both_valid(left, right))


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
        if part.dtype == "list":
            raise DefinitionError(f"is_null of the list {part.key}: a list is never null, wanted one of its values")

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        return Column(~of.column(self.part).valid, all_valid(of.rows))


class IsIn(Expression):
    """Whether the part equals one of some constants; null where the part is null."""

    dtype = "bool"

    def __init__(self, part: Expression, values: Iterable[Any]) -> None:
        self.part = part
        if isinstance(values, str | Expression):
            raise DefinitionError(f"isin of {part.key} got {values!r}, wanted a list of values such as ['a', 'b']")
        literals = [Literal(value) for value in values]
        self.definition = ["isin", part.definition, [literal.definition for literal in literals]]
        if not literals:
            raise DefinitionError(f"isin of {part.key} got no values: list at least one")
        for literal in literals:
            numbers = part.dtype in NUMERIC and literal.dtype in NUMERIC
            if not (numbers or part.dtype == literal.dtype == "string"):
                raise DefinitionError(f"isin of {part.key} cannot compare {part.dtype} with {literal.value!r}")
        self._set = frozenset(literal.value for literal in literals)
        if part.dtype == "string":
            self._sorted: Any = pa.array(sorted(self._set), pa.string())
        else:
            # A value that the part's type cannot hold, such as 2.5 among integers, equals none of its values.
            held = {python for python in map(_python(part.dtype), self._set) if python is not None}
            self._sorted = np.array(sorted(held), NUMPY_TYPES[part.dtype])

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        if self.part.dtype != "string":
            return Column(_among(column.values, self._sorted), column.valid)
        if of.rows <= FEW_ROWS:
            found = np.array([one in self._set for one in column.values.to_pylist()], bool)
        else:
            found = pc.is_in(column.values, self._sorted).to_numpy(zero_copy_only=False)
        return Column(found, column.valid)


def _among(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    if len(ascending) == 0:
        return np.zeros(len(values), bool)
    places = np.minimum(ascending.searchsorted(values), len(ascending) - 1)
    found: np.ndarray = ascending[places] == values
    return found


def _python(dtype: str) -> Callable[[Any], Any]:
    """From a number to the equal one of a dtype, None where there is none."""
    kind = {"int64": int, "float64": float, "bool": bool}[dtype]

    def converted(value: Any) -> Any:
        held = kind(value)
        fits = held == value and (dtype != "int64" or -(2**63) <= held < 2**63)
        return held if fits else None

    return converted
