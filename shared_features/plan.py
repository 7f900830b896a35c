"""From definitions to work: the keyed stages of an app, and the tracks, windows and outputs of each stage.

A *stage* groups by one key. A *track* is the stream of values that one or more aggregates of the stage read:
one value expression under one condition, in one encoding. Aggregates of the same track share its storage, and
those of the same window share its edges and sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shared_features import windows
from shared_features.aggregates import SUMMED, Aggregate
from shared_features.app import App
from shared_features.expressions import Expression
from shared_features.keys import Key

_OPERATIONS = {
    "count": windows.COUNT,
    "mean": windows.MEAN,
    "variance": windows.VARIANCE,
    "variance_sample": windows.VARIANCE_SAMPLE,
    "std": windows.STD,
    "std_sample": windows.STD_SAMPLE,
    "min": windows.MIN,
    "max": windows.MAX,
    "first": windows.FIRST,
    "last": windows.LAST,
    "lag": windows.LAG,
    "seconds_since_last": windows.SECONDS_SINCE_LAST,
}
_INTEGER_OUTPUT = {windows.COUNT, windows.SUM_INTEGER, windows.MIN, windows.MAX, windows.FIRST, windows.LAST}
_INTEGER_OUTPUT |= {windows.LAG}


@dataclass(frozen=True, slots=True)
class Window:
    """A window as the compiled pass takes it: it holds times in [t − span, t]."""

    span_us: int
    include_self: bool


@dataclass(frozen=True, slots=True)
class Output:
    """Where one aggregate is written: row ``index`` of the track's outputs."""

    aggregate: Aggregate
    operation: int
    column: str

    @property
    def is_integer(self) -> bool:
        """Whether the compiled pass writes it as int64, not as a double."""
        return self.operation in _INTEGER_OUTPUT


@dataclass(slots=True)
class Track:
    """One stream of values with its windows and outputs, outputs ordered by window."""

    value: Expression
    where: Expression | None
    event_type: str
    encoding: str
    scale_inverse: int
    windows: list[Window] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Canonical name, by which a saved state finds its track again."""
        return f"{self.value.key}|{_key(self.where)}|{self.encoding}|{self.scale_inverse}"

    def finish(self, members: Sequence[tuple[Aggregate, str]]) -> None:
        """Lay out windows and outputs of the track's aggregates (with their column names)."""
        by_window: dict[Window, list[Output]] = {}
        for aggregate, column in members:
            span_us = aggregate.window_us - (aggregate.closed == "right")  # times are whole microseconds
            if aggregate.operation == "sum":
                operation = windows.SUM_INTEGER if aggregate.dtype == "int64" else windows.SUM_FLOAT
            else:
                operation = _OPERATIONS[aggregate.operation]
            window = Window(span_us, aggregate.include_self)
            by_window.setdefault(window, []).append(Output(aggregate, operation, column))
        self.windows = list(by_window)
        self.outputs = [output for outputs in by_window.values() for output in outputs]
        lengths = [len(outputs) for outputs in by_window.values()]
        ends = np.cumsum(lengths, dtype=np.int64)
        self.arrays = {
            "w_span": np.array([window.span_us for window in self.windows], np.int64),
            "w_self": np.array([window.include_self for window in self.windows], np.int64),
            "w_sums": np.array([_sums(outputs) for outputs in by_window.values()], np.int64),
            "w_from": ends - np.array(lengths, np.int64),
            "w_to": ends,
            "operations": np.array([output.operation for output in self.outputs], np.int64),
            "ks": np.array([output.aggregate.k for output in self.outputs], np.int64),
        }


def _key(expression: Expression | None) -> str:
    return "" if expression is None else expression.key


def _sums(outputs: Sequence[Output]) -> int:
    """Which sums a window must keep: 0 none, 1 the sum, 2 also the sum of squares."""
    kinds = [output.aggregate.operation for output in outputs if output.aggregate.operation in SUMMED]
    return 2 if any(kind not in ("sum", "mean") for kind in kinds) else int(bool(kinds))


@dataclass(frozen=True, slots=True)
class Stage:
    """A keyed stage: rows of the key's event types with a non-null key, folded in order."""

    key: Key
    tracks: list[Track]
    lateness_us: int
    longest_us: int
    predict_on: str

    @property
    def counts_events(self) -> bool:
        """Whether some window holds the last n events, however old they are."""
        return any(output.aggregate.window_events > 0 for output in self.outputs)

    @property
    def name(self) -> str:
        """Name of the stage's key."""
        return self.key.name

    @property
    def outputs(self) -> list[Output]:
        """Outputs of all tracks, track by track."""
        return [output for track in self.tracks for output in track.outputs]


@dataclass(frozen=True, slots=True)
class Plan:
    """The keyed stages of an app, in the order in which a block passes them."""

    app: App
    stages: list[Stage]


def make_plan(app: App) -> Plan:
    """The plan of ``app``; cheap, without compilation."""
    stages = []
    for key in app.keys:
        aggregates = [aggregate for aggregate in app.aggregates() if aggregate.by.name == key.name]
        columns = {aggregate.key: f"aggregate.{key.name}.{i}" for i, aggregate in enumerate(aggregates)}
        members: dict[str, list[tuple[Aggregate, str]]] = {}
        tracks: dict[str, Track] = {}
        # Those that fix an encoding come first, so that counts can join a track that exists.
        for aggregate in sorted(aggregates, key=lambda a: (a.operation in ("count", "seconds_since_last"), a.key)):
            track = _track_for(aggregate, list(tracks.values()))
            tracks.setdefault(track.name, track)
            members.setdefault(track.name, []).append((aggregate, columns[aggregate.key]))
        for name, track in tracks.items():
            track.finish(members[name])
        longest_us = max(aggregate.window_us for aggregate in aggregates)
        stages.append(Stage(key, list(tracks.values()), app.lateness_us, longest_us, app.predict_on.name))
    return Plan(app, stages)


def _track_for(aggregate: Aggregate, existing: Sequence[Track]) -> Track:
    if aggregate.operation in ("count", "seconds_since_last"):
        for track in existing:
            if track.value.key == aggregate.value.key and _key(track.where) == _key(aggregate.where):
                return track
    if aggregate.value.dtype == "string":
        encoding = "presence"
    elif aggregate.value.dtype == "float64":
        encoding = "scaled" if aggregate.operation in SUMMED else "ordered"
    else:
        encoding = "integer"
    return Track(aggregate.value, aggregate.where, aggregate.event_type, encoding, aggregate.scale_inverse)
