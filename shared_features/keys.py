"""Keys: what a keyed stage groups by, one field or several together."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shared_features.columns import Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression, Field

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Key:
    """What a keyed stage groups by: for each event type that takes part, the field that holds the key.

    A key of several fields is written as a tuple of them, of the same types in all event types; it is null where
    any of them is null. A row whose key is null passes the stage with nulls and is counted.

    >>> by_origin = Key("origin", departed.origin, weather.origin)  # doctest: +SKIP
    >>> by_route = Key("route", (departed.origin, departed.dest), (arrived.origin, arrived.dest))  # doctest: +SKIP

    Raises:
        DefinitionError: a part is no field, or is of a type that cannot be a key; event types disagree.
    """

    def __init__(self, name: str, *fields: Field | tuple[Field, ...]) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"key name {name!r} is not a lower-case name of at most 64 letters, digits and _")
        if not fields:
            raise DefinitionError(f"key {name!r} names no field: give one field per event type that takes part")
        self.name = name
        self.parts: dict[str, tuple[Field, ...]] = {}
        for given in fields:
            parts = given if isinstance(given, tuple) else (given,)
            event_type = _event_type(name, parts)
            if event_type in self.parts:
                raise DefinitionError(
                    f"key {name!r} names two fields of event type {event_type!r}, wanted one: "
                    "write a tuple of fields for a key of several"
                )
            self.parts[event_type] = parts
        if len({tuple(part.dtype for part in parts) for parts in self.parts.values()}) > 1:
            mixed = {event_type: [part.dtype for part in parts] for event_type, parts in self.parts.items()}
            raise DefinitionError(f"key {name!r} mixes types of fields ({mixed}), wanted the same in all event types")
        self.fields: dict[str, Expression] = {
            event_type: parts[0] if len(parts) == 1 else Joined(parts) for event_type, parts in self.parts.items()
        }
        self.dtype = next(iter(self.fields.values())).dtype

    @property
    def columns(self) -> list[str]:
        """Columns of a block that the key is made of."""
        return [part.column for parts in self.parts.values() for part in parts]

    @property
    def definition(self) -> list[Any]:
        """The key as plain JSON values, for the fingerprint."""
        names = {event_type: [part.field for part in parts] for event_type, parts in sorted(self.parts.items())}
        return [self.name, {event_type: one[0] if len(one) == 1 else one for event_type, one in names.items()}]


def _event_type(name: str, parts: tuple[Field, ...]) -> str:
    for part in parts:
        if not isinstance(part, Field):
            raise DefinitionError(f"key {name!r} got {part!r}, wanted a field of an event type")
        if part.dtype not in ("string", "int64"):
            raise DefinitionError(f"key {name!r} uses {part.key} of type {part.dtype}, wanted string or integer")
    if not parts or len({part.event_type for part in parts}) > 1:
        raise DefinitionError(
            f"key {name!r} got a tuple {[part.key for part in parts]}, wanted fields of one event type"
        )
    return parts[0].event_type


class Joined(Expression):
    """Several fields as one string, from which each can be told again; null where any of them is null.

    Each part is written as its length in bytes, a colon and its text, so that ("a", "bc") and ("ab", "c") differ:
    ``1:a2:bc`` and ``2:ab1:c``.
    """

    dtype = "string"

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self.definition = ["joined", *(field.definition for field in fields)]

    def parts(self) -> tuple[Expression, ...]:
        """The fields."""
        return self.fields

    def evaluate(self, of: Evaluator) -> Column:
        """The joined strings."""
        pieces: list[Any] = []
        for field in self.fields:
            text = of.array(field).cast(pa.string())
            pieces += [pc.binary_length(text).cast(pa.string()), ":", text]
        joined = pc.binary_join_element_wise(*pieces, "")
        if isinstance(joined, pa.ChunkedArray):
            joined = joined.combine_chunks()
        return Column(joined, joined.is_valid().to_numpy(zero_copy_only=False))
