"""From definitions to work: the keyed stages of an app, and the tracks, windows and outputs of each stage.

A *stage* groups by one key. A *track* is the stream of values that one or more aggregates of the stage read:
one value expression under one condition, in one encoding. Aggregates of the same track and window share its sums.
Tracks of the same events form a *group*: each event is retained once, with a value of each track, and windows of the
same length share their left edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from shared_features import answers, arena, windows
from shared_features.aggregates import SCALED, SUMMED, Aggregate
from shared_features.app import App
from shared_features.expressions import Expression, Field
from shared_features.keys import Key

_OPERATIONS = {
    "count": answers.COUNT,
    "mean": answers.MEAN,
    "variance": answers.VARIANCE,
    "variance_sample": answers.VARIANCE_SAMPLE,
    "std": answers.STD,
    "std_sample": answers.STD_SAMPLE,
    "min": answers.MIN,
    "max": answers.MAX,
    "first": answers.FIRST_VALUE,
    "last": answers.LAST_VALUE,
    "lag": answers.LAG,
    "seconds_since_last": answers.SECONDS_SINCE_LAST,
    "distinct_count": answers.DISTINCT_COUNT,
    "most_frequent": answers.MOST_FREQUENT,
    "slope": answers.SLOPE,
    "decayed_sum": answers.DECAYED_SUM,
    "decayed_mean": answers.DECAYED_MEAN,
}
_WRITES_VALUES = {"min", "max", "first", "last", "lag", "most_frequent"}
_NEEDS_NO_VALUE = ("count", "seconds_since_last")
_SHARES = {"count", "first", "last", "seconds_since_last", *SUMMED}
"""What can be answered where other tracks' events lie between those of its own."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window as the compiled pass takes it: times in [t − span, t], or the last ``events`` events if above 0."""

    span_us: int
    events: int
    include_self: bool


@dataclass(frozen=True)
class Output:
    """Where one aggregate is written: the stage's column for it."""

    aggregate: Aggregate
    operation: int
    column: str

    @cached_property
    def is_value(self) -> bool:
        """Whether the compiled pass writes a value as its track encodes it."""
        return self.aggregate.operation in _WRITES_VALUES

    @cached_property
    def is_integer(self) -> bool:
        """Whether the compiled pass writes an int64, not a double."""
        return self.is_value or self.operation in (answers.COUNT, answers.DISTINCT_COUNT, answers.SUM_INTEGER)


