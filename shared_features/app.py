"""An app: which events, which features, which label, which models, which reactions. One small file each."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

from shared_features import fingerprint
from shared_features.aggregates import Aggregate, duration_us
from shared_features.errors import ConfigurationError, DefinitionError
from shared_features.events import EventType
from shared_features.expressions import BlockColumn, Expression, Field
from shared_features.keys import Key

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
RESERVED = frozenset({"event_type", "event_id", "event_time", "publish_time", "message_id", "label", "split"})


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise DefinitionError(
            f"{kind} name {name!r} cannot be used: wanted a lower-case letter, then up to 63 letters, digits "
            f"and _, and none of {sorted(RESERVED)}"
        )


class Label:
    """What came to pass: a boolean of a later event, joined to the event that was predicted on (contract C10).

    Args:
        value: boolean expression over the fields of one event type.
        join: (field of the event predicted on, field of the label's event) that must be equal.
        within: the label's event must have its event time at most this long after the event predicted on.
    """

    def __init__(self, value: Expression, *, join: tuple[str, str], within: str | timedelta) -> None:
        types = {node.event_type for node in value.walk() if isinstance(node, Field)}
        if value.dtype != "bool" or len(types) != 1 or any(isinstance(node, Aggregate) for node in value.walk()):
            raise DefinitionError(
                f"label {value.key} is a {value.dtype} over event types {sorted(types)}: "
                "wanted a boolean over the fields of exactly one"
            )
        self.value, self.join = value, join
        self.event_type = types.pop()
        self.within_us = duration_us(within, f"label {value.key}")

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        return {"value": self.value.definition, "join": list(self.join), "within_us": self.within_us}


class Model:
    """A served model, by name; ``options`` go to its trainer (see ``training``)."""

    def __init__(self, name: str, *, outputs: Sequence[str] = ("probability",), **options: Any) -> None:
        _check_name("model", name)
        self.name, self.outputs, self.options = name, tuple(outputs), options


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
        _check_name("reaction", name)
        if when.dtype != "bool":
            raise DefinitionError(f"reaction {name!r} got a {when.dtype} as when=, wanted a boolean")
        self.name, self.when, self.payload = name, when, dict(payload or {})

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        payload = {name: value.definition for name, value in sorted(self.payload.items())}
        return {"when": self.when.definition, "payload": payload}


class App:
    """All that a job needs to know, checked at import.

    Args:
        name: lower-case name; topics and folders carry it.
        predict_on: the event type that gets features and a prediction.
        features: name to expression over fields of ``predict_on`` and aggregates.
        label: what training learns; None for an app that only collects or applies a rule.
        models: models and rules; the first is the primary one. Empty: collect mode.
        reactions: what to publish when.
        context: event types that no feature mentions but that should be archived.
        lateness: how far behind a key's newest event an event may come and still see all of its windows.

    Raises:
        DefinitionError: names the place and what to change.
    """

    def __init__(
        self,
        name: str,
        *,
        predict_on: EventType,
        features: Mapping[str, Expression],
        event_types: Sequence[EventType],
        label: Label | None = None,
        models: Sequence[Model] = (),
        reactions: Sequence[Reaction] = (),
        lateness: str | timedelta = "24h",
    ) -> None:
        _check_name("app", name)
        self.name, self.predict_on, self.label = name, predict_on, label
        self.spec = name
        self.features, self.models, self.reactions = dict(features), list(models), list(reactions)
        self.lateness_us = duration_us(lateness, f"lateness of app {name!r}")
        self.event_types = {event_type.name: event_type for event_type in event_types}
        if len(self.event_types) != len(event_types) or predict_on.name not in self.event_types:
            raise DefinitionError(
                f"app {name!r} lists event types {[event_type.name for event_type in event_types]}: "
                f"wanted each once, {predict_on.name!r} among them"
            )
        self._check_features()
        self._check_reactions()
        if label is not None:
            self._check_label(label)
        self.definitions: dict[str, Any] = fingerprint.definitions(self)
        self.fingerprint: str = fingerprint.of(self.definitions)

    @property
    def feature_types(self) -> dict[str, str]:
        """dtype of each feature: int64, float64, bool, string or timestamp."""
        return {name: value.dtype for name, value in self.features.items()}

    def aggregates(self) -> list[Aggregate]:
        """Every distinct aggregate that some feature needs, in order of first use."""
        found: dict[str, Aggregate] = {}
        for value in self.features.values():
            for node in value.walk():
                if isinstance(node, Aggregate):
                    found.setdefault(node.key, node)
        return list(found.values())

    @property
    def keys(self) -> list[Key]:
        """The keys that aggregates group by, in order of first use: one keyed stage each."""
        found: dict[str, Key] = {}
        for aggregate in self.aggregates():
            known = found.setdefault(aggregate.by.name, aggregate.by)
            if known.definition != aggregate.by.definition:
                raise DefinitionError(f"app {self.name!r} defines the key {known.name!r} twice, in different ways")
        return list(found.values())

    def _check_features(self) -> None:
        if not self.features:
            raise DefinitionError(f"app {self.name!r} has no features: define at least one")
        seen: dict[str, str] = {}
        for name, value in self.features.items():
            _check_name("feature", name)
            if value.dtype == "timestamp":
                raise DefinitionError(f"feature {name!r} is a timestamp, wanted a number, boolean or string")
            if value.key in seen:
                raise DefinitionError(f"features {seen[value.key]!r} and {name!r} are the same: remove one")
            seen[value.key] = name
            self._check_row_level(f"feature {name!r}", value)
        for aggregate in self.aggregates():
            for event_type in aggregate.by.fields:
                if event_type not in self.event_types:
                    raise DefinitionError(f"key {aggregate.by.name!r} names {event_type!r}, not in event_types")
            if self.predict_on.name not in aggregate.by.fields:
                raise DefinitionError(
                    f"key {aggregate.by.name!r} names no field of {self.predict_on.name!r}, the event predicted on"
                )
        _ = self.keys  # refuses one name with two meanings

    def _check_row_level(self, place: str, value: Expression) -> None:
        """Outside aggregates only the event predicted on can be read."""
        if isinstance(value, Aggregate):
            return
        if isinstance(value, Field) and value.event_type != self.predict_on.name:
            raise DefinitionError(
                f"{place} reads {value.event_type}.{value.field} directly, wanted a field of "
                f"{self.predict_on.name!r} or an aggregate such as last(...)"
            )
        for part in value.parts():
            self._check_row_level(place, part)

    def _check_reactions(self) -> None:
        names = [reaction.name for reaction in self.reactions] + [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise DefinitionError(f"app {self.name!r} uses a name twice among models and reactions: {names}")
        known = {value.key for value in self.features.values()}
        uses: list[tuple[str, Expression]] = []
        for reaction in self.reactions:
            uses += [(f"reaction {reaction.name!r}", value) for value in (reaction.when, *reaction.payload.values())]
        uses += [(f"rule {model.name!r}", model.probability) for model in self.models if isinstance(model, Rule)]
        for place, value in uses:
            self._check_row_level(place, value)
            for node in value.walk():
                if isinstance(node, Aggregate) and node.key not in known:
                    raise DefinitionError(f"{place} uses an aggregate that is no feature: add {node.key} to features")
                if isinstance(node, Prediction):
                    self._resolve(place, node)

    def _resolve(self, place: str, node: Prediction) -> None:
        if not self.models:
            raise DefinitionError(f"{place} uses a prediction, but app {self.name!r} has no model")
        node.model = node.model or self.models[0].name
        outputs = {model.name: model.outputs for model in self.models}.get(node.model)
        if outputs is None or node.output not in outputs:
            raise DefinitionError(f"{place} uses output {node.output!r} of model {node.model!r}, which has {outputs}")

    def _check_label(self, label: Label) -> None:
        event_type = self.event_types.get(label.event_type)
        if event_type is None:
            raise DefinitionError(f"label reads event type {label.event_type!r}, not in event_types")
        for joined, field in zip((self.predict_on, event_type), label.join, strict=True):
            if field not in joined.fields:
                raise DefinitionError(
                    f"label joins on {joined.name}.{field}, but event type {joined.name!r} has no field {field!r}: "
                    f"it has {sorted(joined.fields)}"
                )


def load_app(spec: str) -> App:
    """The app called ``spec`` among the bundled ones, or the one in a folder (its ``app.py``) or file.

    Its ``spec`` is what was given here, for commands that a message names.

    Raises:
        ConfigurationError: there is no such app, or its file defines no ``app``.
    """
    module = load_beside(spec, "app")
    if module is None:
        raise ConfigurationError(
            f"app {spec!r} was not found: wanted the name of a bundled app or the path of a folder with app.py"
        )
    app = getattr(module, "app", None)
    if not isinstance(app, App):
        raise ConfigurationError(f"app {spec!r} defines no App called 'app': add app = App(...) to {module.__file__}")
    app.spec = spec
    return app


def load_beside(spec: str, name: str) -> ModuleType | None:
    """The module ``name`` in an app's folder, for example its ``history``; None if it has none.

    An app in a folder is loaded by its path: the folder is put on no search path, so that what else lies there or
    in the working folder stands in nobody's way.

    Args:
        spec: as for `load_app`.
        name: of the module, without ``.py``.
    """
    if _NAME.fullmatch(spec) and importlib.util.find_spec(f"apps.{spec}") is not None:
        dotted = f"apps.{spec}.{name}"
        return importlib.import_module(dotted) if importlib.util.find_spec(dotted) is not None else None
    given = Path(spec).resolve()
    path = given if name == "app" and not given.is_dir() else (given if given.is_dir() else given.parent) / f"{name}.py"
    if not path.is_file():
        return None
    module_name = "sameriver_app_" + re.sub(r"\W", "_", str(path))
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise ConfigurationError(f"app file {path} cannot be imported: wanted a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    return module
