"""Answers of the REST API: tensors to JSON, in rows or columns as they were asked."""

from __future__ import annotations

import base64
from typing import Any

from serving.json_bulk import INTEGERS
from serving.json_text import PrettyWriter, decimals, quoted
from serving.rest_json import TYPE_NAMES
from serving.status import invalid
from serving.tensors import numbers, strings
from serving.wire import DataType

_STRING = int(DataType.DT_STRING)


def predictions(outputs: Any, in_rows: bool) -> str:
    """The body of an answer to predict."""
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    tensors = {name: _tokens(name, proto) for name, proto in sorted(outputs.items())}
    writer = PrettyWriter()
    writer.start("{")
    named = len(tensors) > 1
    if not in_rows:
        writer.string("outputs")
        if named:
            writer.start("{")
        for name, (shape, tokens) in tensors.items():
            if named:
                writer.string(name)
            _write_values(writer, shape, tokens, 0, 0)
        if named:
            writer.end("}")
        writer.end("}")
        return writer.text()
    size = -1
    for name, (shape, _) in tensors.items():
        if not shape:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (-1, shape[0]):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {shape[0]} expecting: {size}")
        size = shape[0]
    writer.string("predictions")
    writer.start("[")
    shape, first = next(iter(tensors.values()))
    if not named and shape == (len(first),) and isinstance(next(iter(first), None), str):
        writer.single_line_arrays = True
        writer.values(first)
        writer.single_line_arrays = False
        size = 0  # that was all
    offsets = dict.fromkeys(tensors, 0)
    for _ in range(size):
        if named:
            writer.start("{")
        writer.single_line_arrays = True
        for name, (shape, tokens) in tensors.items():
            if named:
                writer.string(name)
            offsets[name] = _write_values(writer, shape, tokens, 1, offsets[name])
        writer.single_line_arrays = False
        if named:
            writer.end("}")
    writer.end("]")
    writer.end("}")
    return writer.text()


def _write_values(writer: PrettyWriter, shape: tuple[int, ...], tokens: list[Any], dim: int, offset: int) -> int:
    if dim >= len(shape):
        token = tokens[offset]
        if isinstance(token, str):
            writer.raw(token)
        else:
            writer.start("{")
            writer.string("b64")
            writer.string(token.decode())
            writer.end("}")
        return offset + 1
    writer.start("[")
    inner = tokens[offset : offset + shape[dim]]
    if dim == len(shape) - 1 and inner and isinstance(inner[0], str):
        writer.values(inner)
        writer.end("]")
        return offset + len(inner)
    for _ in range(shape[dim]):
        offset = _write_values(writer, shape, tokens, dim + 1, offset)
    writer.end("]")
    return offset


def _tokens(name: str, proto: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and elements as JSON, or as the text of base64 data."""
    if proto.dtype == _STRING:
        values, shape = strings(proto)
        if name.endswith("_bytes"):
            return shape, [base64.b64encode(value) for value in values]
        return shape, [quoted(value.decode("utf-8", "replace")) for value in values]
    array = numbers(proto)
    flat = array.ravel().tolist()
    if proto.dtype in (DataType.DT_FLOAT, DataType.DT_HALF, DataType.DT_DOUBLE):
        single = proto.dtype != DataType.DT_DOUBLE
        return array.shape, decimals(flat, single)
    if proto.dtype == DataType.DT_BOOL:
        return array.shape, ["true" if value else "false" for value in flat]
    if proto.dtype in INTEGERS:
        return array.shape, [str(value) for value in flat]
    raise invalid(f"Failed to write JSON value for tensor type: {TYPE_NAMES.get(proto.dtype, str(proto.dtype))}")


def error_body(text: str) -> str:
    """The body of every refusal."""
    writer = PrettyWriter()
    writer.start("{")
    writer.string("error")
    writer.string(text)
    writer.end("}")
    return writer.text()
