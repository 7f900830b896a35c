"""Row-level expressions: what can be said about one row, and the one engine that computes it.

An expression is a tree of nodes, built with Python's operators from event fields. It has a dtype
(``int64``, ``float64``, ``bool``, ``string``, ``timestamp`` or ``list``) that follows from its parts, so that a
definition that cannot work fails when the app is imported. Batch and streaming evaluate it with the same
call, `Evaluator.column`, over a block of rows.

Null rule: null in, null out, except for ``is_null``, ``coalesce`` and Kleene logic (``False & null`` is
``False``). NaN, infinity and int64 overflow become null (contract C4). All arithmetic is IEEE 754 double or
int64, which every CPU computes alike; exp and log come from `shared_features.elementary`, never from the platform.

    expressions   the tree and its operators; constants, fields       choices      where, coalesce, minimum, maximum
    arithmetic    + - * /                                             functions    of numbers and of texts
    nodes         comparison, logic, is_null, isin                    calendars    parts of the wall clock
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa

from shared_features.columns import ARROW_TYPES, NUMPY_TYPES, Column, Evaluator, all_valid
from shared_features.errors import DefinitionError
from shared_features.source_lines import SourceLine, caller

NUMERIC = ("int64", "float64", "bool")

_LITERAL_ROWS = 64
"""Columns of constants of up to so many rows are cut from one that is kept."""


class Expression:
    """Base of all nodes. Subclasses set `dtype` and `definition`; `key` names the node canonically.

    Attributes:
        at: the line of the app's file that the node comes from, None if there is none.
        stored_in: the column of a block that it is, if it is one.
        is_leaf: whether `evaluate` only takes what is there, with no arithmetic that NumPy could warn of.
    """

    dtype: str
    definition: list[Any]
    at: SourceLine | None
    is_leaf = False
    stored_in: str | None = None

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A node that remembers the line of the app's file that made it, for errors found later."""
        made = super().__new__(cls)
        made.at = caller()
        return made

    @functools.cached_property
    def key(self) -> str:
        """The definition as canonical JSON: equal for expressions that compute the same."""
        return json.dumps(self.definition, separators=(",", ":"), ensure_ascii=True)

    @property
    def arrow_type(self) -> pa.DataType:
        """What its column is in Arrow and in Parquet."""
        return ARROW_TYPES[self.dtype]

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
        return arithmetic.Arithmetic("add", self, literal(other))

    def __radd__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("add", literal(other), self)

    def __sub__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("subtract", self, literal(other))

    def __rsub__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("subtract", literal(other), self)

    def __mul__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("multiply", self, literal(other))

    def __rmul__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("multiply", literal(other), self)

    def __truediv__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("divide", self, literal(other))

    def __rtruediv__(self, other: Any) -> Expression:
        return arithmetic.Arithmetic("divide", literal(other), self)

    def __neg__(self) -> Expression:
        return arithmetic.Arithmetic("subtract", literal(0), self)

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

    def fill(self, value: Any) -> Expression:
        """The value, and ``value`` where it is null; the same as ``coalesce(self, value)``."""
        return choices.coalesce(self, value)

    def isin(self, values: Iterable[Any]) -> Expression:
        """True where the value equals one of ``values`` (texts, numbers or booleans); null where it is null."""
        return nodes.IsIn(self, values)

    def __abs__(self) -> Expression:
        return functions.Absolute(self)

    def abs(self) -> Expression:
        """Magnitude: int64 of integers and booleans (null for −2^63), float64 of floats."""
        return functions.Absolute(self)

    def clip(self, low: Any = None, high: Any = None) -> Expression:
        """The value, not below ``low`` and not above ``high``, each a number or an expression; null if one is null."""
        return choices.clip(self, low, high)

    def floor(self) -> Expression:
        """Greatest whole number not above the value, int64; null beyond int64."""
        return functions.Whole("floor", self)

    def ceil(self) -> Expression:
        """Least whole number not below the value, int64; null beyond int64."""
        return functions.Whole("ceil", self)

    def round(self) -> Expression:
        """Nearest whole number, halves to the even one, int64; null beyond int64."""
        return functions.Whole("round", self)

    def sqrt(self) -> Expression:
        """Square root, float64, rounded once (IEEE 754); null below zero."""
        return functions.Elementary("sqrt", self)

    def log(self) -> Expression:
        """Natural logarithm, float64, the same bits on every CPU; null for zero and below."""
        return functions.Elementary("log", self)

    def log1p(self) -> Expression:
        """Natural logarithm of 1 + the value, float64, exact also near zero; null for −1 and below."""
        return functions.Elementary("log1p", self)

    def exp(self) -> Expression:
        """e to the power of the value, float64, the same bits on every CPU; null where it overflows."""
        return functions.Elementary("exp", self)

    def sin_deg(self) -> Expression:
        """Sine of an angle in degrees, float64, the same bits on every CPU; null beyond 2^45 degrees."""
        return functions.Elementary("sin_deg", self)

    def cos_deg(self) -> Expression:
        """Cosine of an angle in degrees, float64, the same bits on every CPU; null beyond 2^45 degrees."""
        return functions.Elementary("cos_deg", self)

    def bucket(self, edges: Iterable[float]) -> Expression:
        """How many of ``edges`` (ascending) are at or below the value, int64 from 0 to their number."""
        return functions.Bucket(self, edges)

    def hash_bucket(self, buckets: int) -> Expression:
        """Hash bucket of a string or integer, int64 from 0 to ``buckets`` − 1, the same everywhere and for ever."""
        return functions.HashBucket(self, buckets)

    def hour(self, zone: str = "UTC") -> Expression:
        """Hour of the day 0 to 23 (int64) in the IANA time zone ``zone``."""
        return calendars.Calendar("hour", self, zone)

    def weekday(self, zone: str = "UTC") -> Expression:
        """Day of the week, Monday 0 to Sunday 6 (int64), in the IANA time zone ``zone``."""
        return calendars.Calendar("weekday", self, zone)

    def month(self, zone: str = "UTC") -> Expression:
        """Month 1 to 12 (int64) in the IANA time zone ``zone``."""
        return calendars.Calendar("month", self, zone)

    def day_of_year(self, zone: str = "UTC") -> Expression:
        """Day of the year, 1 to 366 (int64), in the IANA time zone ``zone``."""
        return calendars.Calendar("day_of_year", self, zone)

    def minute_of_day(self, zone: str = "UTC") -> Expression:
        """Minutes since local midnight by the wall clock, 0 to 1439 (int64)."""
        return calendars.Calendar("minute_of_day", self, zone)


