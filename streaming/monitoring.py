"""What a running job says of itself: the events' equation, progress, size and readiness, in Prometheus' format.

Received events are counted where they are decoded, their ends where they are committed, and those in flight where
they wait: three counts that know nothing of one another, so that an equation that holds says something (promise C6).
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streaming.messages import late_rows
from streaming.prediction_metrics import PredictionCounts, families

if TYPE_CHECKING:
    from streaming.runtime import Job

LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

ENDS: Final = ("predicted", "recorded", "folded", "prediction_failed", "duplicates", "dead_letters")
"""How an event can end; each that was received ends as exactly one of them, or is in flight."""


@dataclass(slots=True)
class Readiness:
    """What must be true before a job is ready.

    Attributes:
        fingerprint_matched: the served model was made with the job's features, or there is none to ask.
        state_restored: state and identities are as they were at the last commit.
        subscribed: the stream of messages is open.
        failure: why the job cannot go on, or None.
    """

    fingerprint_matched: bool = False
    state_restored: bool = False
    subscribed: bool = False
    failure: str | None = None

    @property
    def ready(self) -> bool:
        return self.fingerprint_matched and self.state_restored and self.subscribed and self.failure is None


@dataclass(slots=True)
class Counts:
    """Counters since the job started; written by one thread each, read by any."""

    messages: int = 0
    received: int = 0
    commits: int = 0
    ends: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    reasons: dict[str, int] = field(default_factory=dict)
    late: int = 0
    newest_event_us: int = 0
    last_commit_s: float = 0.0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    latency_sum_s: float = 0.0


class Monitoring:
    """Counts of one job and where its parts are.

    Args:
        app: its name.
        fingerprint: of its features.
    """

    def __init__(self, app: str, fingerprint: str) -> None:
        self.app, self.fingerprint = app, fingerprint
        self.counts, self.readiness = Counts(), Readiness()
        self.predictions = PredictionCounts()
        self.started_s = time.time()
        self.recovered_rows = 0
        self._job: Job | None = None
        self._lock = threading.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(self))

    def watch(self, job: Job) -> None:
        """From now on ask the parts of ``job`` for what they hold."""
        self._job = job

    def took(self, messages: int, events: int) -> None:
        """Messages were decoded."""
        with self._lock:
            self.counts.messages += messages
            self.counts.received += events

    def committed(self, counts: Mapping[str, Any], blocks: Iterable[pa.RecordBatch], at_us: int | None = None) -> None:
        """A commit is archived, published and acknowledged; now, or at ``at_us`` (microseconds since 1970)."""
        now_us = at_us or time.time_ns() // 1000
        waits, late, newest = [], 0, 0
        blocks = list(blocks)
        for block in blocks:
            waits.append(_waits_s(block, now_us))
            late += int(late_rows(block).sum())
            newest = max(newest, pc.max(block.column("event_time")).value or 0)
        found = self.counts
        with self._lock:
            for block in blocks:
                self.predictions.add(block)
            found.commits += 1
            found.last_commit_s = now_us / 1e6
            found.late += late
            found.newest_event_us = max(found.newest_event_us, newest)
            for outcome, number in counts["outcomes"].items():
                found.ends[outcome] = found.ends.get(outcome, 0) + number
            found.ends["duplicates"] += counts["duplicates"]
            for reason, number in counts["dead_letters"].items():
                found.ends["dead_letters"] += number
                found.reasons[reason] = found.reasons.get(reason, 0) + number
            for wait in np.concatenate(waits).tolist() if waits else []:
                found.latency[bisect_left(LATENCY_BUCKETS_S, wait)] += 1
                found.latency_sum_s += wait

    def status(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        readiness = self._ready()
        with self._lock:
            found = self.counts
            status: dict[str, Any] = {
                "app": self.app,
                "fingerprint": self.fingerprint,
                "ready": readiness.ready,
                "fingerprint_matched": readiness.fingerprint_matched,
                "state_restored": readiness.state_restored,
                "subscribed": readiness.subscribed,
                "failure": readiness.failure,
                "started": self.started_s,
                "recovered_rows": self.recovered_rows,
                "messages": found.messages,
                "received": found.received,
                **found.ends,
                "dead_letter_reasons": dict(found.reasons),
                "commits": found.commits,
                "late": found.late,
                "newest_event_time": found.newest_event_us / 1e6,
                "last_commit": found.last_commit_s,
                "latency_seconds_sum": found.latency_sum_s,
                "latency_buckets": list(found.latency),
                **self.predictions.as_dict(),
            }
        return status | self.parts()

    def parts(self) -> dict[str, Any]:
        """What the parts of the job hold."""
        job = self._job
        return {
            "in_flight": 0 if job is None else job.in_flight(),
            "waiting_works": 0 if job is None else job.delivery.waiting,
            "held_messages": 0 if job is None else job.subscriber.held,
            "state_bytes": 0 if job is None else job.states.nbytes(),
            "identities": 0 if job is None else len(job.deduplicator),
            "identity_bytes": 0 if job is None else job.deduplicator.nbytes,
        }

    def further(self) -> Iterable[Metric]:
        """Families that only this kind of job has."""
        return ()

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    def _ready(self) -> Readiness:
        job = self._job
        if job is not None:
            self.readiness.subscribed = job.subscriber.receiving
            failure = job.delivery.failure
            self.readiness.failure = None if failure is None else type(failure).__name__
        return self.readiness


def _waits_s(block: pa.RecordBatch, now_us: int) -> np.ndarray:
    """Seconds from publishing to the end of the commit, of rows whose publish time is known."""
    published = block.column("publish_time").drop_null().cast(pa.int64())
    waits: np.ndarray = np.maximum(0, now_us - published.to_numpy()) / 1e6
    return waits


class _Families(Collector):
    """The status as families of metrics."""

    def __init__(self, of: Monitoring) -> None:
        self._of = of

    def collect(self) -> Iterable[Metric]:
        status = self._of.status()
        yield InfoMetricFamily(
            "sameriver_job", "The running job", value={"app": status["app"], "fingerprint": status["fingerprint"]}
        )
        for name, text in _COUNTERS.items():
            key = name.rpartition("events_")[2]
            if key in status:
                yield CounterMetricFamily(f"sameriver_{name}", text, value=status[key])
        ends = CounterMetricFamily("sameriver_events", "Events by how they ended", labels=["end"])
        for end in ENDS:
            ends.add_metric([end], status[end])
        yield ends
        reasons = CounterMetricFamily("sameriver_dead_letters", "Dead letters by reason", labels=["reason"])
        for reason, number in status["dead_letter_reasons"].items():
            reasons.add_metric([reason], number)
        yield reasons
        for name, (key, text) in _GAUGES.items():
            if key in status:
                yield GaugeMetricFamily(f"sameriver_{name}", text, value=float(status[key]))
        yield from families(status)
        total, buckets = 0, []
        for edge, number in zip((*map(str, LATENCY_BUCKETS_S), "+Inf"), status["latency_buckets"], strict=True):
            total += number
            buckets.append((edge, float(total)))
        yield HistogramMetricFamily(
            "sameriver_latency_seconds",
            "From the publishing of an event to the end of its commit",
            buckets=buckets,
            sum_value=status["latency_seconds_sum"],
        )
        yield from self._of.further()


_COUNTERS: Final = {
    "messages": "Messages received",
    "events_received": "Events received, alone or in blocks",
    "commits": "Commits archived, published and acknowledged",
    "events_late": "Events that were late beyond grace",
}

_GAUGES: Final = {
    "events_in_flight": ("in_flight", "Events received that have not ended yet"),
    "ready": ("ready", "1 if subscribed, state restored and fingerprint matched"),
    "works_waiting": ("waiting_works", "Works waiting for predictions or their turn"),
    "messages_held": ("held_messages", "Messages received and not acknowledged"),
    "state_bytes": ("state_bytes", "Memory that the keyed stages' state takes"),
    "identities": ("identities", "Identities that deduplication remembers"),
    "identity_bytes": ("identity_bytes", "Memory that they take"),
    "recovered_rows": ("recovered_rows", "Rows that state was restored from"),
    "newest_event_time_seconds": ("newest_event_time", "The newest event time committed, seconds since 1970"),
    "last_commit_time_seconds": ("last_commit", "When the last commit ended, seconds since 1970"),
    "start_time_seconds": ("started", "When the job started, seconds since 1970"),
}
