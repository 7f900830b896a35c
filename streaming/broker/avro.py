"""Whether bytes are a value of an Avro schema, in Avro's binary or JSON encoding, without building the value.

Decoders are not used for this: a hostile message could make one loop for hours (an array of a billion nulls has a
few bytes) or overflow its stack (a list nested a million times). Here the work is bounded by the bytes, and nesting
has a limit.

https://avro.apache.org/docs/1.11.1/specification/#encodings
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import fastavro
import orjson
from fastavro.schema import SchemaParseException, UnknownType

MAX_DEPTH = 200
MAX_DEFINITION_BYTES = 300_000

Reader = Callable[[bytes, int, int], int]
"""(data, position, depth) -> position behind the value."""
Check = Callable[[Any, int], None]
"""(JSON value, depth): raises `MismatchError`."""


class MismatchError(ValueError):
    """A message is not a value of the schema, or a definition is no schema; the text says why."""


class Avro:
    """A parsed schema.

    >>> Avro('{"type": "array", "items": "long"}').check_binary(bytes([2, 14, 0]))

    Args:
        definition: the schema as JSON.

    Raises:
        MismatchError: it is not an Avro schema.
    """

    def __init__(self, definition: str) -> None:
        if len(definition.encode()) > MAX_DEFINITION_BYTES:
            raise MismatchError(f"the definition has more than {MAX_DEFINITION_BYTES} bytes")
        try:
            parsed = fastavro.parse_schema(json.loads(definition))
            self._readers: dict[str, Reader] = {}
            self._checks: dict[str, Check] = {}
            self._read = self._reader(parsed)
            self._check = self._checker(parsed)
        except UnknownType as error:
            raise MismatchError(f"there is no type {error}") from None
        except (ValueError, SchemaParseException, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MismatchError(str(error) or type(error).__name__) from None

    def check_binary(self, data: bytes) -> None:
        """Raises MismatchError unless `data` is one value in the binary encoding, with nothing behind it."""
        try:
            end = self._read(data, 0, 0)
        except IndexError:
            raise MismatchError("the message ends before the value does") from None
        if end > len(data):
            raise MismatchError("the message ends before the value does")
        if end < len(data):
            raise MismatchError("Too much data to parse for schema")

    def check_json(self, data: bytes) -> None:
        """Raises MismatchError unless `data` is one value in Avro's JSON encoding; unknown fields are passed over."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise MismatchError(f"it is not JSON: {error}") from None
        self._check(value, 0)

    # Binary.

    def _reader(self, schema: Any) -> Reader:
        if isinstance(schema, list):
            return _union_reader([self._reader(one) for one in schema])
        if isinstance(schema, str):
            return _PRIMITIVE_READERS.get(schema) or self._named_reader(schema)
        kind = schema["type"]
        if kind in ("record", "error"):
            fields: list[Reader] = []
            self._readers[schema["name"]] = reader = _record_reader(fields)
            fields += [self._reader(field["type"]) for field in schema["fields"]]
            return reader
        if kind == "enum":
            reader = self._readers[schema["name"]] = _enum_reader(len(schema["symbols"]))
            return reader
        if kind == "fixed":
            size = schema["size"]
            reader = self._readers[schema["name"]] = lambda _, at, __: at + size
            return reader
        if kind == "array":
            return _blocks_reader(self._reader(schema["items"]))
        if kind == "map":
            values = self._reader(schema["values"])
            return _blocks_reader(lambda data, at, depth: values(data, _text(data, at, depth), depth))
        return self._reader(kind)

    def _named_reader(self, name: str) -> Reader:
        return self._readers[name]

    # JSON.

    def _checker(self, schema: Any) -> Check:
        if isinstance(schema, list):
            return _union_check({_branch(one): self._checker(one) for one in schema})
        if isinstance(schema, str):
            return _PRIMITIVE_CHECKS.get(schema) or self._checks[schema]
        kind = schema["type"]
        if kind in ("record", "error"):
            fields: dict[str, Check] = {}
            self._checks[schema["name"]] = check = _record_check(fields)
            fields.update({field["name"]: self._checker(field["type"]) for field in schema["fields"]})
            return check
        if kind == "enum":
            check = self._checks[schema["name"]] = _enum_check(frozenset(schema["symbols"]))
            return check
        if kind == "fixed":
            check = self._checks[schema["name"]] = _bytes_check(schema["size"])
            return check
        if kind == "array":
            return _array_check(self._checker(schema["items"]))
        if kind == "map":
            return _map_check(self._checker(schema["values"]))
        return self._checker(kind)


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise MismatchError(f"it is nested more than {MAX_DEPTH} deep")
    return depth + 1


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint of at most 64 bits, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            raise MismatchError("a number has more than 64 bits")
    return value >> 1 ^ -(value & 1), at


def _int(data: bytes, at: int, _: int) -> int:
    value, at = _number(data, at)
    if not -(1 << 31) <= value < 1 << 31:
        raise MismatchError("an int has more than 32 bits")
    return at


def _long(data: bytes, at: int, _: int) -> int:
    while data[at] > 127:
        at += 1
    return at + 1


def _boolean(data: bytes, at: int, _: int) -> int:
    if data[at] > 1:
        raise MismatchError("a boolean is neither 0 nor 1")
    return at + 1


