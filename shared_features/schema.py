"""Event schemas: one Avro record file per event type, mapped once to Arrow.

The map (both directions, live and in history):

    Avro                        Arrow
    int, long                   int64
    float, double               float64
    boolean                     bool
    string, enum                string
    long timestamp-micros       timestamp[us, UTC]
    long timestamp-millis       timestamp[us, UTC]

Each may be optional as ``["null", X]`` or ``[X, "null"]``. Everything else is refused at import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from fastavro.schema import SchemaParseException, UnknownType, parse_schema, to_parsing_canonical_form

from shared_features.clean import Clean, checked_rules
from shared_features.errors import DefinitionError
from shared_features.external import External, checked_externals

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
"""The one Arrow type of an instant: microseconds since 1970-01-01T00:00:00Z."""

ENVELOPE: Final[tuple[pa.Field, ...]] = (
    pa.field("event_type", pa.string()),
    pa.field("event_id", pa.string()),
    pa.field("event_time", TIMESTAMP),
    pa.field("publish_time", TIMESTAMP),
    pa.field("message_id", pa.string()),
)
"""The first columns of every block. ``publish_time`` is null where unknown, ``message_id`` in history."""

RESERVED_NAMES: Final = frozenset(
    {"feature", "stage", "prediction", "version", "reaction", "started", "outcome", "failure", "prediction_id"}
    | {"model", "model_version"}
    | {field.name for field in ENVELOPE}
)
"""Names that blocks use themselves, so that no event type may have them."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

_ARROW: Final[Mapping[str, pa.DataType]] = {
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "enum": pa.string(),
    "timestamp-micros": TIMESTAMP,
    "timestamp-millis": TIMESTAMP,
}

_SUPPORTED: Final = "int, long, float, double, boolean, string, enum, timestamp-micros or timestamp-millis"


@dataclass(frozen=True, slots=True)
class FieldType:
    """One field of an event type.

    Attributes:
        name: the field's own name, without its type's.
        arrow: int64, float64, bool, string or timestamp[us, UTC].
        nullable: whether null (missing) is allowed.
        doc: the schema's ``doc``, for people; no part of the fingerprint.
        avro: int, long, float, double, boolean, string, enum, timestamp-micros or timestamp-millis.
        symbols: the values that an enum may have, empty for all other fields.
        branch: the names of the union branch in Avro's JSON encoding, ``{"double": 3.0}``.
    """

    name: str
    arrow: pa.DataType
    nullable: bool
    doc: str = ""
    avro: str = ""
    symbols: tuple[str, ...] = ()
    branch: tuple[str, ...] = ()


