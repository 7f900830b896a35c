"""Event types: a schema whose fields can be used in expressions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from shared_features.clean import Clean
from shared_features.errors import DefinitionError, did_you_mean
from shared_features.expressions import Field
from shared_features.external import External
from shared_features.schema import EventSchema

_DTYPES = {pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool", pa.string(): "string"}


class EventType(EventSchema):
    """One kind of event, described by an Avro record schema.

    Args:
        name: lower-case name; it prefixes the columns of the event in a block.
        schema: path of the ``.avsc`` file, relative to the file that calls this.
        time: field with the event time (``timestamp-micros`` or ``timestamp-millis``, UTC, not null).
        id: field with the event's identity (string), or None to take it from the message.
        clean: field to `Clean` rule: placeholders to null, bounds, case; applied where events enter, live and in batch.
        external: models elsewhere that are asked about a text of the event and fill fields of it.

    Fields are attributes: ``departed.departure_delay`` is an expression.

    Raises:
        DefinitionError: the schema cannot be read or uses a type that features cannot carry, or a rule cannot work.
    """

    def __init__(
        self,
        name: str,
        schema: str | Path,
        *,
        time: str,
        id: str | None = "event_id",
        clean: Mapping[str, Clean] | None = None,
        external: Sequence[External] = (),
    ) -> None:
        path = Path(schema)
        if not path.is_absolute():
            caller = sys._getframe(1).f_globals.get("__file__")
            path = (Path(caller).parent if caller else Path.cwd()) / path
        super().__init__(name, path, time=time, id=id, clean=clean, external=external)

    def __getattr__(self, field: str) -> Field:
        fields = self.__dict__.get("fields")
        if fields is None or field.startswith("__"):
            raise AttributeError(field)
        return self.field(field)

    def field(self, field: str) -> Field:
        """The field as an expression, also where its name is taken by a Python attribute.

        Raises:
            DefinitionError: the schema has no such field.
        """
        if field not in self.fields:
            raise DefinitionError(
                f"event type {self.name!r} has no field {field!r}: it has {sorted(self.fields)}"
                f"{did_you_mean(field, self.fields)}"
            )
        if field == self.time:
            return Field(self.name, field, "event_time", "timestamp")
        if field == self.id:
            return Field(self.name, field, "event_id", "string")
        arrow = self.fields[field].arrow
        dtype = "timestamp" if pa.types.is_timestamp(arrow) else _DTYPES[arrow]
        return Field(self.name, field, f"{self.name}.{field}", dtype)
