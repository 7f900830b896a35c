"""What comes of the features: labels to learn, models and rules that predict, reactions to predictions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from shared_features.aggregates import Aggregate, duration_us
from shared_features.errors import DefinitionError
from shared_features.expressions import BlockColumn, Expression, Field
from shared_features.keys import Key
from shared_features.source_lines import caller
from shared_features.space import Space, space_definition

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MOST_FIRINGS = 1_000
"""The most firings of one key that a rate limit remembers."""

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

    The options ``crosses``, ``embeddings`` and ``baseline`` name features of the app, which checks them. ``space`` says
    which other values of options `sameriver tune` may try; without one it has a space of its own for each kind.
    """

    NAMING_FEATURES: Mapping[str, tuple[str, ...]] = {
        "crosses": ("int64", "float64", "bool", "string"),
        "embeddings": ("string",),
        "baseline": ("int64", "float64", "bool"),
    }
    """Options that name features, and of which dtypes these may be."""

    def __init__(
        self, name: str, *, outputs: Sequence[str] = ("probability",), space: Space | None = None, **options: Any
    ) -> None:
        check_name("model", name)
        self.name, self.outputs, self.options, self.at = name, tuple(outputs), options, caller()
        self.space = space_definition(name, space or {})

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

    Without ``by`` a reaction fires for every event whose condition is true. With ``by`` it remembers, for each value
    of the key, what came before; then an event older than the newest one of its key that took part neither fires
    nor changes anything, and neither does one whose key is null or whose prediction failed. Memory lives as long as
    the job's archive. The options go together; they are asked in this order:

    * ``until``: *hysteresis*. The reaction is on or off, at first off. Off, it goes on at an event where ``when`` is
      true; on, it goes off at one where ``until`` is true. It fires as it goes on, goes off, or both (``announce``).
    * ``changes``: fires only if the value differs from the one at the key's last event that came this far. The first
      one fires; where the value is null nothing fires and nothing is remembered.
    * ``at_most`` ``every``: fires only if the key's firings with event time in (t − every, t] are fewer.

    Args:
        name: the topic is ``<app>-reaction-<name>``.
        when: boolean expression over predictions, fields of the event predicted on, and features. Null is not true.
        payload: names and expressions to publish; empty publishes the first model's outputs only.
        by: the key whose past the reaction remembers; it must name a field of the event predicted on.
        until: boolean expression; the payload then says ``started``, true at the event that switched it on.
        announce: ``"start"``, ``"end"`` or ``"both"``; only with ``until``.
        changes: expression of any type but a list.
        at_most, every: a number of at least 1 and a duration such as ``"1h"``; both or none.

    Raises:
        DefinitionError: an option is of a wrong type, stands without ``by``, or lacks the one it goes with.
    """

    def __init__(
        self,
        name: str,
        *,
        when: Expression,
        payload: Mapping[str, Expression] | None = None,
        by: Key | None = None,
        until: Expression | None = None,
        announce: Literal["start", "end", "both"] = "start",
        changes: Expression | None = None,
        at_most: int | None = None,
        every: str | timedelta | None = None,
    ) -> None:
        check_name("reaction", name)
        for option, value in (("when", when), *((("until", until),) if until is not None else ())):
            if value.dtype != "bool":
                raise DefinitionError(f"reaction {name!r} got a {value.dtype} as {option}=, wanted a boolean")
        self.name, self.when, self.payload = name, when, dict(payload or {})
        self.at = caller()
        self.by, self.until, self.announce, self.changes, self.at_most = by, until, announce, changes, at_most
        self.every_us = None if every is None else duration_us(every, f"reaction {name!r}")
        remembers = until is not None or changes is not None or at_most is not None
        if (at_most is None) != (every is None) or (
            at_most is not None and (type(at_most) is not int or not 1 <= at_most <= MOST_FIRINGS)
        ):
            raise DefinitionError(
                f"reaction {name!r} got at_most={at_most!r} and every={every!r}, wanted a whole number from 1 to "
                f"{MOST_FIRINGS:,} and a duration, or neither"
            )
        if announce not in ("start", "end", "both") or (announce != "start" and until is None):
            raise DefinitionError(
                f"reaction {name!r} got announce={announce!r}, wanted 'start', 'end' or 'both', and until= with it"
            )
        if remembers != (by is not None):
            raise DefinitionError(
                f"reaction {name!r} got by={'a key' if by else None}, wanted a key exactly if until=, changes= or "
                "at_most= are given: memory is kept for each value of a key"
            )
        if changes is not None and changes.dtype == "list":
            raise DefinitionError(f"reaction {name!r} got a list as changes=, wanted one value: take one of its places")
        if until is not None and "started" in self.payload:
            raise DefinitionError(f"reaction {name!r} has 'started' in its payload, which until= adds: rename it")

    @property
    def uses(self) -> list[Expression]:
        """The expressions that decide whether it fires."""
        return [value for value in (self.when, self.until, self.changes) if value is not None]

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        payload = {name: value.definition for name, value in sorted(self.payload.items())}
        found: dict[str, Any] = {"when": self.when.definition, "payload": payload}
        if self.by is not None:
            found |= {
                "by": self.by.definition,
                "until": None if self.until is None else [self.until.definition, self.announce],
                "changes": None if self.changes is None else self.changes.definition,
                "at_most": None if self.at_most is None else [self.at_most, self.every_us],
            }
        return found
