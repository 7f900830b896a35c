"""Columns, and the one engine that computes expressions over a block of rows, in batch and in streaming.

A live event is a block of one row, so what a node costs at one row decides the latency: buffers are taken as they
are, what is valid everywhere is one shared array, and texts of few rows are compared in Python, where a call of
Arrow costs more than the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.hashing import hash_columns

if TYPE_CHECKING:
    from shared_features.expressions import Expression

ARROW_TYPES: Mapping[str, pa.DataType] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
NUMPY_TYPES: Mapping[str, Any] = {
    "int64": np.int64,
    "float64": np.float64,
    "bool": np.bool_,
    "timestamp": np.int64,
}
FEW_ROWS = 16
"""Up to here Python handles texts faster than a call of Arrow does."""

_SHARED_ROWS = 1024
_all_valid: dict[int, np.ndarray] = {}


class Column(NamedTuple):
    """Values of one expression over a block, and where they are valid.

    ``values`` is NumPy of shape [rows], a ``pa.StringArray`` for strings, `ListValues` for lists; timestamps are
    int64 microseconds since 1970 UTC. ``valid`` is bool of shape [rows]. What stands in ``values`` where ``valid``
    is False means nothing. Neither is ever written to: both are shared.
    """

    values: Any
    valid: np.ndarray


class ListValues(NamedTuple):
    """Values of a list: one column of ``dtype`` for each place of the list, each of shape [rows]."""

    dtype: str
    items: tuple[Column, ...]


def all_valid(rows: int) -> np.ndarray:
    """True on all rows, read-only; for blocks of up to 1,024 rows always the same array."""
    found = _all_valid.get(rows)
    if found is None:
        found = np.ones(rows, dtype=bool)
        found.flags.writeable = False
        if rows <= _SHARED_ROWS:
            _all_valid[rows] = found
    return found


def both_valid(a: Column, b: Column) -> np.ndarray:
    """Where both columns are valid; bool, shape [rows]."""
    return a.valid if a.valid is b.valid else a.valid & b.valid


class Evaluator:
    """Evaluates expressions over one block, each distinct node once.

    Args:
        block: rows with the columns that the expressions name.
        extra: columns by node key that are known already (the aggregates of the stages).
        stored: by node key, the column and the dtype under which the block holds the node's values, read when asked.
    """

    def __init__(
        self,
        block: pa.RecordBatch,
        extra: Mapping[str, Column] | None = None,
        stored: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self.block = block
        self.rows = block.num_rows
        self._columns: dict[str, Column] = dict(extra or {})
        self._stored = stored or {}
        self._types: dict[str, np.ndarray] = {}
        self._identities: np.ndarray | None = None
        self._quiet = False

    def __contains__(self, expression: Expression) -> bool:
        return expression.key in self._columns

    def learn(self, expression: Expression, column: Column) -> None:
        """Take the values of ``expression`` from elsewhere: an aggregate's, from its stage."""
        self._columns[expression.key] = column

    def learn_column(self, name: str, column: Column) -> None:
        """Take a column as if the block had it."""
        self._columns["column:" + name] = column

    def identities(self) -> np.ndarray:
        """Hash of (event type, event id) of each row: the order inside one microsecond; uint64, shape [rows]."""
        if self._identities is None:
            self._identities = hash_columns([self.block.column("event_type"), self.block.column("event_id")])
        return self._identities

    def column(self, expression: Expression) -> Column:
        """Values and validity of ``expression``, shape [rows] each."""
        key = expression.key
        found = self._columns.get(key)
        if found is None:
            stored = self._stored.get(key)
            if stored is not None:
                found = self._columns[key] = from_arrow(self.block.column(stored[0]), stored[1])
                return found
            if not (self._quiet or expression.is_leaf):
                return self.columns([expression])[0]
            found = self._columns[key] = expression.evaluate(self)
        return found

    def columns(self, expressions: Iterable[Expression]) -> list[Column]:
        """Values and validity of several expressions."""
        expressions = list(expressions)
        known = [self._columns.get(expression.key) for expression in expressions]
        found = [column for column in known if column is not None]
        if len(found) == len(known):
            return found
        if self._quiet:
            return [self.column(expression) for expression in expressions]
        # NumPy's warnings are turned off once for all of them: turning them off costs as much as three nodes.
        with np.errstate(all="ignore"):
            self._quiet = True
            try:
                return [self.column(expression) for expression in expressions]
            finally:
                self._quiet = False

    def array(self, expression: Expression) -> pa.Array:
        """``expression`` as an Arrow array with nulls."""
        name = expression.stored_in
        if name is not None and "column:" + name not in self._columns:
            return self.block.column(name)
        return to_arrow(self.column(expression), expression.dtype)

    def is_type(self, event_type: str) -> np.ndarray:
        """Which rows are events of ``event_type``; bool, shape [rows]."""
        found = self._types.get(event_type)
        if found is None:
            found = self._types[event_type] = is_one_of(self.block.column("event_type"), event_type)
        return found

    def block_column(self, name: str, dtype: str) -> Column:
        """The block's own column ``name``, which is of ``dtype``."""
        key = "column:" + name
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = from_arrow(self.block.column(name), dtype)
        return found