def _bytes(data: bytes, at: int, _: int) -> int:
    size, at = _number(data, at)
    if size < 0 or at + size > len(data):
        raise MismatchError("the message ends before the value does")
    return at + size


def _text(data: bytes, at: int, depth: int) -> int:
    end = _bytes(data, at, depth)
    _, start = _number(data, at)
    try:
        data[start:end].decode()
    except UnicodeDecodeError:
        raise MismatchError("a string is not UTF-8") from None
    return end


def _record_reader(fields: list[Reader]) -> Reader:
    def read(data: bytes, at: int, depth: int) -> int:
        depth = _deeper(depth)
        for field in fields:
            at = field(data, at, depth)
        return at

    return read


def _union_reader(branches: list[Reader]) -> Reader:
    def read(data: bytes, at: int, depth: int) -> int:
        branch, at = _number(data, at)
        if not 0 <= branch < len(branches):
            raise MismatchError(f"a union has no branch {branch}")
        return branches[branch](data, at, _deeper(depth))

    return read


def _enum_reader(symbols: int) -> Reader:
    def read(data: bytes, at: int, _: int) -> int:
        value, at = _number(data, at)
        if not 0 <= value < symbols:
            raise MismatchError(f"an enum has no symbol {value}")
        return at

    return read


def _blocks_reader(item: Reader) -> Reader:
    def read(data: bytes, at: int, depth: int) -> int:
        depth = _deeper(depth)
        while True:
            count, at = _number(data, at)
            if not count:
                return at
            if count < 0:
                count = -count
                _, at = _number(data, at)
            if count > len(data):
                raise MismatchError(f"a block claims {count} items in a message of {len(data)} bytes")
            for _ in range(count):
                before, at = at, item(data, at, depth)
                if at == before:  # of nothing there may be any number
                    break
            if at > len(data):
                raise MismatchError("the message ends before the value does")

    return read


_PRIMITIVE_READERS: dict[str, Reader] = {
    "null": lambda _, at, __: at, "boolean": _boolean, "int": _int, "long": _long, "bytes": _bytes, "string": _text,
    "float": lambda _, at, __: at + 4, "double": lambda _, at, __: at + 8,
}  # fmt: skip


def _expected(kind: str, value: Any) -> MismatchError:
    return MismatchError(f"JSON object with type {type(value).__name__} does not match schema which expected {kind}")


def _is(kind: str, fits: Callable[[Any], bool]) -> Check:
    def check(value: Any, _: int) -> None:
        if not fits(value):
            raise _expected(kind, value)

    return check


def _is_integer(bits: int) -> Callable[[Any], bool]:
    low, high = -(1 << bits - 1), 1 << bits - 1
    return lambda value: type(value) is int and low <= value < high


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) or value in ("NaN", "Infinity", "-Infinity")


def _bytes_check(size: int | None = None) -> Check:
    """Bytes are a string of code points below 256."""

    def check(value: Any, _: int) -> None:
        if not isinstance(value, str) or any(ord(one) > 255 for one in value):
            raise _expected("bytes", value)
        if size is not None and len(value) != size:
            raise MismatchError(f"{len(value)} bytes where the schema has {size}")

    return check


def _record_check(fields: dict[str, Check]) -> Check:
    def check(value: Any, depth: int) -> None:
        if not isinstance(value, dict):
            raise _expected("object", value)
        depth = _deeper(depth)
        for name, field in fields.items():
            if name not in value:
                raise MismatchError(f"field {name} is missing")
            field(value[name], depth)

    return check


def _enum_check(symbols: frozenset[str]) -> Check:
    return _is("one of the enum's symbols", lambda value: isinstance(value, str) and value in symbols)


def _array_check(item: Check) -> Check:
    def check(value: Any, depth: int) -> None:
        if not isinstance(value, list):
            raise _expected("array", value)
        for one in value:
            item(one, _deeper(depth))

    return check


def _map_check(item: Check) -> Check:
    def check(value: Any, depth: int) -> None:
        if not isinstance(value, dict):
            raise _expected("map", value)
        for one in value.values():
            item(one, _deeper(depth))

    return check


def _union_check(branches: dict[str, Check]) -> Check:
    """A union's value is null, or an object whose one name is the type."""

    def check(value: Any, depth: int) -> None:
        if value is None and "null" in branches:
            return
        if not isinstance(value, dict) or len(value) != 1:
            raise _expected("an object with the name of a union's branch", value)
        ((name, inner),) = value.items()
        if name not in branches:
            raise MismatchError(f"a union has no branch {name}")
        branches[name](inner, _deeper(depth))

    return check


def _branch(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    name: str = schema.get("name") or schema["type"]
    return name


_PRIMITIVE_CHECKS: dict[str, Check] = {
    "null": _is("null", lambda value: value is None),
    "boolean": _is("boolean", lambda value: isinstance(value, bool)),
    "int": _is("number_integer", _is_integer(32)),
    "long": _is("number_integer", _is_integer(64)),
    "float": _is("number", _is_number),
    "double": _is("number", _is_number),
    "string": _is("string", lambda value: isinstance(value, str)),
    "bytes": _bytes_check(),
}
