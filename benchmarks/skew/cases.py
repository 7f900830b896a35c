"""The cases: each a small table of events in the order in which they arrive, with the value wanted for each.

One JSON file per case in ``cases/``; benchmarks/skew/README.md says what may stand in one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from shared_features.aggregates import duration_us
from shared_features.errors import ConfigurationError

FOLDER = Path(__file__).resolve().parent / "cases"
DAY = "2024-11-05"
"""The day, in UTC, of times that name none."""

ANY = "any"
"""Wanted of an event whose own answer, or its absence, is left to the system."""

NO_ANSWER = "no answer"
"""Got for an event that a system refused or dropped."""

Value: TypeAlias = float | int | str | None
"""A number, null, `ANY` or `NO_ANSWER`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CASE = {"title", "about", "ask", "events"}
_ASK = {"operation", "over", "closed", "include_self", "scale", "value_type"}
_EVENT = {"at", "arrives", "id", "key", "value", "repeat", "every", "expect", "why"}
_OPERATIONS = ("count", "sum", "mean", "variance", "min", "max", "last")


@dataclass(frozen=True, slots=True)
class Ask:
    """The feature that a case asks for: one aggregate of the value by the key over a window of event time.

    Attributes:
        operation: ``count`` of non-null values, ``sum``, ``mean``, ``variance`` (population), ``min``, ``max``,
            ``last`` (non-null value, by event time).
        over_us: length w of the window.
        closed: ``right`` is (t − w, t], ``both`` is [t − w, t].
        include_self: whether the event itself is in its window.
        scale: what values are rounded to before they are summed; None leaves it to the system.
        value_type: ``double`` or ``long``.
    """

    operation: str
    over_us: int
    closed: str = "right"
    include_self: bool = True
    scale: float | None = None
    value_type: str = "double"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: what a system is given, and what is wanted of it.

    Attributes:
        event_id: its identity; a second event of the same identity is a duplicate.
        at_us, arrives_us: event time and time of arrival, microseconds since 1970 (UTC); arrivals only grow.
        expect: the value of the feature at this event, or `ANY`.
        why: one sentence.
    """

    event_id: str
    at_us: int
    arrives_us: int
    key: str | None
    value: float | int | None
    expect: Value
    why: str


@dataclass(frozen=True, slots=True)
class Action:
    """Something that happens to the running job: ``restart``, or ``reshard`` to a number of shards."""

    do: str
    shards: int = 1


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        name: of its file, without the number.
        title, about: what it is called and what it is about.
        ask: the feature.
        events: in order of arrival.
        actions: what happens to a running job, by the index of the event before which it happens.
    """

    name: str
    title: str
    about: str
    ask: Ask
    events: tuple[Event, ...]
    actions: dict[int, Action]

    @property
    def wanted(self) -> list[Value]:
        """The value wanted of each event."""
        return [event.expect for event in self.events]


def load_cases(folder: Path = FOLDER) -> list[Case]:
    """All cases of a folder, in the order of their files, ``<number>-<name>.json``.

    Raises:
        ConfigurationError: there is none, or one cannot be read; the sentence says which and where.
    """
    files = sorted(folder.glob("*-*.json"))
    if not files:
        raise ConfigurationError(f"folder {folder} has no case: wanted files such as 12-tie.json")
    return [load_case(file) for file in files]


def load_case(file: Path) -> Case:
    """The case of one file."""
    try:
        written = json.loads(file.read_text("utf-8"))
        _only(written, _CASE)
        ask = _ask(written["ask"])
        events: list[Event] = []
        actions: dict[int, Action] = {}
        for row in written["events"]:
            if "do" in row:
                actions[len(events)] = _action(row)
            else:
                events += _events(row, ask, events)
        return Case(file.stem.partition("-")[2], written["title"], written["about"], ask, tuple(events), actions)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"case {file} cannot be read ({type(error).__name__}: {error}): wanted what benchmarks/skew/README.md says"
        ) from error


def _ask(written: dict[str, Any]) -> Ask:
    _only(written, _ASK)
    ask = Ask(over_us=duration_us(written["over"], "a case"), **{k: v for k, v in written.items() if k != "over"})
    if ask.operation not in _OPERATIONS or ask.closed not in ("right", "both"):
        raise ValueError(f"ask is {written}, wanted an operation of {_OPERATIONS}, closed right or both")
    if ask.value_type not in ("double", "long"):
        raise ValueError(f"value_type is {ask.value_type!r}, wanted double or long")
    return ask


def _action(written: dict[str, Any]) -> Action:
    action = Action(**written)
    if action.do not in ("restart", "reshard") or action.shards < 1:
        raise ValueError(f"action is {written}, wanted restart, or reshard with shards")
    return action


def _events(written: dict[str, Any], ask: Ask, before: list[Event]) -> list[Event]:
    """The events of one row: one, or ``repeat`` of them."""
    _only(written, _EVENT)
    at_us = _time_us(written["at"])
    step_us = duration_us(written["every"], "a case") if "every" in written else 0
    value = written["value"]
    if isinstance(value, str):
        value = float(value)  # NaN and Infinity, which JSON lacks
    events: list[Event] = []
    for number in range(written.get("repeat", 1)):
        earlier = (before + events)[-1:]
        moment_us = at_us + number * step_us
        # Unless it says otherwise, an event arrives as it happens, or right behind the one that arrived before.
        arrives_us = _time_us(written["arrives"]) if "arrives" in written else moment_us
        arrives_us = max([arrives_us, *(event.arrives_us + 1 for event in earlier)])
        identity = written.get("id", f"e{len(before) + number}")
        key, wanted = written.get("key", "a"), written["expect"]
        events.append(Event(identity, moment_us, arrives_us, key, value, wanted, written["why"]))
    wrong = isinstance(written["expect"], str) and written["expect"] != ANY
    if wrong or (ask.value_type == "long" and isinstance(value, float)):
        raise ValueError(f"row is {written}, wanted a value of type {ask.value_type} and an expectation")
    return events


def _time_us(text: str) -> int:
    if re.fullmatch(r"\d\d:\d\d:\d\d(\.\d{6})?", text):
        text = f"{DAY}T{text}Z"
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} has no zone, wanted one such as 10:00:00 or 2024-11-05T10:00:00Z")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _only(written: dict[str, Any], known: set[str]) -> None:
    if not set(written) <= known:
        raise ValueError(f"names {sorted(set(written) - known)} are not known: wanted some of {sorted(known)}")