class Literal(Expression):
    """A constant."""

    is_leaf = True

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
        self._few: Any = None
        self.definition = ["literal", dtype, value.hex() if isinstance(value, float) else value]

    def evaluate(self, of: Evaluator) -> Column:
        rows = of.rows
        if rows > _LITERAL_ROWS:
            return Column(self._repeated(rows), all_valid(rows))
        if self._few is None:
            self._few = self._repeated(_LITERAL_ROWS)
        return Column(self._few[:rows], all_valid(rows))

    def _repeated(self, rows: int) -> Any:
        if self.dtype == "string":
            return pa.repeat(pa.scalar(self.value, pa.string()), rows)
        return np.full(rows, self.value, dtype=NUMPY_TYPES[self.dtype])


def literal(value: Any) -> Expression:
    """``value`` itself if it is an expression, else a `Literal` of it."""
    return value if isinstance(value, Expression) else Literal(value)


_OF_ALL_TYPES = ("event_time", "event_id")
"""Columns of the envelope, which are null on no row."""


class Field(Expression):
    """A field of an event type; null on rows of other types."""

    is_leaf = True

    def __init__(self, event_type: str, field: str, column: str, dtype: str) -> None:
        self.event_type = event_type
        self.field = field
        self.column = column
        self.dtype = dtype
        self.stored_in = None if column in _OF_ALL_TYPES else column
        self.definition = ["field", event_type, field]

    def evaluate(self, of: Evaluator) -> Column:
        column = of.block_column(self.column, self.dtype)
        if self.stored_in is None:
            return Column(column.values, column.valid & of.is_type(self.event_type))
        return column


class BlockColumn(Expression):
    """A computed column of the block by its name: a feature, or an output of a model."""

    is_leaf = True

    def __init__(self, kind: str, names: Sequence[str], dtype: str) -> None:
        self.column = self.stored_in = ".".join([kind, *names])
        self.dtype = dtype
        self.definition = [kind, *names]

    def evaluate(self, of: Evaluator) -> Column:
        return of.block_column(self.column, self.dtype)


# The nodes are expressions themselves, so that this module and theirs need each other.
from shared_features import arithmetic, calendars, choices, functions, nodes  # noqa: E402
