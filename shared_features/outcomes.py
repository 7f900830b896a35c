"""What comes of the features: labels to learn, models and rules that predict, reactions to predictions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from shared_features.aggregates import Aggregate, duration_us
from shared_features.errors import DefinitionError
from shared_features.expressions import BlockColumn, Expression, Field
from shared_features.source_lines import caller

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
RESERVED = frozenset({"event_type", "event_id", "event_time", "publish_time", "message_id", "label", "split"})


def check_name(kind: str, name: str) -> None:
    """Raise DefinitionError unless the name may be one of an app, a feature, a model or a reaction."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise DefinitionError(
            f"{kind} name {name!r} cannot be used: wanted a lower-case letter, then up to 63 letters, digits "
            f"and _, and none of {sorted(RESERVED)}"
        )


class Label:
    """What came to pass: a boolean of a later event, joined to the event that was predicted on (contract C10).

    Args:
        value: boolean expression over the fields of one event type.
        join: (field of the event predicted on, field of the label's event) that must be equal; of one type.
        within: the label's event must have its event time at most this long after the event predicted on.
    """

    def __init__(self, value: Expression, *, join: tuple[str, str], within: str | timedelta) -> None:
        types = {node.event_type for node in value.walk() if isinstance(node, Field)}
        if value.dtype != "bool" or len(types) != 1 or any(isinstance(node, Aggregate) for node in value.walk()):
            raise DefinitionError(
                f"label {value.key} is a {value.dtype} over event types {sorted(types)}: "
                "wanted a boolean over the fields of exactly one"
            )
        if not isinstance(join, tuple | list) or len(join) != 2:
            raise DefinitionError(
                f"label {value.key} got join={join!r}, wanted two names of fields: of the event predicted on and of "
                "the label's event"
            )
        self.value, self.join, self.at = value, (join[0], join[1]), caller()
        self.event_type = types.pop()
        self.within_us = duration_us(within, f"label {value.key}")

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        return {"value": self.value.definition, "join": list(self.join), "within_us": self.within_us}


class Model:
    """A served model, by name; ``options`` go to its trainer (see ``training``).

    The options ``crosses``, ``embeddings`` and ``baseline`` name features of the app, which checks them.
    """

    NAMING_FEATURES: Mapping[str, tuple[str, ...]] = {
        "crosses": ("int64", "float64", "bool", "string"),
        "embeddings": ("string",),
        "baseline": ("int64", "float64", "bool"),
    }
    """Options that name features, and of which dtypes these may be."""

    def __init__(self, name: str, *, outputs: Sequence[str] = ("probability",), **options: Any) -> None:
        check_name("model", name)
        self.name, self.outputs, self.options, self.at = name, tuple(outputs), options, caller()

    def named_features(self) -> Iterator[tuple[str, str]]:
        """(option, feature) for every feature that an option names."""
        for option in self.NAMING_FEATURES:
            for name in _texts(self.options.get(option)):
                yield option, name


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


class Rule(Model):
    """A hand-written rule as a model: a number or boolean computed from the features, no server needed."""

    def __init__(self, name: str, probability: Expression) -> None:
        super().__init__(name)
        if probability.dtype not in ("float64", "int64", "bool"):
            raise DefinitionError(f"rule {name!r} gives a {probability.dtype}, wanted a number or a boolean")
        self.probability = probability


class Prediction(Expression):
    """An output of a model, for the conditions of reactions; null where the prediction failed."""

    dtype = "float64"

    def __init__(self, output: str, model: str | None) -> None:
        self.output, self.model = output, model

    @property
    def definition(self) -> list[Any]:  # type: ignore[override]
        """Output and model, as plain JSON values; the model is filled in when the app is made."""
        return ["prediction", self.model, self.output]

    def evaluate(self, of: Any) -> Any:
        """The model's column of the block."""
        return BlockColumn("prediction", [str(self.model), self.output], "float64").evaluate(of)


def prediction(output: str = "probability", model: str | None = None) -> Prediction:
    """The model's output for this event; the app's first model unless ``model`` names another."""
    return Prediction(output, model)


class Reaction:
    """What to publish when a prediction calls for it.

    Args:
        name: the topic is ``<app>-reaction-<name>``.
        when: boolean expression over predictions, fields of the event predicted on, and features.
        payload: names and expressions to publish; empty publishes the prediction's outputs only.
    """

    def __init__(self, name: str, *, when: Expression, payload: Mapping[str, Expression] | None = None) -> None:
        check_name("reaction", name)
        if when.dtype != "bool":
            raise DefinitionError(f"reaction {name!r} got a {when.dtype} as when=, wanted a boolean")
        self.name, self.when, self.payload = name, when, dict(payload or {})

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        payload = {name: value.definition for name, value in sorted(self.payload.items())}
        return {"when": self.when.definition, "payload": payload}
