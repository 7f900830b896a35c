"""Columns, and the one engine that computes expressions over a block of rows, in batch and in streaming."""

from __future__ import annotations

from collections.abc import Mapping
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


class Column(NamedTuple):
    """Values of one expression over a block: NumPy (a ``pa.StringArray`` for strings) and where they are valid.

    ``values`` has shape [rows]; timestamps are int64 microseconds since 1970 UTC. What stands in ``values``
    where ``valid`` is False means nothing.
    """

    values: Any
    valid: np.ndarray


class Evaluator:
    """Evaluates expressions over one block, each distinct node once.

    Args:
        block: rows with the columns that the expressions name.
        extra: columns by node key that are known already (the aggregates of the stages).
    """

    def __init__(self, block: pa.RecordBatch, extra: Mapping[str, Column] | None = None) -> None:
        self.block = block
        self.rows = block.num_rows
        self._columns: dict[str, Column] = dict(extra or {})
        self._types: dict[str, np.ndarray] = {}
        self._identities: np.ndarray | None = None

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
            with np.errstate(all="ignore"):
                found = expression.evaluate(self)
            self._columns[key] = found
        return found

    def array(self, expression: Expression) -> pa.Array:
        """``expression`` as an Arrow array with nulls."""
        return to_arrow(self.column(expression), expression.dtype)

    def is_type(self, event_type: str) -> np.ndarray:
        """Which rows are events of ``event_type``; bool, shape [rows]."""
        found = self._types.get(event_type)
        if found is None:
            found = pc.equal(self.block.column("event_type"), event_type).to_numpy(zero_copy_only=False)
            self._types[event_type] = found
        return found

    def block_column(self, name: str, dtype: str) -> Column:
        """The block's own column ``name``, which is of ``dtype``."""
        key = "column:" + name
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = from_arrow(self.block.column(name), dtype)
        return found


def from_arrow(array: pa.Array, dtype: str) -> Column:
    """An Arrow array as a `Column`; no copy where the layout allows."""
    valid = (
        np.ones(len(array), dtype=bool) if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
    )
    if dtype == "string":
        return Column(array, valid)
    if dtype == "bool":
        return Column(pc.fill_null(array, False).to_numpy(zero_copy_only=False), valid)
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return Column(np.zeros(len(array), dtype=NUMPY_TYPES[dtype]), valid)
    values: np.ndarray = np.frombuffer(buffer, dtype=NUMPY_TYPES[dtype])[array.offset : array.offset + len(array)]
    return Column(values, valid)


def to_arrow(column: Column, dtype: str) -> pa.Array:
    """A `Column` as an Arrow array of ``dtype`` with nulls."""
    missing = len(column.valid) - int(np.count_nonzero(column.valid))
    all_valid = missing == 0
    if dtype == "string":
        # What is valid is never null in the array itself, so equal counts mean that the nulls are the same.
        same = column.values.null_count == missing
        return column.values if same else pc.if_else(pa.array(column.valid), column.values, None)
    mask = None if all_valid else ~column.valid
    converted: np.ndarray = np.ascontiguousarray(column.values, dtype=NUMPY_TYPES[dtype])
    if dtype == "timestamp":
        return pa.array(converted, pa.int64(), mask=mask).cast(ARROW_TYPES["timestamp"])
    return pa.array(converted, ARROW_TYPES[dtype], mask=mask)