class EventSchema:
    """The fields, the identity and the clock of one event type, read from an Avro record file.

    Attributes:
        name: the event type, as in the attribute ``event_type`` of a message.
        path: the schema file.
        time: the field with the event time (required, a timestamp).
        id: the field with the event's identity (a string, may be nullable), or None: then the message's
            attribute ``event_id`` is the identity, or else its message id.
        fields: every field by name, in the schema's order, those of ``time`` and ``id`` included.
        block_fields: the Arrow fields ``<type>.<field>`` of a block, without ``time`` and ``id``, which
            live in the envelope. All nullable: a block's rows of other types have null there.
        clean: the rules of fields that have one, see `shared_features.clean`.
        external: models elsewhere that fill fields, see `shared_features.external`.
        avro: the parsed schema, for fastavro.
        canonical: what the fingerprint covers: Avro's parsing canonical form, and the logical types
            that this form leaves out; and the clean rules and external models, if there are any.

    Raises:
        DefinitionError: the file is missing, is no Avro record schema, or has a field, time or identity
            that events cannot have.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        time: str,
        id: str | None = None,  # noqa: A002
        clean: Mapping[str, Clean] | None = None,
        external: Sequence[External] = (),
    ) -> None:
        self.name = name
        self.path = Path(path)
        self.time = time
        self.id = id
        _check_type_name(name)
        raw = _read(self.path)
        self.avro: dict[str, Any] = _parse(raw, self.path)
        self.fields: dict[str, FieldType] = _fields(self.avro, self.path)
        self._check_time()
        self._check_id()
        self.block_fields: list[pa.Field] = [
            pa.field(f"{name}.{field.name}", field.arrow)
            for field in self.fields.values()
            if field.name not in (time, id)
        ]
        self.clean: dict[str, Clean] = checked_rules(self, clean or {})
        self.external: list[External] = checked_externals(self, external)
        self.canonical: str = self._canonical(raw)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {str(self.path)!r}, time={self.time!r}, id={self.id!r})"

    def _check_time(self) -> None:
        field = self.fields.get(self.time)
        if field is None:
            raise DefinitionError(
                f"{self.path}: event type {self.name!r} names {self.time!r} as its time field, but the "
                f"schema has only {_listed(self.fields)}; name one of these or add the field."
            )
        if field.arrow != TIMESTAMP or field.nullable:
            got = f"{'optional ' if field.nullable else ''}{field.avro}"
            raise DefinitionError(
                f"{self.path}: time field {self.time!r} of event type {self.name!r} must be a required "
                f"timestamp-micros or timestamp-millis, got {got}; change its type in the schema."
            )

    def _check_id(self) -> None:
        if self.id is None:
            return
        field = self.fields.get(self.id)
        if field is None:
            raise DefinitionError(
                f"{self.path}: event type {self.name!r} names {self.id!r} as its id field, but the schema "
                f"has only {_listed(self.fields)}; name one of these, add the field or leave id out."
            )
        if field.avro != "string":
            raise DefinitionError(
                f"{self.path}: id field {self.id!r} of event type {self.name!r} must be a string, got "
                f"{field.avro}; change its type in the schema."
            )

    def _canonical(self, raw: Any) -> str:
        form = {
            "avro": json.loads(to_parsing_canonical_form(raw)),
            "id": self.id,
            "logical": {f.name: f.avro for f in self.fields.values() if f.avro.startswith("timestamp-")},
            "name": self.name,
            "time": self.time,
        }
        if self.clean:
            form["clean"] = {name: rule.definition for name, rule in self.clean.items()}
        if self.external:
            form["external"] = [one.definition for one in self.external]
        return json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _check_type_name(name: str) -> None:
    if not _NAME.match(name):
        raise DefinitionError(
            f"Event type {name!r} must be named with letters, digits and underscores, a digit not first (a "
            f"dot separates a type from its field); rename it."
        )
    if name in RESERVED_NAMES:
        raise DefinitionError(
            f"Event type {name!r} has a name that blocks use themselves ({_listed(RESERVED_NAMES)}); rename it."
        )


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DefinitionError(
            f"{path}: an Avro schema file was wanted, but it cannot be read ({why}); check the path."
        ) from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DefinitionError(f"{path}: an Avro schema is JSON, but this is not ({error}); mend the file.") from error


def _parse(raw: Any, path: Path) -> dict[str, Any]:
    if not isinstance(raw, dict) or raw.get("type") != "record":
        got = raw.get("type") if isinstance(raw, dict) else type(raw).__name__
        raise DefinitionError(
            f"{path}: an event schema must be an Avro record, got {got!r}; wrap its fields in "
            f'{{"type": "record", "name": …, "fields": […]}}.'
        )
    fields = raw.get("fields")
    if not isinstance(fields, list):
        raise DefinitionError(
            f"{path}: an Avro record needs a list of fields, got {type(fields).__name__}; mend the file."
        )
    for field in fields:
        name = field.get("name") if isinstance(field, dict) else None
        if not isinstance(name, str) or not _NAME.match(name):
            raise DefinitionError(
                f"{path}: field {name!r} must be named with letters, digits and underscores, a digit not "
                f"first (a dot separates a type from its field); rename it."
            )
    try:
        parsed = parse_schema(raw)
    except (SchemaParseException, UnknownType, KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"it uses the unknown type {error.name!r}" if isinstance(error, UnknownType) else str(error)
        raise DefinitionError(f"{path}: this is no valid Avro schema ({why}); mend the file.") from error
    assert isinstance(parsed, dict)
    return parsed


def _fields(avro: dict[str, Any], path: Path) -> dict[str, FieldType]:
    enums: dict[str, dict[str, Any]] = {}
    fields: dict[str, FieldType] = {}
    folded: dict[str, str] = {}
    for field in avro["fields"]:
        name: str = field["name"]
        twin = folded.setdefault(name.casefold(), name)
        if name in fields or twin != name:
            raise DefinitionError(
                f"{path}: field {name!r} differs from field {twin!r} by case at most, which BigQuery and SQL "
                f"cannot tell apart; rename one."
            )
        fields[name] = _field(field, path, enums)
    return fields


def _field(field: dict[str, Any], path: Path, enums: dict[str, dict[str, Any]]) -> FieldType:
    declared: Any = field["type"]
    nullable = isinstance(declared, list)
    if nullable:
        branches = [branch for branch in declared if branch != "null"]
        if len(declared) != 2 or len(branches) != 1:
            raise DefinitionError(
                f"{path}: field {field['name']!r} must have one type, or null and one type, got "
                f"{json.dumps(declared)}; split it into several fields."
            )
        declared = branches[0]
    if isinstance(declared, str) and declared in enums:
        declared = enums[declared]
    base = declared["type"] if isinstance(declared, dict) else declared
    logical = declared.get("logicalType") if isinstance(declared, dict) else None
    kind = logical or base
    if base == "enum":
        enums[declared["name"]] = declared
        kind = "enum"
    if logical == "uuid" and base == "string":
        kind = "string"
    arrow = _ARROW.get(kind) if isinstance(kind, str) else None
    if arrow is None or (arrow == TIMESTAMP and base != "long"):
        got = f"{logical} ({base})" if logical else base
        raise DefinitionError(
            f"{path}: field {field['name']!r} has type {got if isinstance(got, str) else json.dumps(got)}, "
            f"but only {_SUPPORTED} flow through features; change its type or leave it out."
        )
    symbols = tuple(declared["symbols"]) if kind == "enum" else ()
    branch = (declared["name"], declared["name"].rpartition(".")[2]) if kind == "enum" else (base,)
    return FieldType(field["name"], arrow, nullable, field.get("doc", ""), kind, symbols, branch)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))