@dataclass(slots=True)
class Track:
    """One stream of values with its windows and outputs, outputs ordered by window.

    ``encoding`` says how a value becomes an int64, see `kernel.encode`.
    """

    value: Expression
    where: Expression | None
    event_type: str
    encoding: str
    scale_inverse: int
    windows: list[Window] = field(default_factory=list)
    window_outputs: list[list[Output]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Canonical name, by which a saved state finds its track again."""
        return f"{self.value.key}|{_key(self.where)}|{self.encoding}|{self.scale_inverse}"

    @property
    def outputs(self) -> list[Output]:
        """Outputs of all windows, window by window."""
        return [output for outputs in self.window_outputs for output in outputs]

    @property
    def group(self) -> str:
        """Name of its group: tracks of one event type under one condition share one, unless one is better off alone."""
        shares = all(output.aggregate.operation in _SHARES for output in self.outputs)
        alone = not shares or any(window.events for window in self.windows)
        return self.name if alone else f"{self.event_type}|{_key(self.where)}"

    def add(self, aggregate: Aggregate, column: str) -> None:
        """Take in one more aggregate, to be written to ``column``."""
        span_us = aggregate.window_us - (aggregate.closed == "right")  # times are whole microseconds
        window = Window(max(0, span_us), aggregate.window_events, aggregate.include_self)
        if window not in self.windows:
            self.windows.append(window)
            self.window_outputs.append([])
        operation = _OPERATIONS.get(aggregate.operation)
        if operation is None:
            operation = answers.SUM_INTEGER if aggregate.dtype == "int64" else answers.SUM_FLOAT
        self.window_outputs[self.windows.index(window)].append(Output(aggregate, operation, column))


def _key(expression: Expression | None) -> str:
    return "" if expression is None else expression.key


def _keeps(outputs: Sequence[Output], alone: bool) -> int:
    """What a window must keep running; its track may be ``alone`` in its group."""
    kinds = {output.aggregate.operation for output in outputs}
    keeps = windows.KEEPS_DISTINCT if "distinct_count" in kinds else 0
    if kinds & set(SUMMED):
        keeps |= windows.KEEPS_SUM
    if kinds & (set(SUMMED) - {"sum", "mean"}):
        keeps |= windows.KEEPS_SQUARES
    if "first" in kinds:
        keeps |= windows.KEEPS_FIRST
    return keeps if alone else keeps | windows.KEEPS_COUNT


@dataclass(frozen=True, slots=True)
class Group:
    """Tracks that share retained events, as the compiled pass takes them: int64, see the constants of `windows`.

    Attributes:
        numbers: of the tracks in the stage.
        shape, tracks, edges, windows: their layout.
    """

    numbers: tuple[int, ...]
    shape: np.ndarray
    tracks: np.ndarray
    edges: np.ndarray
    windows: np.ndarray

    @property
    def has_extremes(self) -> bool:
        """Whether some output is a minimum or maximum."""
        return bool(self.shape[arena.TREES])


def _groups(tracks: Sequence[Track]) -> list[Group]:
    members: dict[str, list[int]] = {}
    for number, track in enumerate(tracks):
        members.setdefault(track.group, []).append(number)
    starts = np.cumsum([0, *(len(track.outputs) for track in tracks)]).tolist()
    return [_group(tracks, starts, numbers) for numbers in members.values()]


def _group(tracks: Sequence[Track], starts: Sequence[int], numbers: Sequence[int]) -> Group:
    """``starts`` says from where on the outputs of each track are numbered."""
    by_window: dict[Window, list[tuple[int, ...]]] = {}
    for lane, number in enumerate(numbers):
        first = starts[number]
        for window, own in zip(tracks[number].windows, tracks[number].window_outputs, strict=True):
            by_window.setdefault(window, []).append((lane, _keeps(own, len(numbers) == 1), first, first + len(own)))
            first += len(own)
    edges: list[tuple[int, ...]] = []
    rows: list[tuple[int, ...]] = []
    for window, members in by_window.items():
        span = (window.span_us, window.events, int(window.include_self))
        edges.append((*span, len(rows), len(rows) + len(members)))
        rows += members
    outputs = [output for number in numbers for output in tracks[number].outputs]
    trees = any(output.operation in (answers.MIN, answers.MAX) for output in outputs)
    counting = sum(bool(row[windows.KEEPS] & windows.KEEPS_DISTINCT) for row in rows)
    shape = (max(window.events for window in by_window), trees, counting, len(numbers) == 1, len(outputs))
    inverses = [(number, tracks[number].scale_inverse) for number in numbers]
    return Group(tuple(numbers), *(np.array(part, np.int64) for part in (shape, inverses, edges, rows)))


@dataclass(frozen=True)
class Stage:
    """A keyed stage: rows of the key's event types with a non-null key, folded in order.

    Attributes:
        operations: int64 [outputs, 2], operation and k of each output.
    """

    key: Key
    tracks: list[Track]
    lateness_us: int
    longest_us: int
    predict_on: str
    groups: list[Group]
    operations: np.ndarray

    @property
    def counts_events(self) -> bool:
        """Whether some window holds the last n events, however old they are."""
        return any(window.events > 0 for track in self.tracks for window in track.windows)

    @property
    def name(self) -> str:
        """Name of the stage's key."""
        return self.key.name

    @property
    def columns(self) -> list[str]:
        """Columns of events that the stage reads, beside the envelope."""
        read = (part for track in self.tracks for part in (track.value, track.where) if part is not None)
        fields = (node.column for part in read for node in part.walk() if isinstance(node, Field))
        return list(dict.fromkeys([*self.key.columns, *fields]))

    @cached_property
    def outputs(self) -> list[Output]:
        """Outputs of all tracks, track by track, in the order in which the compiled pass numbers them."""
        return [output for track in self.tracks for output in track.outputs]


@dataclass(frozen=True)
class Plan:
    """The keyed stages of an app, in the order in which a block passes them."""

    app: App
    stages: list[Stage]

    @cached_property
    def feature_columns(self) -> list[str]:
        """Names of the columns of the features, in the order of the app."""
        return [f"feature.{name}" for name in self.app.features]


def make_plan(app: App) -> Plan:
    """The plan of ``app``; cheap, without compilation."""
    stages = []
    for key in app.keys:
        aggregates = [aggregate for aggregate in app.aggregates() if aggregate.by.name == key.name]
        columns = {aggregate.key: f"aggregate.{key.name}.{i}" for i, aggregate in enumerate(aggregates)}
        tracks: dict[str, Track] = {}
        # Those that fix an encoding come first, so that counts can join a track that exists.
        for aggregate in sorted(aggregates, key=lambda a: (a.operation in _NEEDS_NO_VALUE, a.key)):
            track = _track_for(aggregate, list(tracks.values()))
            tracks.setdefault(track.name, track).add(aggregate, columns[aggregate.key])
        longest_us = max(aggregate.window_us for aggregate in aggregates)
        ordered = list(tracks.values())
        outputs = [output for track in ordered for output in track.outputs]
        operations = [(one.operation, one.aggregate.half_life_us or one.aggregate.k) for one in outputs]
        parts = _groups(ordered), np.array(operations, np.int64)
        stages.append(Stage(key, ordered, app.lateness_us, longest_us, app.predict_on.name, *parts))
    return Plan(app, stages)


def _track_for(aggregate: Aggregate, existing: Sequence[Track]) -> Track:
    if aggregate.operation in _NEEDS_NO_VALUE:
        for track in existing:
            if track.value.key == aggregate.value.key and _key(track.where) == _key(aggregate.where):
                return track
    if aggregate.value.dtype == "string":
        encoding = "presence" if aggregate.operation in _NEEDS_NO_VALUE else "interned"
    elif aggregate.value.dtype == "float64":
        encoding = "scaled" if aggregate.operation in SCALED else "ordered"
    else:
        encoding = "integer"
    return Track(aggregate.value, aggregate.where, aggregate.event_type, encoding, aggregate.scale_inverse)
