"""TensorProto to NumPy and back, with every size checked before memory is taken.

The reading rules are those of TensorFlow's ``Tensor::FromProto``: raw ``tensor_content`` must have exactly the
size of the shape; typed fields (``float_val`` ...) may be shorter than the shape, the last value then fills the
rest, and none at all means zeros.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.wire import DataType

Array = npt.NDArray[Any]

# One small message may stand for a big tensor, because the last typed value fills the rest of the shape. What a
# request may grow to beyond its own size is bounded by this; TensorFlow Serving itself has no bound.
FILL_LIMIT_BYTES = 64 * 1024 * 1024
# Kernels multiply dimensions without looking; no real tensor comes near this.
ELEMENTS_LIMIT = 1 << 40
RANK_LIMIT = 254  # TensorShape::MaxDimensions


class TensorError(ValueError):
    """A TensorProto that stands for no tensor, or for one too large."""


class ElementType(NamedTuple):
    """How elements of one TensorFlow type are stored: NumPy type, typed field, values per element."""

    storage: np.dtype[Any]
    field: str
    values: int = 1


def _element(storage: str, field: str, values: int = 1) -> ElementType:
    return ElementType(np.dtype(storage), field, values)


# Types that may cross the wire. Resources and variants are handles into a process: never accepted from outside.
ELEMENT_TYPES: dict[int, ElementType] = {
    DataType.DT_FLOAT: _element("<f4", "float_val"),
    DataType.DT_DOUBLE: _element("<f8", "double_val"),
    DataType.DT_INT32: _element("<i4", "int_val"),
    DataType.DT_UINT8: _element("u1", "int_val"),
    DataType.DT_INT16: _element("<i2", "int_val"),
    DataType.DT_INT8: _element("i1", "int_val"),
    DataType.DT_COMPLEX64: _element("<c8", "scomplex_val", 2),
    DataType.DT_INT64: _element("<i8", "int64_val"),
    DataType.DT_BOOL: _element("?", "bool_val"),
    DataType.DT_QINT8: _element("i1", "int_val"),
    DataType.DT_QUINT8: _element("u1", "int_val"),
    DataType.DT_QINT32: _element("<i4", "int_val"),
    DataType.DT_BFLOAT16: _element("<u2", "half_val"),  # bits; NumPy has no such type
    DataType.DT_QINT16: _element("<i2", "int_val"),
    DataType.DT_QUINT16: _element("<u2", "int_val"),
    DataType.DT_UINT16: _element("<u2", "int_val"),
    DataType.DT_COMPLEX128: _element("<c16", "dcomplex_val", 2),
    DataType.DT_HALF: _element("<f2", "half_val"),
    DataType.DT_UINT32: _element("<u4", "uint32_val"),
    DataType.DT_UINT64: _element("<u8", "uint64_val"),
}
_READ_TYPE: dict[str, np.dtype[Any]] = {
    "float_val": np.dtype("<f4"),
    "double_val": np.dtype("<f8"),
    "int_val": np.dtype("<i4"),
    "half_val": np.dtype("<i4"),
    "scomplex_val": np.dtype("<f4"),
    "dcomplex_val": np.dtype("<f8"),
    "int64_val": np.dtype("<i8"),
    "bool_val": np.dtype("?"),
    "uint32_val": np.dtype("<u4"),
    "uint64_val": np.dtype("<u8"),
}
# Packed fields of fixed-size values are, on the wire, the little-endian array itself: field number to write.
_FIXED_SIZE_FIELD = {"float_val": 5, "double_val": 6, "bool_val": 11, "scomplex_val": 9, "dcomplex_val": 12}
_STRING = int(DataType.DT_STRING)


def varint(number: int) -> bytes:
    """A non-negative integer below 2**64 in protocol-buffer varint encoding.

    >>> varint(300)
    b'\\xac\\x02'
    """
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def shape_of(proto: Any) -> tuple[int, ...]:
    """The shape of a TensorProto; TensorError if negative, unknown, too deep or too large to be a tensor's."""
    dims = proto.tensor_shape.dim
    if proto.tensor_shape.unknown_rank or len(dims) > RANK_LIMIT:
        raise TensorError("the shape has no usable rank")
    shape = tuple(dim.size for dim in dims)
    product = 1
    for size in shape:
        if size < 0:
            raise TensorError(f"dimension {size} is negative")
        product *= max(size, 1)
    if product > ELEMENTS_LIMIT:
        raise TensorError(f"shape {list(shape)} is too large")
    return shape


