"""An app: which events, which features, which label, which models, which reactions. One small file each."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from shared_features import fingerprint
from shared_features.aggregates import Aggregate, duration_us
from shared_features.errors import ConfigurationError, DefinitionError, did_you_mean
from shared_features.events import EventType
from shared_features.expressions import Expression, Field
from shared_features.gates import DEFAULT_GATES, Gate
from shared_features.keys import Key
from shared_features.kpis import DEFAULT_ALARMS, DRIFT, QUALITY, Alarm, Kpi, Outcome
from shared_features.lists import Listed
from shared_features.outcomes import Label, Model, Prediction, Reaction, Rule, check_name, prediction
from shared_features.source_lines import SourceLine, caller, repeated_names

__all__ = ["App", "Label", "Model", "Prediction", "Reaction", "Rule", "load_app", "load_beside", "prediction"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class App:
    """All that a job needs to know, checked at import.

    Args:
        name: lower-case name; topics and folders carry it.
        predict_on: the event type that gets features and a prediction.
        features: name to expression over fields of ``predict_on`` and aggregates.
        label: what training learns; None for an app that only collects or applies a rule.
        models: models and rules; all of them predict, the first is the primary one. Empty: collect mode.
        baselines: rules that reports put beside the models; they predict nothing live.
        reactions: what to publish when.
        gates: what a newly trained model must show before it is promoted; the default ones where there are none.
        kpis: what predictions are worth once their outcome is known.
        alarms: of which figures to tell, see `sameriver monitor`; the default ones where there are none.
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
        baselines: Sequence[Rule] = (),
        reactions: Sequence[Reaction] = (),
        gates: Sequence[Gate] = (),
        kpis: Sequence[Kpi] = (),
        alarms: Sequence[Alarm] = (),
        lateness: str | timedelta = "24h",
    ) -> None:
        check_name("app", name)
        for feature, line in repeated_names(caller(), "features"):
            raise DefinitionError(f"app {name!r} defines the feature {feature!r} twice: rename or remove one", at=line)
        self.name, self.predict_on, self.label = name, predict_on, label
        self.spec = name
        self.features, self.models, self.reactions = dict(features), list(models), list(reactions)
        self.baselines = list(baselines)
        self.gates = list(gates or DEFAULT_GATES)
        self.kpis, self.alarms = list(kpis), list(alarms or DEFAULT_ALARMS)
        self.lateness_us = duration_us(lateness, f"lateness of app {name!r}")
        self.event_types = {event_type.name: event_type for event_type in event_types}
        if len(self.event_types) != len(event_types) or predict_on.name not in self.event_types:
            raise DefinitionError(
                f"app {name!r} lists event types {[event_type.name for event_type in event_types]}: "
                f"wanted each once, {predict_on.name!r} among them"
            )
        self._check_features()
        self._check_reactions()
        _ = self.all_keys  # refuses one name with two meanings
        self._check_models()
        self._check_kpis()
        if label is not None:
            self._check_label(label)
        self.definitions: dict[str, Any] = fingerprint.definitions(self)
        self.fingerprint: str = fingerprint.of(self.definitions)

    @property
    def feature_types(self) -> dict[str, str]:
        """dtype of each feature: int64, float64, bool, string or list."""
        return {name: value.dtype for name, value in self.features.items()}

    def aggregates(self) -> list[Aggregate]:
        """Every distinct aggregate that some feature needs, in order of first use."""
        found: dict[str, Aggregate] = {}
        for value in self.features.values():
            for node in value.walk():
                if isinstance(node, Aggregate):
                    found.setdefault(node.key, node)
        return list(found.values())

    @cached_property
    def stored_features(self) -> dict[str, tuple[str, str]]:
        """Where an archived or live block holds what was computed: feature's definition to its column and dtype."""
        return {value.key: (f"feature.{name}", value.dtype) for name, value in self.features.items()}

    @cached_property
    def told_features(self) -> set[str]:
        """Names of the features that the reactions' payloads are made of."""
        payloads = [value for reaction in self.reactions for value in reaction.payload.values()]
        used = {part.key for value in payloads for part in value.walk()}
        return {name for name, value in self.features.items() if value.key in used}

    @cached_property
    def keys(self) -> list[Key]:
        """The keys that aggregates group by, in order of first use: one keyed stage each."""
        return self._distinct([aggregate.by for aggregate in self.aggregates()])

    @cached_property
    def all_keys(self) -> list[Key]:
        """`keys`, then those that only reactions remember by."""
        return self._distinct([*self.keys, *(reaction.by for reaction in self.reactions if reaction.by is not None)])

    def _distinct(self, keys: Sequence[Key]) -> list[Key]:
        found: dict[str, Key] = {}
        for key in keys:
            known = found.setdefault(key.name, key)
            if known.definition != key.definition:
                raise DefinitionError(f"app {self.name!r} defines the key {known.name!r} twice, in different ways")
        return list(found.values())

    def _check_features(self) -> None:
        if not self.features:
            raise DefinitionError(f"app {self.name!r} has no features: define at least one")
        seen: dict[str, str] = {}
        for name, value in self.features.items():
            check_name("feature", name)
            if not isinstance(value, Expression):
                raise DefinitionError(f"feature {name!r} is {value!r}, wanted an expression such as a field")
            if "timestamp" in (value.dtype, value.item_dtype if isinstance(value, Listed) else None):
                raise DefinitionError(
                    f"feature {name!r} is a timestamp or a list of them, wanted numbers, booleans or strings, such as "
                    "the seconds between two timestamps",
                    at=value.at,
                )
            if value.key in seen:
                raise DefinitionError(
                    f"features {seen[value.key]!r} and {name!r} are the same: remove one", at=value.at
                )
            seen[value.key] = name
            self._check_row_level(f"feature {name!r}", value)
        for aggregate in self.aggregates():
            self._check_key(aggregate.by, aggregate.at)

    def _check_key(self, key: Key, at: SourceLine | None) -> None:
        for event_type in key.fields:
            if event_type not in self.event_types:
                raise DefinitionError(
                    f"key {key.name!r} names {event_type!r}, not in event_types {list(self.event_types)}: "
                    "add the event type to the app or take it out of the key",
                    at=at,
                )
        if self.predict_on.name not in key.fields:
            raise DefinitionError(
                f"key {key.name!r} names no field of {self.predict_on.name!r}, the event predicted on", at=at
            )

    def _check_row_level(self, place: str, value: Expression) -> None:
        """Outside aggregates only the event predicted on can be read, and never its outcome."""
        if isinstance(value, Aggregate):
            return
        if isinstance(value, Outcome):
            raise DefinitionError(f"{place} reads the outcome, which is known only afterwards: wanted it in KPIs alone")
        if isinstance(value, Field) and value.event_type != self.predict_on.name:
            raise DefinitionError(
                f"{place} reads {value.event_type}.{value.field} directly, wanted a field of "
                f"{self.predict_on.name!r} or an aggregate such as last(...)",
                at=value.at,
            )
        for part in value.parts():
            self._check_row_level(place, part)

    def _check_reactions(self) -> None:
        names = [one.name for some in (self.reactions, self.models, self.baselines) for one in some]
        if len(set(names)) != len(names):
            raise DefinitionError(f"app {self.name!r} uses a name twice among models, baselines and reactions: {names}")
        known = {value.key for value in self.features.values()}
        uses: list[tuple[str, Expression]] = []
        for reaction in self.reactions:
            place = f"reaction {reaction.name!r}"
            uses += [(place, value) for value in (*reaction.uses, *reaction.payload.values())]
            if reaction.by is not None:
                self._check_key(reaction.by, reaction.at)
        uses += [
            (f"rule {model.name!r}", model.probability)
            for model in (*self.models, *self.baselines)
            if isinstance(model, Rule)
        ]
        for place, value in uses:
            self._check_row_level(place, value)
            for node in _computed(value, known):
                if isinstance(node, Aggregate):
                    raise DefinitionError(
                        f"{place} uses an aggregate that is no feature: add {node.key} to features", at=node.at
                    )
                if isinstance(node, Prediction):
                    self._resolve(place, node)

    def _check_kpis(self) -> None:
        names = [kpi.name for kpi in self.kpis]
        if len(set(names)) != len(names) or (names and self.label is None):
            raise DefinitionError(f"app {self.name!r} has the KPIs {names}: wanted each name once, and a label")
        known = {value.key for value in self.features.values()}
        for kpi in self.kpis:
            for node in _computed(kpi.value, known):
                if isinstance(node, Aggregate | Field):
                    raise DefinitionError(
                        f"KPI {kpi.name!r} uses what is no feature: add {node.key} to features", at=kpi.at
                    )
                if isinstance(node, Prediction):
                    self._resolve(f"KPI {kpi.name!r}", node)
        for alarm in self.alarms:
            if alarm.kind == "kpi" and alarm.metric not in names:
                wanted = (*DRIFT, *QUALITY, *names)
                raise DefinitionError(f"alarm on {alarm.metric!r} cannot be, wanted one of {wanted}", at=alarm.at)
            for name in alarm.of:
                if name not in (*self.features, "prediction"):
                    raise DefinitionError(
                        f"alarm on {alarm.metric} names {name!r} in of=, but the app has no such feature"
                        f"{did_you_mean(name, self.features)}",
                        at=alarm.at,
                    )

    def _resolve(self, place: str, node: Prediction) -> None:
        if not self.models:
            raise DefinitionError(f"{place} uses a prediction, but app {self.name!r} has no model", at=node.at)
        node.model = node.model or self.models[0].name
        outputs = {model.name: model.outputs for model in self.models}.get(node.model)
        if outputs is None or node.output not in outputs:
            raise DefinitionError(
                f"{place} uses output {node.output!r} of model {node.model!r}, which has {outputs}", at=node.at
            )

    def _check_models(self) -> None:
        for model in self.models:
            for option, name in model.named_features():
                place, wanted = f"model {model.name!r} names {name!r} in {option}=", model.NAMING_FEATURES[option]
                if name not in self.features:
                    raise DefinitionError(
                        f"{place}, but the app has no such feature{did_you_mean(name, self.features)}", at=model.at
                    )
                if self.features[name].dtype not in wanted:
                    raise DefinitionError(
                        f"{place}, a feature of type {self.features[name].dtype}, wanted one of {', '.join(wanted)}",
                        at=model.at,
                    )

        for gate in self.gates:
            for name in gate.slices:
                if name not in self.features:
                    raise DefinitionError(
                        f"gate on {gate.metric} names {name!r} in slices=, but the app has no such feature"
                        f"{did_you_mean(name, self.features)}",
                        at=gate.at,
                    )

    def _check_label(self, label: Label) -> None:
        event_type = self.event_types.get(label.event_type)
        if event_type is None:
            raise DefinitionError(
                f"label reads event type {label.event_type!r}, not in event_types {list(self.event_types)}", at=label.at
            )
        for joined, field in zip((self.predict_on, event_type), label.join, strict=True):
            if field not in joined.fields:
                raise DefinitionError(
                    f"label joins on {joined.name}.{field}, but event type {joined.name!r} has no field {field!r}: "
                    f"it has {sorted(joined.fields)}{did_you_mean(field, joined.fields)}",
                    at=label.at,
                )
        here, there = self.predict_on.field(label.join[0]), event_type.field(label.join[1])
        if here.dtype != there.dtype:
            raise DefinitionError(
                f"label joins {self.predict_on.name}.{here.field}, a {here.dtype}, with {event_type.name}."
                f"{there.field}, a {there.dtype}: wanted two fields of one type",
                at=label.at,
            )


def _computed(value: Expression, known: Set[str]) -> Iterator[Expression]:
    """The nodes of an expression that are still to be computed where those with the keys ``known`` are given."""
    if value.key not in known:
        yield value
        for part in value.parts():
            yield from _computed(part, known)


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
