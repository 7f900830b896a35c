"""A block of features as the bytes of one Predict request.

Written straight from the columns' buffers: a message object per tensor would cost more than the call itself for
one row. The layout is protocol buffers' own; ``tests/test_wire.py`` reads it back with the official messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.tensors import Array, varint
from serving.wire import DataType, ModelSpec

if TYPE_CHECKING:
    import pyarrow as pa

_FLOATS: dict[str, np.dtype[Any]] = {"DT_FLOAT": np.dtype("<f4"), "DT_DOUBLE": np.dtype("<f8")}
_INTEGERS: dict[str, np.dtype[Any]] = {
    "DT_INT64": np.dtype("<i8"),
    "DT_INT32": np.dtype("<i4"),
    "DT_INT16": np.dtype("<i2"),
    "DT_INT8": np.dtype("i1"),
    "DT_UINT8": np.dtype("u1"),
    "DT_BOOL": np.dtype("?"),
}
_NUMERIC_OUTPUTS = {"DT_DOUBLE", "DT_FLOAT", "DT_HALF", "DT_UINT16", "DT_UINT32", "DT_UINT64"} | set(_INTEGERS)
_FEW_ROWS = 16  # below this a dictionary of the distinct strings, or a cast, costs more than it saves


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, as its server states it.

    Attributes:
        inputs: input name to type name, for example ``DT_FLOAT``.
        outputs: output name to type name.
        model_version: version that stated it.
        input_shapes: input name to shape, None where any size goes; None for a shape of unknown rank.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    model_version: int = 0
    input_shapes: dict[str, tuple[int | None, ...] | None] = field(default_factory=dict)

    @classmethod
    def from_proto(cls, signature: Any, model_version: int) -> Signature:
        """From a SignatureDef message."""
        shapes = {
            name: None
            if info.tensor_shape.unknown_rank
            else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
            for name, info in sorted(signature.inputs.items())
        }
        return cls(
            {name: DataType(info.dtype).name for name, info in sorted(signature.inputs.items())},
            {name: DataType(info.dtype).name for name, info in sorted(signature.outputs.items())},
            model_version,
            shapes,
        )


class SignatureMismatchError(Exception):
    """The block cannot be what the model takes; the text names the column."""


class RequestEncoder:
    """Encodes blocks for one model and signature.

    Numbers and booleans go as the input's float type by way of float64 (so that a value does not depend on its
    neighbours), null as NaN; strings as UTF-8, null as ``""``. Integer and boolean inputs have no missing value:
    `unusable` names such rows. A fixed-size list of n goes to an input of shape [rows, n], each place as a value is.

    Attributes:
        outputs: names of the outputs to ask for, the numeric ones.

    Args:
        model: model name, or a ModelSpec that says which version, too.
        signature: what the server stated; SignatureMismatchError if some input cannot come from a column.
    """

    def __init__(self, model: Any, signature: Signature) -> None:
        self.signature = signature
        spec = (ModelSpec(name=model) if isinstance(model, str) else model).SerializeToString()
        self._head = b"\x0a" + varint(len(spec)) + spec
        self._tail = b""
        self.outputs = [name for name, dtype in signature.outputs.items() if dtype in _NUMERIC_OUTPUTS]
        if not self.outputs:
            raise SignatureMismatchError("the model has no numeric output")
        if len(self.outputs) < len(signature.outputs):
            self._tail = b"".join(b"\x1a" + varint(len(name.encode())) + name.encode() for name in self.outputs)
        self._columns: list[tuple[str, Callable[[pa.Array], list[Any]]]] = []
        for name, dtype in signature.inputs.items():
            shape = signature.input_shapes.get(name, (None,))
            if shape is not None and len(shape) not in (1, 2):
                raise SignatureMismatchError(f"input {name!r} of shape {shape} cannot be made from one column")
            rows = _Rows(name, shape)
            if dtype == "DT_STRING":
                self._columns.append((name, _StringColumn(name, rows)))
            elif dtype in _FLOATS or dtype in _INTEGERS:
                self._columns.append((name, _NumberColumn(name, dtype, rows)))
            else:
                raise SignatureMismatchError(f"input {name!r} of type {dtype} cannot be made from a feature")

    def encode(self, block: pa.RecordBatch) -> bytes:
        """The request for all rows of a block with one column per input (others are left out).

        SignatureMismatchError if a column is missing or of another kind.
        """
        parts: list[Any] = [self._head]
        schema = block.schema
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 may be beyond what the model's type holds
            for name, column in self._columns:
                index = schema.get_field_index(name)
                if index < 0:
                    raise SignatureMismatchError(f"the model takes {name!r}, which the block does not have")
                parts += column(block.column(index))
        parts.append(self._tail)
        return b"".join(parts)

    def unusable(self, block: pa.RecordBatch) -> dict[int, str]:
        """Rows that an integer or boolean input has no value for: row to reason. Empty for float models."""
        rows: dict[int, str] = {}
        for name, dtype in self.signature.inputs.items():
            kind = _INTEGERS.get(dtype)
            index = block.schema.get_field_index(name)
            if kind is None or index < 0:
                continue
            column, size = _flat(name, block.column(index))
            for place in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
                rows.setdefault(place // size, f"input {name!r} is null and {dtype} has no missing value")
            if kind.kind == "i" and column.null_count < len(column):
                limits = np.iinfo(kind)
                values = _float64(name, column)
                with np.errstate(invalid="ignore"):
                    fits = (values >= limits.min) & (values <= limits.max) & (values == np.floor(values))
                for place in np.flatnonzero(~fits).tolist():
                    rows.setdefault(place // size, f"input {name!r} is {values[place]:g}, which {dtype} cannot hold")
        return rows


class _Rows:
    """The shape of an input's tensor: [rows], or [rows, size] where the model has it so or the column is a list."""

    def __init__(self, name: str, shape: tuple[int | None, ...] | None) -> None:
        self._name, self._shape = name, shape

    def flat(self, column: pa.Array) -> tuple[pa.Array, int | None]:
        """All values of a column, row by row, and the second dimension; None for a tensor of one."""
        values, size = _flat(self._name, column)
        is_list = values is not column
        if self._shape is None:
            return values, size if is_list else None
        if len(self._shape) == 1 and not is_list:
            return values, None
        if len(self._shape) == 1 or self._shape[1] not in (None, size):
            wanted = "one value" if len(self._shape) == 1 else f"a list of {self._shape[1]}"
            got = f"a list of {size}" if is_list else "one value"
            raise SignatureMismatchError(
                f"input {self._name!r} of shape {self._shape} takes {wanted} a row, the block has {got}"
            )
        return values, size