def numbers(proto: Any, fill_limit_bytes: int = FILL_LIMIT_BYTES) -> Array:
    """A numeric TensorProto as an array of its shape (read-only where it shares the message's bytes).

    bfloat16 comes as the uint16 of its bits. TensorError for other types, sizes that disagree, or a fill beyond
    `fill_limit_bytes`.
    """
    element = ELEMENT_TYPES.get(proto.dtype)
    if element is None:
        raise TensorError(f"type {proto.dtype} is not numeric")
    content = proto.tensor_content
    if content:  # most requests are columns of content, and most of the time is spent on small ones
        shape_proto = proto.tensor_shape
        dims = shape_proto.dim
        if len(dims) == 1 and dims[0].size * element.storage.itemsize == len(content) and not shape_proto.unknown_rank:
            return np.frombuffer(content, element.storage)
    shape = shape_of(proto)
    count = math.prod(shape)
    if content and count:
        if len(content) != count * element.storage.itemsize:
            raise TensorError(f"{len(content)} bytes of content for shape {list(shape)}")
        return np.frombuffer(content, element.storage).reshape(shape)
    field = getattr(proto, element.field)
    given = min(len(field) // element.values, count)
    if given < count and count * element.storage.itemsize > fill_limit_bytes:
        raise TensorError(f"{given} values for shape {list(shape)}, more than may be filled")
    raw: Array = np.fromiter(field, _READ_TYPE[element.field], count=given * element.values)
    values: Array
    if element.values == 2:
        values = raw.view(element.storage)
    elif element.field == "half_val":
        values = raw.astype("<u2").view(element.storage)
    else:
        values = raw.astype(element.storage, copy=False)
    if given < count:
        filled = np.zeros(count, element.storage)
        filled[:given] = values
        if given:
            filled[given:] = values[-1]
        values = filled
    return values.reshape(shape)


def strings(proto: Any, fill_limit_bytes: int = FILL_LIMIT_BYTES) -> tuple[list[bytes], tuple[int, ...]]:
    """A string TensorProto as its elements in row-major order, and its shape. TensorError as for `numbers`."""
    if proto.dtype != _STRING:
        raise TensorError(f"type {proto.dtype} is not a string")
    shape = shape_of(proto)
    count = math.prod(shape)
    if proto.tensor_content and count:
        return _split_content(proto.tensor_content, count), shape
    values = list(proto.string_val)[:count]
    if len(values) < count:
        last = values[-1] if values else b""
        if count * (len(last) + 24) > fill_limit_bytes:
            raise TensorError(f"{len(values)} values for shape {list(shape)}, more than may be filled")
        values += [last] * (count - len(values))
    return values, shape


def _split_content(content: bytes, count: int) -> list[bytes]:
    """String content: all lengths as varints, then all characters (TensorFlow's ``port::DecodeStringList``)."""
    if count > len(content):  # each length takes a byte at least
        raise TensorError(f"{len(content)} bytes of content for {count} strings")
    lengths = []
    at = 0
    for _ in range(count):
        length = shift = 0
        while True:
            if at >= len(content) or shift > 28:
                raise TensorError("string content is cut short")
            byte = content[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise TensorError("string content is not as long as its lengths say")
    values = []
    for length in lengths:
        values.append(content[at : at + length])
        at += length
    return values


def write_numbers(proto: Any, dtype: int, array: Array, as_content: bool = False) -> None:
    """Fill an empty TensorProto from an array of the storage type of `dtype`, in typed fields as real answers are.

    `as_content` writes ``tensor_content`` instead.
    """
    element = ELEMENT_TYPES[dtype]
    _write_header(proto, dtype, array.shape)
    flat = np.ascontiguousarray(array, element.storage)
    if as_content:
        proto.tensor_content = flat.tobytes()
    elif (number := _FIXED_SIZE_FIELD.get(element.field)) is not None:
        raw = flat.tobytes()
        proto.MergeFromString(bytes((number << 3 | 2,)) + varint(len(raw)) + raw)
    elif element.field == "half_val":
        proto.half_val.extend(flat.view("<u2").ravel().tolist())
    else:
        getattr(proto, element.field).extend(flat.ravel().tolist())


def write_strings(proto: Any, values: list[bytes], shape: tuple[int, ...]) -> None:
    """Fill an empty TensorProto with strings in row-major order."""
    _write_header(proto, _STRING, shape)
    proto.string_val.extend(values)


def _write_header(proto: Any, dtype: int, shape: tuple[int, ...]) -> None:
    proto.dtype = dtype
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
