"""Row-level expressions: what can be said about one row, and the one engine that computes it.

An expression is a tree of nodes, built with Python's operators from event fields. It has a dtype
(``int64``, ``float64``, ``bool``, ``string`` or ``timestamp``) that follows from its parts, so that a
definition that cannot work fails when the app is imported. Batch and streaming evaluate it with the same
call, `Evaluator.column`, over a block of rows.

Null rule: null in, null out, except for ``is_null``, ``coalesce`` and Kleene logic (``False & null`` is
``False``). NaN, infinity and int64 overflow become null (contract C4). All arithmetic is IEEE 754 double or
int64, which every CPU computes alike; nothing here calls exp, log or trigonometry of the platform.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.columns import NUMPY_TYPES, Column, Evaluator
from shared_features.errors import DefinitionError

NUMERIC = ("int64", "float64", "bool")


class Expression:
    """Base of all nodes. Subclasses set `dtype` and `definition`; `key` names the node canonically."""

    dtype: str
    definition: list[Any]

    @functools.cached_property
    def key(self) -> str:
        """The definition as canonical JSON: equal for expressions that compute the same."""
        return json.dumps(self.definition, separators=(",", ":"), ensure_ascii=True)

    def parts(self) -> tuple[Expression, ...]:
        """The expressions that this one is made of; none for a leaf or an aggregate."""
        return ()

    def walk(self) -> Iterator[Expression]:
        """This expression, then all that it is made of."""
        yield self
        for part in self.parts():
            yield from part.walk()

    def evaluate(self, of: Evaluator) -> Column:
        """Values and validity over the evaluator's block; shape [rows] each."""
        raise NotImplementedError

    # -- operators -------------------------------------------------------------------------------------
    def __add__(self, other: Any) -> Expression:
        return nodes.Arithmetic("add", self, literal(other))

    def __radd__(self, other: Any) -> Expression:
        return nodes.Arithmetic("add", literal(other), self)

    def __sub__(self, other: Any) -> Expression:
        return nodes.Arithmetic("subtract", self, literal(other))

    def __rsub__(self, other: Any) -> Expression:
        return nodes.Arithmetic("subtract", literal(other), self)

    def __mul__(self, other: Any) -> Expression:
        return nodes.Arithmetic("multiply", self, literal(other))

    def __rmul__(self, other: Any) -> Expression:
        return nodes.Arithmetic("multiply", literal(other), self)

    def __truediv__(self, other: Any) -> Expression:
        return nodes.Arithmetic("divide", self, literal(other))

    def __rtruediv__(self, other: Any) -> Expression:
        return nodes.Arithmetic("divide", literal(other), self)

    def __neg__(self) -> Expression:
        return nodes.Arithmetic("subtract", literal(0), self)

    def __lt__(self, other: Any) -> Expression:
        return nodes.Comparison("lt", self, literal(other))

    def __le__(self, other: Any) -> Expression:
        return nodes.Comparison("le", self, literal(other))

    def __gt__(self, other: Any) -> Expression:
        return nodes.Comparison("gt", self, literal(other))

    def __ge__(self, other: Any) -> Expression:
        return nodes.Comparison("ge", self, literal(other))

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return nodes.Comparison("eq", self, literal(other))

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return nodes.Comparison("ne", self, literal(other))

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Expression:
        return nodes.Logic("and", self, literal(other))

    def __rand__(self, other: Any) -> Expression:
        return nodes.Logic("and", literal(other), self)

    def __or__(self, other: Any) -> Expression:
        return nodes.Logic("or", self, literal(other))

    def __ror__(self, other: Any) -> Expression:
        return nodes.Logic("or", literal(other), self)

    def __invert__(self) -> Expression:
        return nodes.Not(self)

    def __bool__(self) -> bool:
        raise DefinitionError(
            f"expression {self.key} was used as True or False, wanted an expression: "
            "write & | ~ instead of and, or, not, and where(...) instead of if"
        )

    # -- functions -------------------------------------------------------------------------------------
    def is_null(self) -> Expression:
        """True where the value is missing; never null."""
        return nodes.IsNull(self)

    def isin(self, values: Sequence[Any]) -> Expression:
        """True where the value equals one of ``values``; null where the value is null."""
        if not values:
            raise DefinitionError(f"isin of {self.key} got no values: list at least one")
        result: Expression = self == values[0]
        for value in values[1:]:
            result = result | (self == value)
        return result

    def hour(self, zone: str = "UTC") -> Expression:
        """Hour of the day 0 to 23 (int64) in the IANA time zone ``zone``."""
        return nodes.Calendar("hour", self, zone)

    def weekday(self, zone: str = "UTC") -> Expression:
        """Day of the week, Monday 0 to Sunday 6 (int64), in the IANA time zone ``zone``."""
        return nodes.Calendar("weekday", self, zone)

    def month(self, zone: str = "UTC") -> Expression:
        """Month 1 to 12 (int64) in the IANA time zone ``zone``."""
        return nodes.Calendar("month", self, zone)

    def minute_of_day(self, zone: str = "UTC") -> Expression:
        """Minutes since local midnight by the wall clock, 0 to 1439 (int64)."""
        return nodes.Calendar("minute_of_day", self, zone)


class Literal(Expression):
    """A constant."""

    def __init__(self, value: bool | int | float | str) -> None:
        kinds = {bool: "bool", int: "int64", float: "float64", str: "string"}
        dtype = kinds.get(type(value))
        if dtype is None:
            raise DefinitionError(
                f"literal {value!r} is of type {type(value).__name__}, wanted bool, int, float or str"
            )
        if isinstance(value, float) and not np.isfinite(value):
            raise DefinitionError(f"literal {value!r} is not a finite number: null is how a missing value is said")
        if dtype == "int64" and not -(2**63) <= int(value) < 2**63:
            raise DefinitionError(f"literal {value!r} does not fit int64")
        self.value = value
        self.dtype = dtype
        self.definition = ["literal", dtype, value.hex() if isinstance(value, float) else value]

    def evaluate(self, of: Evaluator) -> Column:
        valid = np.ones(of.rows, dtype=bool)
        if self.dtype == "string":
            return Column(pa.array([self.value] * of.rows, pa.string()), valid)
        return Column(np.full(of.rows, self.value, dtype=NUMPY_TYPES[self.dtype]), valid)


def literal(value: Any) -> Expression:
    """``value`` itself if it is an expression, else a `Literal` of it."""
    return value if isinstance(value, Expression) else Literal(value)


class Field(Expression):
    """A field of an event type; null on rows of other types."""

    def __init__(self, event_type: str, field: str, column: str, dtype: str) -> None:
        self.event_type = event_type
        self.field = field
        self.column = column
        self.dtype = dtype
        self.definition = ["field", event_type, field]

    def evaluate(self, of: Evaluator) -> Column:
        column = of.block_column(self.column, self.dtype)
        if self.column in ("event_time", "event_id"):  # the envelope is shared by all types
            return Column(column.values, column.valid & of.is_type(self.event_type))
        return column


class BlockColumn(Expression):
    """A computed column of the block by its name: a feature, or an output of a model."""

    def __init__(self, kind: str, names: Sequence[str], dtype: str) -> None:
        self.column = ".".join([kind, *names])
        self.dtype = dtype
        self.definition = [kind, *names]

    def evaluate(self, of: Evaluator) -> Column:
        return of.block_column(self.column, self.dtype)


# The nodes are expressions themselves, so that this module and theirs need each other.
from shared_features import nodes  # noqa: E402