def is_one_of(texts: pa.Array, *values: str) -> np.ndarray:
    """Which of some texts, none of them null, are one of ``values``; bool, shape [rows]."""
    if len(texts) <= FEW_ROWS:
        return np.array([text in values for text in texts.to_pylist()], np.bool_)
    same = pc.equal(texts, values[0]) if len(values) == 1 else pc.is_in(texts, pa.array(values))
    found: np.ndarray = same.to_numpy(zero_copy_only=False)
    return found


def from_arrow(array: pa.Array, dtype: str) -> Column:
    """An Arrow array as a `Column`; no copy where the layout allows."""
    rows = len(array)
    validity, *buffers = array.buffers()
    valid = all_valid(rows) if array.null_count == 0 else _bits(validity, array.offset, rows)
    if dtype == "string":
        return Column(array, valid)
    if dtype == "list":
        return Column(_list_values(array), valid)
    if buffers[0] is None or rows == 0:
        return Column(np.zeros(rows, dtype=NUMPY_TYPES[dtype]), valid)
    if dtype == "bool":
        return Column(_bits(buffers[0], array.offset, rows), valid)
    return Column(np.frombuffer(buffers[0], NUMPY_TYPES[dtype], rows, array.offset * 8), valid)


def _bits(buffer: pa.Buffer, offset: int, rows: int) -> np.ndarray:
    """Some bits of a bitmap, least significant first, as bool of shape [rows]."""
    first = offset // 8
    some = np.frombuffer(buffer, np.uint8, (offset + rows + 7) // 8 - first, first)
    spread: np.ndarray = np.unpackbits(some, count=offset - first * 8 + rows, bitorder="little").view(bool)
    return spread[offset - first * 8 :]


def _list_values(array: pa.FixedSizeListArray) -> ListValues:
    dtype = next(name for name, kind in ARROW_TYPES.items() if kind == array.type.value_type)
    # A place of a null list counts as null, whatever the child array holds there.
    items = (pc.list_element(array, place) for place in range(array.type.list_size))
    return ListValues(dtype, tuple(from_arrow(item, dtype) for item in items))


def to_arrow(column: Column, dtype: str) -> pa.Array:
    """A `Column` as an Arrow array of ``dtype`` with nulls.

    A list becomes a fixed-size list, which is never null itself: where the column is not valid, all of its places
    are null. Parquet files cannot hold a null list of a fixed size.
    """
    valid = column.valid
    rows = len(valid)
    missing = rows - int(np.count_nonzero(valid))
    if dtype == "string":
        # What is valid is never null in the array itself, so equal counts mean that the nulls are the same.
        same = column.values.null_count == missing
        return column.values if same else pc.if_else(pa.array(valid), column.values, None)
    if dtype == "list":
        item_dtype, items = column.values
        items = items if missing == 0 else [Column(one.values, one.valid & valid) for one in items]
        return _list_array([to_arrow(item, item_dtype) for item in items])
    validity = None if missing == 0 else _bitmap(valid)
    if dtype == "bool":
        return pa.Array.from_buffers(ARROW_TYPES[dtype], rows, [validity, _bitmap(column.values)], missing)
    values = np.ascontiguousarray(column.values, NUMPY_TYPES[dtype])
    return pa.Array.from_buffers(ARROW_TYPES[dtype], rows, [validity, pa.py_buffer(values)], missing)


def to_arrow_where(columns: Sequence[tuple[Column, str]], rows: np.ndarray) -> list[pa.Array]:
    """Columns, each with its dtype, as Arrow arrays that are null outside ``rows`` (bool, shape [rows]).

    For few rows all columns of one dtype become one array and each a slice of it: making an array costs 2 µs, which
    an event with thirty features would pay thirty times.
    """
    found: list[Any] = [None] * len(columns)
    count = len(rows)
    for dtype in dict.fromkeys(dtype for _, dtype in columns):
        places = [place for place, (_, one) in enumerate(columns) if one == dtype]
        if len(places) > 1 and 0 < count <= FEW_ROWS and dtype in NUMPY_TYPES:
            values = np.concatenate([columns[place][0].values for place in places])
            valid = np.concatenate([columns[place][0].valid for place in places])
            valid = (valid.reshape(len(places), count) & rows).ravel()
            together = to_arrow(Column(values, valid), dtype)
            for number, place in enumerate(places):
                found[place] = together.slice(number * count, count)
        else:
            for place in places:
                column = columns[place][0]
                found[place] = to_arrow(Column(column.values, column.valid & rows), dtype)
    return found


def _bitmap(values: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(values, bitorder="little"))


def _list_array(places: list[pa.Array]) -> pa.FixedSizeListArray:
    rows, size = len(places[0]), len(places)
    flat = pa.concat_arrays(places)
    if rows != 1 and size != 1:
        flat = flat.take(pa.array(np.arange(rows * size).reshape(size, rows).T.ravel()))
    return pa.FixedSizeListArray.from_arrays(flat, size)