def _flat(name: str, column: pa.Array) -> tuple[pa.Array, int]:
    """The values of a column, and how many a row has; those of a fixed-size list one after the other."""
    if type(column).__name__ != "FixedSizeListArray":  # by name: importing the client does not load Arrow
        return column, 1
    values, size = column.flatten(), column.type.list_size
    if len(values) != len(column) * size:
        raise SignatureMismatchError(f"input {name!r} is a list that is null in some rows, wanted lists of nulls")
    return values, size


class _NumberColumn:
    def __init__(self, name: str, dtype: str, rows: _Rows) -> None:
        self._name, self._rows = name, rows
        self._storage = _FLOATS.get(dtype) or _INTEGERS[dtype]
        self._floating = dtype in _FLOATS
        key = name.encode()
        key_bytes = b"\x0a" + varint(len(key)) + key
        dtype_bytes = b"\x08" + varint(DataType[dtype].value)

        @lru_cache(maxsize=64)
        def prefix(rows: int, width: int | None) -> bytes:
            size = rows * (1 if width is None else width) * self._storage.itemsize
            tensor = dtype_bytes + _shape(rows, width) + b"\x22" + varint(size)
            entry = key_bytes + b"\x12" + varint(len(tensor) + size) + tensor
            return b"\x12" + varint(len(entry) + size) + entry

        self._prefix = prefix

    def __call__(self, column: pa.Array) -> list[Any]:
        rows = len(column)
        column, width = self._rows.flat(column)
        if self._floating or column.type.bit_width != 64 or column.null_count:
            values = _float64(self._name, column)
        else:
            values = column.to_numpy(zero_copy_only=False)  # int64 as it is: float64 would round it
        return [self._prefix(rows, width), values.astype(self._storage, copy=False).tobytes()]


class _StringColumn:
    def __init__(self, name: str, rows: _Rows) -> None:
        self._name, self._rows = name, rows
        key = name.encode()
        self._key = b"\x0a" + varint(len(key)) + key
        self._known = lru_cache(maxsize=4096)(_string_value)  # carriers and airports come again and again

    def __call__(self, column: pa.Array) -> list[Any]:
        rows = len(column)
        column, width = self._rows.flat(column)
        kind = str(column.type)
        if kind.startswith("dictionary"):
            column = column.dictionary_decode()
            kind = str(column.type)
        if kind not in ("string", "large_string", "string_view", "null"):
            raise SignatureMismatchError(f"input {self._name!r} is a string to the model, {kind} in the block")
        known = self._known
        if len(column) < _FEW_ROWS or kind in ("string_view", "null"):
            values = b"".join([known(value) for value in column.to_pylist()])
        else:
            coded = column.dictionary_encode(null_encoding="encode")
            distinct = [known(value) for value in coded.dictionary.to_pylist()]
            values = b"".join(map(distinct.__getitem__, coded.indices.to_numpy().tolist()))
        tensor = b"\x08\x07" + _shape(rows, width)
        size = len(tensor) + len(values)
        entry = self._key + b"\x12" + varint(size) + tensor
        return [b"\x12" + varint(len(entry) + len(values)) + entry, values]


def _string_value(value: str | None) -> bytes:
    text = b"" if value is None else value.encode()
    return b"\x42" + varint(len(text)) + text


def _float64(name: str, column: pa.Array) -> Array:
    """Numbers and booleans as float64 with NaN for null."""
    kind = str(column.type)
    if kind == "bool":
        if column.null_count and len(column) < _FEW_ROWS:
            return np.array([np.nan if value is None else float(value) for value in column.to_pylist()], np.float64)
        if column.null_count:
            column = column.cast("double")
    elif kind == "null":
        return np.full(len(column), np.nan)
    elif not (kind.startswith(("int", "uint", "float", "double", "halffloat"))):
        raise SignatureMismatchError(f"input {name!r} is a number to the model, {kind} in the block")
    array: Array = column.to_numpy(zero_copy_only=False)
    return array.astype(np.float64, copy=False)


@lru_cache(maxsize=256)
def _shape(rows: int, width: int | None) -> bytes:
    shape = b""
    for size in (rows,) if width is None else (rows, width):
        dim = b"\x08" + varint(size)
        shape += b"\x12" + varint(len(dim)) + dim
    return b"\x12" + varint(len(shape)) + shape
