"""Requests of the REST API: JSON to tensors, with TensorFlow Serving's rules and words.

Source: tensorflow_serving/util/json_tensor.cc. Numbers are strict: an integer input takes no ``1.0``, a float
input no whole number that it cannot hold. NaN and Infinity are bare words.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np

from serving import json_bulk as bulk
from serving.json_parse import double
from serving.json_text import shown
from serving.status import Code, RefusalError, invalid
from serving.tensors import ELEMENT_TYPES, write_numbers, write_strings
from serving.wire import DataType

_STRING = int(DataType.DT_STRING)
TYPE_NAMES = {
    DataType.DT_FLOAT: "float", DataType.DT_DOUBLE: "double", DataType.DT_INT32: "int32", DataType.DT_INT16: "int16",
    DataType.DT_INT8: "int8", DataType.DT_UINT8: "uint8", DataType.DT_STRING: "string", DataType.DT_INT64: "int64",
    DataType.DT_BOOL: "bool", DataType.DT_UINT32: "uint32", DataType.DT_UINT64: "uint64", DataType.DT_HALF: "half",
    DataType.DT_COMPLEX64: "complex64", DataType.DT_COMPLEX128: "complex128", DataType.DT_BFLOAT16: "bfloat16",
    DataType.DT_UINT16: "uint16", DataType.DT_QINT8: "qint8", DataType.DT_QUINT8: "quint8",
    DataType.DT_QINT16: "qint16", DataType.DT_QUINT16: "quint16", DataType.DT_QINT32: "qint32",
}  # fmt: skip


def signature_name(document: dict[str, Any]) -> str:
    """``signature_name`` of a request, "" if it has none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def fill_inputs(document: dict[str, Any], inputs: Any, request: Any) -> bool:
    """Fill a PredictRequest's tensors; True if the request, and so its answer, is in rows (``instances``)."""
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {shown(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            f"keys to exist "
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise invalid(f"JSON Value: {shown(document)} Excepting 'instances' to be an list/array")
        if not rows:
            raise invalid(f"JSON Value: {shown(document)} No values in 'instances' array")
        _fill_rows(rows, inputs, request)
        return True
    if "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    _fill_columns(document["inputs"], inputs, request)
    return False


def _fill_columns(value: Any, inputs: Any, request: Any) -> None:
    if not isinstance(value, dict) or is_base64(value):
        if len(inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        value = {next(iter(inputs)): value}
    for name, info in sorted(inputs.items()):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        shape, flat = bulk.elements(value[name], info.dtype) or _dense(value[name], info.dtype)
        _write(request.inputs[name], info.dtype, flat, shape)


def _fill_rows(rows: list[Any], inputs: Any, request: Any) -> None:
    found = bulk.columns(rows, {name: info.dtype for name, info in inputs.items()})
    if found is None:
        found = _checked_rows(rows, inputs)
    for name, (shape, flat) in found.items():
        _write(request.inputs[name], inputs[name].dtype, flat, shape)


def _checked_rows(rows: list[Any], inputs: Any) -> dict[str, tuple[tuple[int, ...], list[Any]]]:
    """Shape and elements by name, row by row: the first thing that is wrong is named."""
    first = rows[0]
    if not isinstance(first, dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    as_objects = isinstance(first, dict) and not is_base64(first)
    only = next(iter(inputs))
    values: dict[str, list[Any]] = {name: [] for name in inputs}
    shapes: dict[str, tuple[int, ...]] = {}
    sizes: dict[str, int] = {}
    for number, row in enumerate(rows):
        is_object = isinstance(row, dict) and not is_base64(row)
        if as_objects and not is_object:
            raise invalid(f"Expecting object but got list at item {number} of input list")
        if is_object and not as_objects:
            raise invalid(f"Expecting value/list but got object at item {number} of input list")
        for name, value in row.items() if as_objects else ((only, row),):
            try:
                _add_row(name, value, inputs, values, shapes, sizes)
            except RefusalError as refusal:
                key = f" key: {name}" if as_objects else ""
                status = f"{refusal.code.name}: {refusal.text}"
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: {status}"
                ) from None
        if as_objects and row.keys() != set(inputs):
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {shown(row)} keys must be "
                f"equal to: {','.join(sorted(inputs))}"
            )
    return {name: ((len(rows), *shapes[name]), flat) for name, flat in values.items()}


def _add_row(
    name: str,
    value: Any,
    inputs: Any,
    values: dict[str, list[Any]],
    shapes: dict[str, tuple[int, ...]],
    sizes: dict[str, int],
) -> None:
    if name not in inputs:
        raise invalid(f"JSON object: does not have named input: {name}")
    shape, flat = _dense(value, inputs[name].dtype)
    if name not in shapes:
        shapes[name], sizes[name] = shape, len(flat)
    elif sizes[name] != len(flat):
        raise invalid(f"Expecting tensor size: {sizes[name]} but got: {len(flat)}")
    elif shapes[name] != shape:
        raise invalid(f"Expecting shape {_shape_text(shapes[name])} but got: {_shape_text(shape)}")
    values[name] += flat


def _shape_text(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _dense(value: Any, dtype: int) -> tuple[tuple[int, ...], list[Any]]:
    """Shape (as the first elements say) and checked elements in row-major order."""
    shape = []
    inner = value
    while isinstance(inner, list):
        shape.append(len(inner))
        if not inner:
            break
        inner = inner[0]
    flat: list[Any] = []
    _flatten(value, 0, tuple(shape), dtype, flat)
    return tuple(shape), flat


def _flatten(value: Any, level: int, shape: tuple[int, ...], dtype: int, flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {shown(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                f"level: {len(shape)}"
            )
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for one in value:
        _flatten(one, level + 1, shape, dtype, flat)


def _element(value: Any, dtype: int) -> Any:
    kind = type(value)
    if dtype in bulk.DECIMALS:
        if kind is not float and kind is not int:
            raise _type_error(value, dtype)
        name, whole, largest = bulk.DECIMALS[dtype]
        if kind is int and -(2**63) <= value < 2**64:
            lossless = abs(value) <= whole
        else:
            value = double(value)
            lossless = not math.isfinite(value) or abs(value) <= largest
        if not lossless:
            raise invalid(f"Cannot convert JSON value: {shown(value)} to {name} without loss of precision.")
        return value
    if dtype in bulk.INTEGERS:
        if kind is not int or value not in bulk.INTEGERS[dtype]:
            raise _type_error(value, dtype)
        return value
    if dtype == _STRING:
        if kind is str:
            return value.encode("utf-8", "surrogatepass")
        if kind is dict:
            return from_base64(value)
        raise _type_error(value, dtype)
    if dtype == DataType.DT_BOOL:
        if kind is not bool:
            raise _type_error(value, dtype)
        return value
    raise RefusalError(
        Code.UNIMPLEMENTED,
        f"Conversion of JSON Value: {shown(value)} to type: {TYPE_NAMES.get(dtype, str(dtype))}",
    )


def is_base64(value: Any) -> bool:
    """Whether it is an object with the one key ``b64``."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def from_base64(value: dict[str, Any]) -> bytes:
    """Bytes of ``{"b64": "..."}``."""
    if not is_base64(value):
        raise invalid(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    try:
        text = value["b64"].rstrip("=")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _type_error(value: Any, dtype: int) -> RefusalError:
    return invalid(
        f"JSON Value: {shown(value)} Type: {type_name(value)} is not of expected type: "
        f"{TYPE_NAMES.get(dtype, str(dtype))}"
    )


def type_name(value: Any) -> str:
    """RapidJSON's name of a value's type."""
    if value is None:
        return "Null"
    if isinstance(value, bool | str | dict | list):
        return {"dict": "Object", "list": "Array", "str": "String"}.get(type(value).__name__, str(value))
    return "Number"


def _write(proto: Any, dtype: int, flat: list[Any], shape: tuple[int, ...]) -> None:
    if dtype == _STRING:
        write_strings(proto, flat, shape)
        return
    with np.errstate(over="ignore"):
        array = np.array(flat, ELEMENT_TYPES[dtype].storage if dtype not in _NARROW else np.int32)
    write_numbers(proto, dtype, array.astype(ELEMENT_TYPES[dtype].storage).reshape(shape), as_content=True)


_NARROW = {DataType.DT_INT16, DataType.DT_INT8, DataType.DT_UINT8}
