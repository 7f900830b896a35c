"""The fingerprint: a hash of all that decides a feature's value (contract C8).

It covers the definitions with their scales, the keys, the lateness, the schemas with their clean rules, the version of
the kernel, the edition of the time-zone data and the version of the grid where they are used. It stands in the
training rows, the exported model and every prediction; a job whose fingerprint differs from its model's refuses to
start and says which feature differs.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shared_features import grid, timezones
from shared_features.calendars import Calendar
from shared_features.errors import FingerprintError

if TYPE_CHECKING:
    from shared_features.app import App

KERNEL_VERSION = 2
"""Raised whenever the kernel gives another value for the same definition; CHANGELOG.md says why."""


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def of(definitions: Mapping[str, Any]) -> str:
    """The fingerprint, 32 hexadecimal digits (BLAKE2b-128 of the canonical JSON)."""
    return hashlib.blake2b(canonical(definitions).encode("ascii"), digest_size=16).hexdigest()


def definitions(app: App) -> dict[str, Any]:
    """All that decides the values of the app's features, as plain JSON values."""
    used = {app.predict_on.name} | {event_type for key in app.keys for event_type in key.fields}
    nodes = [node for value in app.features.values() for part in value.walk() for node in _with_inputs(part)]
    zoned = any(isinstance(node, Calendar) and node.zone != "UTC" for node in nodes)
    gridded = any(isinstance(node, grid.GridCell) for node in nodes)
    # Only where it is used: a new kind of data must not change the fingerprint of those who do without it.
    versions: dict[str, Any] = {"grid_version": grid.library_version()} if gridded else {}
    if app.label is not None and app.label.event_type not in used and app.event_types[app.label.event_type].clean:
        # Schemas of event types that make features hold their rules; a label is learned from cleaned values, too.
        rules = app.event_types[app.label.event_type].clean
        versions["label_clean"] = {name: rule.definition for name, rule in rules.items()}
    if app.label is not None and app.label.event_type not in used and app.event_types[app.label.event_type].external:
        versions["label_external"] = [one.definition for one in app.event_types[app.label.event_type].external]
    return {
        "app": app.name,
        "predict_on": app.predict_on.name,
        "features": {name: [value.dtype, value.definition] for name, value in app.features.items()},
        "lateness_us": app.lateness_us,
        "schemas": {name: app.event_types[name].canonical for name in sorted(used)},
        "times": {name: [app.event_types[name].time, app.event_types[name].id] for name in sorted(used)},
        "kernel_version": KERNEL_VERSION,
        "timezone_edition": timezones.EDITION if zoned else None,
        **versions,
    }


def _with_inputs(node: Any) -> list[Any]:
    """The node, and for an aggregate all nodes of its inputs."""
    found = [node]
    for part in (getattr(node, "value", None), getattr(node, "where", None)):
        if part is not None and hasattr(part, "walk"):
            found += list(part.walk())
    return found


def check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any], of_what: str, app_spec: str | None = None) -> None:
    """Raise unless two sets of definitions are equal.

    Args:
        ours: definitions of the running app.
        theirs: definitions that ``of_what`` (for example "model wide_and_deep") was made with.
        app_spec: what ``--app`` takes for this app, for the command in the message; its name where None.

    Raises:
        FingerprintError: names the first feature, or other part, that differs, both definitions, and the one
            command that makes a model which matches.
    """
    if canonical(ours) == canonical(theirs):
        return
    todo = f"run `sameriver train --app {shlex.quote(app_spec or str(ours['app']))}` to make one that matches"
    for part in sorted(set(ours) | set(theirs)):
        mine, other = ours.get(part), theirs.get(part)
        if canonical(mine) == canonical(other):
            continue
        if part == "features" and isinstance(mine, Mapping) and isinstance(other, Mapping):
            for name in [*mine, *(name for name in other if name not in mine)]:
                if canonical(mine.get(name)) != canonical(other.get(name)):
                    raise FingerprintError(f"{_difference(name, mine, other, of_what)}; {todo}")
        raise FingerprintError(
            f"{part} differs from that of {of_what}: the app has {canonical(mine)[:300]}, "
            f"{of_what} has {canonical(other)[:300]}; {todo}"
        )


def _difference(name: str, mine: Mapping[str, Any], other: Mapping[str, Any], of_what: str) -> str:
    """What is different about one feature."""
    if name not in other:
        return f"feature {name!r} is new: {of_what} was made without it"
    if name not in mine:
        return f"feature {name!r} is not in the app: {of_what} was made with it"
    return (
        f"feature {name!r} differs from the one that {of_what} was made with: "
        f"the app has {canonical(mine[name])}, {of_what} has {canonical(other[name])}"
    )
