"""What a replay sent and what an independent subscriber got: the figures of a demo, none from the job's counters."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from commands.replay import BURST, STEADY, WARM, Replay
from shared_features.app import App
from shared_features.columns import Evaluator

SECONDS_SHOWN = 40
NEVER = -1


@dataclass(frozen=True, slots=True)
class Latency:
    """Quantiles of publish call to prediction received, milliseconds; NaN without any."""

    p50_ms: float
    p99_ms: float


class Tally:
    """Takes reports of publisher and subscriber, from any thread, and keeps the account.

    Args:
        app: its label says what came to pass.
        replay: what is published.
    """

    def __init__(self, app: App, replay: Replay) -> None:
        self._lock = threading.Lock()
        self.app, self.replay = app, replay
        rows = replay.block.num_rows
        types = replay.block.column("event_type").to_pylist()
        ids = replay.block.column("event_id").to_pylist()
        asked = [kind == app.predict_on.name for kind in types]
        self._row_of = {ids[row]: row for row in reversed(range(rows)) if asked[row]}
        """The first message of each event predicted on."""
        self.asked = np.zeros(rows, bool)
        self.asked[list(self._row_of.values())] = True
        self.outcome, self._landing = _outcomes(app, replay, self._row_of)
        self.sent_ns = np.full(rows, NEVER, np.int64)
        self.received_ns = np.full(rows, NEVER, np.int64)
        self.probability = np.full(rows, np.nan)
        self._landed = np.zeros(rows, bool)
        self.predicted: deque[int] = deque(maxlen=1_000)
        """Rows whose prediction has come, newest last."""
        self.prediction_ids: set[str] = set()
        self.repeated = 0
        self.strangers = 0
        self.reaction_ids: set[str] = set()
        self._alerts: deque[tuple[str, int, bool | None]] = deque(maxlen=10_000)
        self.killed_ns = NEVER
        self.failed = 0
        self.phases_done = 0
        self.dead_letters: Counter[str] = Counter()
        self.right = self.wrong = 0
        self._by_second: dict[int, list[float]] = {}
        self.newest = NEVER
        self.changed_s = time.monotonic()

    def sent(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Messages that the broker has acknowledged: (row, time of the publish call in ns)."""
        with self._lock:
            for row, call_ns in pairs:
                self.sent_ns[row] = call_ns
                self.newest = max(self.newest, row)
                if self.received_ns[row] != NEVER:
                    self._time(row)
                asked = int(self._landing[row])
                if asked != NEVER:
                    self._landed[asked] = True
                    self._judge(asked)
            self.changed_s = time.monotonic()

    def got(self, predictions: Iterable[tuple[str, str, float | None, int]]) -> None:
        """Predictions that the subscriber got: (event id, prediction id, probability, time in ns)."""
        with self._lock:
            for event_id, prediction_id, probability, received_ns in predictions:
                self.repeated += prediction_id in self.prediction_ids
                self.prediction_ids.add(prediction_id)
                row = self._row_of.get(event_id, NEVER)
                if row == NEVER:
                    self.strangers += 1
                    continue
                if self.received_ns[row] != NEVER:
                    continue
                self.received_ns[row] = received_ns
                self.probability[row] = np.nan if probability is None else probability
                self.predicted.append(row)
                if self.sent_ns[row] != NEVER:
                    self._time(row)
                self._judge(row)
            self.changed_s = time.monotonic()

    def reacted(self, reactions: Iterable[tuple[str, str, str, bool | None]]) -> None:
        """Reactions that the subscriber got: (reaction id, its name, event id, which end where both are told)."""
        with self._lock:
            for reaction_id, name, event_id, started in reactions:
                if reaction_id not in self.reaction_ids:
                    self.reaction_ids.add(reaction_id)
                    self._alerts.append((name, self._row_of.get(event_id, NEVER), started))

    def alerts(self, most: int) -> list[tuple[str, int, bool | None]]:
        """The latest of each reaction, the newest first: name, row of the event, and which end where both are told."""
        found, of = list[tuple[str, int, bool | None]](), Counter[str]()
        with self._lock:
            for alert in reversed(self._alerts):
                if alert[1] != NEVER and of[alert[0]] < most:
                    found.append(alert)
                    of[alert[0]] += 1
        return found

    def killed(self) -> None:
        """The job has just been killed."""
        with self._lock:
            self.killed_ns = time.monotonic_ns()

    def outage(self) -> tuple[float, int] | None:
        """What the kill did: the longest pause between predictions since, seconds, and how many events it met.

        Those are the events predicted on that were published before the kill and predicted after that pause (or
        not at all). None if nothing was killed.
        """
        with self._lock:
            if self.killed_ns == NEVER:
                return None
            got = np.sort(np.append(self.received_ns[self.received_ns > self.killed_ns], self.killed_ns))
            if len(got) == 1:
                seconds, back_ns = 0.0, self.killed_ns + 1
            else:
                longest = int(np.diff(got).argmax())
                seconds, back_ns = float(got[longest + 1] - got[longest]) / 1e9, int(got[longest + 1])
            known = self.asked & (self.sent_ns != NEVER) & (self.sent_ns < self.killed_ns)
            return seconds, int((known & ((self.received_ns >= back_ns) | (self.received_ns == NEVER))).sum())

    @property
    def reactions(self) -> int:
        """Reactions that the subscriber got, each once."""
        return len(self.reaction_ids)

    def has_predicted(self, phase: int) -> bool:
        """Whether a prediction of a phase's events has come, or the phase has none to wait for."""
        asked = self.asked & (self.replay.phase == phase)
        return not asked.any() or bool((self.received_ns[asked] != NEVER).any())

    def _time(self, row: int) -> None:
        """Both ends of a latency are known; either may have been told first."""
        if self.replay.phase[row] == STEADY:
            latency_ms = (self.received_ns[row] - self.sent_ns[row]) / 1e6
            self._by_second.setdefault(int(self.received_ns[row]) // 1_000_000_000, []).append(latency_ms)

    def _judge(self, row: int) -> None:
        """Prediction and outcome are both out: was it right?"""
        if self.received_ns[row] == NEVER or not self._landed[row]:
            return
        if (self.probability[row] >= 0.5) == (self.outcome[row] == 1):
            self.right += 1
        else:
            self.wrong += 1

    def has_landed(self, row: int) -> bool:
        """Whether the outcome of an event predicted on has been published."""
        return bool(self._landed[row])

    def outcome_row(self, row: int) -> int:
        """The message that told the outcome of an event predicted on; it has one."""
        return int(np.flatnonzero(self._landing == row)[0])

    def missing(self, phase: int | None = None) -> npt.NDArray[np.int64]:
        """Rows predicted on, publish acknowledged, of which no prediction has come."""
        with self._lock:
            rows = self.asked & (self.sent_ns != NEVER) & (self.received_ns == NEVER)
            return np.flatnonzero(rows if phase is None else rows & (self.replay.phase == phase))

    def lost(self) -> int:
        """Ids of events predicted on whose publish was acknowledged, minus ids that the subscriber saw."""
        return len(self.missing())

    def distinct(self) -> int:
        """Events whose publish was acknowledged, each once: those predicted on and the others."""
        return int(((self.sent_ns != NEVER) & ~self.replay.again).sum())

    def latencies_ms(self) -> npt.NDArray[np.float64]:
        """Publish call to prediction received, of the steady phase's events."""
        rows = self.asked & (self.replay.phase == STEADY) & (self.sent_ns != NEVER) & (self.received_ns != NEVER)
        found: npt.NDArray[np.float64] = (self.received_ns[rows] - self.sent_ns[rows]) / 1e6
        return found

    def latency(self) -> Latency:
        """Quantiles over the steady phase."""
        with self._lock:
            found = self.latencies_ms()
        if not len(found):
            return Latency(float("nan"), float("nan"))
        p50_ms, p99_ms = np.quantile(found, [0.5, 0.99])
        return Latency(float(p50_ms), float(p99_ms))

    def latency_by_second(self) -> list[Latency]:
        """Quantiles of each of the last seconds of the steady phase, oldest first."""
        with self._lock:
            seconds = sorted(self._by_second)[-SECONDS_SHOWN:]
            samples = [list(self._by_second[second]) for second in seconds]
        return [Latency(*np.quantile(one, [0.5, 0.99]).tolist()) for one in samples]

    def burst_events_per_s(self) -> float:
        """Events of the burst over the time from its first publish call to its last prediction received."""
        with self._lock:
            burst = (self.replay.phase == BURST) & (self.sent_ns != NEVER)
            got = burst & (self.received_ns != NEVER)
            if not got.any():
                return 0.0
            took_ns = self.received_ns[got].max() - self.sent_ns[burst].min()
            return float(burst.sum() / took_ns * 1e9)

    def published(self, phase: int | None = None) -> int:
        """Messages whose publish was acknowledged."""
        sent = self.sent_ns != NEVER
        return int((sent if phase is None else sent & (self.replay.phase == phase)).sum())

    def predictions(self) -> int:
        """Events of which a prediction has come."""
        return int((self.received_ns != NEVER).sum())

    def to_predict(self) -> int:
        """Events predicted on whose publish was acknowledged, each once."""
        return int((self.asked & (self.sent_ns != NEVER)).sum())

    def measured_rows(self) -> npt.NDArray[np.int64]:
        """Rows predicted on after the warm-up, predicted, with a known outcome."""
        known = self.asked & (self.replay.phase != WARM) & (self.received_ns != NEVER) & (self.outcome != NEVER)
        return np.flatnonzero(known & np.isfinite(self.probability))


def _outcomes(app: App, replay: Replay, row_of: dict[str, int]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """For each row predicted on the label (1, 0, -1 unknown); for each label event the row predicted on, or -1.

    Only what the replay itself holds: this is what a person watching could know.
    """
    rows = replay.block.num_rows
    outcome, landing = np.full(rows, NEVER, np.int8), np.full(rows, NEVER, np.int64)
    label = app.label
    if label is None:
        return outcome, landing
    evaluator = Evaluator(replay.block)
    asked_join = evaluator.array(app.predict_on.field(label.join[0])).to_pylist()
    label_join = evaluator.array(app.event_types[label.event_type].field(label.join[1])).to_pylist()
    value: pa.Array = evaluator.array(label.value)
    by_join = {asked_join[row]: row for row in row_of.values() if asked_join[row] is not None}
    values = value.to_pylist()
    is_label = evaluator.is_type(label.event_type)
    for row in np.flatnonzero(is_label & ~replay.again).tolist():
        asked = by_join.get(label_join[row], NEVER)
        if asked != NEVER and values[row] is not None:
            landing[row], outcome[asked] = asked, int(values[row])
    return outcome, landing
