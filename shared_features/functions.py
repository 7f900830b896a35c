"""Functions of one value: of numbers, and the hash buckets of texts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from shared_features import elementary
from shared_features.columns import Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import NUMERIC, Expression
from shared_features.hashing import HASH_NAME, hash_column

_LEAST = np.iinfo(np.int64).min
_MOST_BUCKETS = 2**31


def _require_number(name: str, part: Expression) -> None:
    if part.dtype not in NUMERIC:
        raise DefinitionError(f"{name} of {part.key} got a {part.dtype}, wanted a number")


class Absolute(Expression):
    """Magnitude of a number: int64 of integers and booleans, null for −2^63, whose magnitude is no int64."""

    def __init__(self, part: Expression) -> None:
        self.part = part
        self.definition = ["abs", part.definition]
        _require_number("abs", part)
        self.dtype = "float64" if part.dtype == "float64" else "int64"

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        if self.dtype == "float64":
            return Column(np.abs(column.values), column.valid)
        values = column.values.astype(np.int64, copy=False)
        return Column(np.abs(values), column.valid & (values != _LEAST))


class Whole(Expression):
    """``floor``, ``ceil`` or ``round`` (halves to even) of a number as int64; null where it does not fit."""

    dtype = "int64"

    def __init__(self, operation: str, part: Expression) -> None:
        self.operation, self.part = operation, part
        self.definition = [operation, part.definition]
        _require_number(operation, part)
        self._function: Callable[[Any], Any] = {"floor": np.floor, "ceil": np.ceil, "round": np.rint}[operation]

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        if self.part.dtype != "float64":
            return Column(column.values.astype(np.int64, copy=False), column.valid)
        whole = self._function(column.values)
        fits = (whole >= -(2.0**63)) & (whole < 2.0**63)
        # What does not fit is cast by each CPU in its own way: never cast it.
        return Column(np.where(fits, whole, 0.0).astype(np.int64), column.valid & fits)


class Elementary(Expression):
    """``sqrt``, ``log``, ``log1p``, ``exp``, ``sin_deg`` or ``cos_deg`` of a number, float64; null where not finite.

    The square root is the one of IEEE 754, the others those of `shared_features.elementary`: no function of the
    platform, whose last bit depends on the CPU.
    """

    dtype = "float64"
    _FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
        "sqrt": np.sqrt,
        "log": elementary.log,
        "log1p": elementary.log1p,
        "exp": elementary.exp,
        "sin_deg": elementary.sin_deg,
        "cos_deg": elementary.cos_deg,
    }

    def __init__(self, operation: str, part: Expression) -> None:
        self.operation, self.part = operation, part
        self.definition = [operation, part.definition]
        _require_number(operation, part)

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        values = self._FUNCTIONS[self.operation](column.values.astype(np.float64, copy=False))
        return Column(values, column.valid & np.isfinite(values))


class Bucket(Expression):
    """Number of edges at or below the value, int64, from 0 to the number of edges."""

    dtype = "int64"

    def __init__(self, part: Expression, edges: Iterable[float]) -> None:
        self.part = part
        self.edges = [edge.item() if isinstance(edge, np.generic) else edge for edge in edges]
        _require_number("bucket", part)
        numbers = all(type(edge) in (int, float) and abs(edge) < math.inf for edge in self.edges)
        if not self.edges or not numbers or any(a >= b for a, b in itertools.pairwise(self.edges)):
            raise DefinitionError(
                f"bucket of {part.key} got the edges {self.edges}, wanted one or more finite numbers, each greater "
                "than the one before"
            )
        self.definition = ["bucket", part.definition, [_canonical(edge) for edge in self.edges]]
        self._below = 0
        if part.dtype == "float64":
            self._edges = np.array([_least_double(edge) for edge in self.edges], np.float64)
        else:
            # Of integers those at or above an edge are those at or above the next whole number.
            whole = [math.ceil(edge) for edge in self.edges]
            self._below = sum(edge < -(2**63) for edge in whole)
            self._edges = np.array([edge for edge in whole if -(2**63) <= edge < 2**63], np.int64)

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        values = column.values.astype(self._edges.dtype, copy=False)
        return Column(self._edges.searchsorted(values, "right") + self._below, column.valid)


def _canonical(edge: float) -> str | int:
    """Equal edges, equal definitions: a float that is a whole number counts as that."""
    return int(edge) if edge == int(edge) else float(edge).hex()


def _least_double(edge: float) -> float:
    """The least double at or above an edge; only an integer beyond 2^53 is not one itself."""
    try:
        nearest = float(edge)
    except OverflowError:
        return math.copysign(math.inf, edge)
    return nearest if nearest >= edge else math.nextafter(nearest, math.inf)


class HashBucket(Expression):
    """``fnv1a64_fmix`` of a string or an integer modulo some number, int64."""

    dtype = "int64"

    def __init__(self, part: Expression, buckets: int) -> None:
        self.part, self.buckets = part, buckets
        if part.dtype not in ("string", "int64"):
            raise DefinitionError(f"hash_bucket of {part.key} got a {part.dtype}, wanted a string or an integer")
        if type(buckets) is not int or not 1 <= buckets <= _MOST_BUCKETS:
            raise DefinitionError(
                f"hash_bucket of {part.key} got {buckets!r} buckets, wanted a whole number from 1 to 2^31"
            )
        self.definition = ["hash_bucket", part.definition, buckets, HASH_NAME]

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        hashes = hash_column(of.array(self.part))
        return Column((hashes % np.uint64(self.buckets)).astype(np.int64), of.column(self.part).valid)
