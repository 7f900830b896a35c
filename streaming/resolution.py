"""Schema resolution: events written with an older or newer Avro schema become events of the app's.

The rules are Avro's ("Schema Resolution" in its specification) with two differences that follow from what an event is
here: a default is never filled in (a field that the writer did not know is null, or the schema is incompatible if it
may not be null), and instants are converted between units, which Avro leaves to chance.

A writer's schema comes from strangers. Only what costs no more to read than its bytes are long is read: no recursion,
no tables of nothing, no schema that unfolds without end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastavro.schema import parse_schema

from shared_features.schema import EventSchema, FieldType
from shared_features.validate import shown

MAX_SCHEMA_BYTES: Final = 1 << 18
_MAX_NODES: Final = 1000
_MAX_DEPTH: Final = 8
_MAX_KNOWN: Final = 256

_PRIMITIVES: Final = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})

_PROMOTED: Final[Mapping[str, frozenset[str]]] = {
    "int": frozenset({"int"}),
    "long": frozenset({"int", "long"}),
    "float": frozenset({"int", "long", "float"}),
    "double": frozenset({"int", "long", "float", "double"}),
    "boolean": frozenset({"boolean"}),
    "string": frozenset({"string", "bytes"}),
    "enum": frozenset({"enum"}),
    "timestamp-micros": frozenset({"int", "long"}),
    "timestamp-millis": frozenset({"int", "long"}),
}
"""The app's type to the types that it can be written as."""

_NANOS: Final[Mapping[str, int]] = {
    "timestamp-millis": 1_000_000,
    "timestamp-micros": 1_000,
    "timestamp-nanos": 1,
}

Record = dict[str, Any]


class WriterSchemaError(ValueError):
    """A writer's schema that is none, or that is not safe to read with."""


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """A schema that events were written with.

    Attributes:
        text: as it came.
        wire: parsed and without logical types, for fastavro.
        fields: name to the declared type, named types in place of their names.
    """

    text: str
    wire: Any
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Resolution:
    """From a writer's records to an event type's.

    Attributes:
        refused: why the schemas are incompatible, or None.
        convert: a record as written -> field of the event type to value.
    """

    refused: str | None
    convert: Callable[[Record], Record]


class Resolutions:
    """Resolutions and writers' schemas, each made once; the newest few hundred are kept."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Resolution] = {}
        self._read: dict[str, WriterSchema] = {}

    def schema(self, text: str) -> WriterSchema:
        """The writer's schema in this JSON.

        Raises:
            WriterSchemaError: it is none, or not safe to read with.
        """
        known = self._read.get(text)
        if known is None:
            known = _keep(self._read, text, read_schema(text))
        return known

    def between(self, writer: WriterSchema, schema: EventSchema) -> Resolution:
        """How records of ``writer`` become events of ``schema``."""
        key = (schema.name, writer.text)
        known = self._made.get(key)
        if known is None:
            known = _keep(self._made, key, resolve(writer, schema))
        return known


def _keep(known: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(known) >= _MAX_KNOWN:
        known.pop(next(iter(known)))
    known[key] = value
    return value


def read_schema(text: str) -> WriterSchema:
    """A writer's schema from its JSON.

    Raises:
        WriterSchemaError: it is no record schema, or not safe to read with.
    """
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise WriterSchemaError(f"a schema may have {MAX_SCHEMA_BYTES} bytes")
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict) or raw.get("type") != "record":
            raise WriterSchemaError("the schema of events is a record")
        bare, fields = _Bare().record(raw)
        return WriterSchema(text, parse_schema(bare), fields)
    except WriterSchemaError:
        raise
    except Exception as error:  # the JSON of strangers, read as if it were a schema
        raise WriterSchemaError(f"the schema is not valid Avro ({shown(str(error))})") from error


class _Bare:
    """A schema without logical types, documentation and defaults, its named types checked and counted."""

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}
        self._nodes = 0

    def record(self, raw: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        fields = {str(field["name"]): self._resolved(field["type"]) for field in raw["fields"]}
        bare = [{"name": field["name"], "type": self._bare(field["type"], 1)} for field in raw["fields"]]
        return {"type": "record", "name": "Event", "fields": bare}, fields

    def _resolved(self, declared: Any) -> Any:
        """A field's type with an enum's definition in place of its name."""
        if isinstance(declared, list):
            return [self._resolved(branch) for branch in declared]
        if isinstance(declared, dict) and declared.get("type") in ("enum", "fixed"):
            self._named[str(declared["name"]).rpartition(".")[2]] = declared
        elif isinstance(declared, str) and declared not in _PRIMITIVES:
            return self._named.get(declared.rpartition(".")[2], declared)
        return declared

    def _bare(self, declared: Any, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise WriterSchemaError(f"a schema may have {_MAX_NODES} types, nested {_MAX_DEPTH} deep")
        if isinstance(declared, list):
            return [self._bare(branch, depth + 1) for branch in declared]
        kind = declared["type"] if isinstance(declared, dict) else declared
        if isinstance(kind, dict | list):
            return self._bare(kind, depth + 1)
        if kind in _PRIMITIVES:
            return kind
        # Named types are written out at every use under a name of their own, which also counts what they unfold to.
        name = f"T{self._nodes}"
        if kind == "enum":
            self._named[str(declared["name"]).rpartition(".")[2]] = declared
            return {"type": "enum", "name": name, "symbols": declared["symbols"]}
        if kind == "fixed":
            self._named[str(declared["name"]).rpartition(".")[2]] = declared
            return {"type": "fixed", "name": name, "size": declared["size"]}
        if kind in ("array", "map"):
            inner = "items" if kind == "array" else "values"
            item = declared[inner]["type"] if isinstance(declared[inner], dict) else declared[inner]
            if item not in _PRIMITIVES - {"null"}:
                raise WriterSchemaError("lists and maps may hold numbers, booleans, texts and bytes only")
            return {"type": kind, inner: item}
        if kind == "record":
            fields = [{"name": f["name"], "type": self._bare(f["type"], depth + 1)} for f in declared["fields"]]
            self._named[str(declared["name"]).rpartition(".")[2]] = declared
            return {"type": "record", "name": name, "fields": fields}
        known = self._named.get(str(kind).rpartition(".")[2])
        if known is None:
            raise WriterSchemaError(f"the schema uses the type {shown(kind)} before it is defined, or inside itself")
        return self._bare(known, depth + 1)


def resolve(writer: WriterSchema, schema: EventSchema) -> Resolution:
    """How records of a writer's schema become events, or why they cannot."""
    names: dict[str, str] = {}
    changed: dict[str, Callable[[Any], Any]] = {}
    aliases = {field["name"]: field.get("aliases", []) for field in schema.avro["fields"]}
    for field in schema.fields.values():
        label = f"{schema.name}.{field.name}"
        found = next((name for name in (field.name, *aliases[field.name]) if name in writer.fields), None)
        if found is None:
            if not field.nullable:
                return _refused(
                    f"{label} is required, but the schema that the event was written with has no such field."
                )
            continue
        names[field.name] = found
        problem = _converter(writer.fields[found], field, label, changed)
        if problem is not None:
            return _refused(problem)
    if not changed and all(own == theirs for own, theirs in names.items()):
        return Resolution(None, lambda record: record)

    def convert(record: Record) -> Record:
        values = {own: record.get(theirs) for own, theirs in names.items()}
        for name, change in changed.items():
            value = values[name]
            if type(value) is dict and len(value) == 1:  # Avro's JSON form of an optional value
                (value,) = value.values()
            values[name] = change(value)
        return values

    return Resolution(None, convert)


def _refused(detail: str) -> Resolution:
    return Resolution(detail, lambda record: record)


def _converter(declared: Any, field: FieldType, label: str, changed: dict[str, Callable[[Any], Any]]) -> str | None:
    """Note how a written value becomes the field's; or why it cannot."""
    branches = [
        branch for branch in (declared if isinstance(declared, list) else [declared]) if _base(branch) != "null"
    ]
    if not branches:
        return None if field.nullable else f"{label} is required, but was written as null always."
    wanted = _PROMOTED[field.avro]
    base = _base(branches[0])
    if len(branches) > 1 or base not in wanted:
        got = json.dumps(declared)
        return f"{label} is {field.avro}, but the event was written as {got[:200]}, which cannot become one."
    logical = branches[0].get("logicalType") if isinstance(branches[0], dict) else None
    if field.avro.startswith("timestamp-") and logical is not None:
        if logical not in _NANOS:
            return f"{label} is {field.avro}, but the event was written as {shown(logical)}, which is no instant."
        times, per = _NANOS[logical], _NANOS[field.avro]
        if times != per:
            # An instant finer than the app's unit travels as text, which keeps microseconds in either unit.
            changed[field.name] = _coarser(times // per) if times > per else _finer(times)
    elif base == "bytes":
        changed[field.name] = _text
    return None


def _coarser(factor: int) -> Callable[[Any], Any]:
    """Instants of a coarser unit, which is told of numbers only: text says its own."""
    return lambda value: value * factor if type(value) is int else value


def _finer(nanos: int) -> Callable[[Any], Any]:
    """Instants of a finer unit as RFC 3339 text; out of range they stay numbers, and are refused as such."""
    from datetime import UTC, datetime, timedelta

    def text(value: Any) -> Any:
        if type(value) is not int:
            return value
        try:
            return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value * nanos // 1000)).isoformat()
        except OverflowError:
            return value

    return text


def _base(declared: Any) -> Any:
    base = declared["type"] if isinstance(declared, dict) else declared
    return base if isinstance(base, str) else None


def _text(value: Any) -> Any:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value
