"""A whole broker on disk under random operations, beside a model of a few sets: seeks, snapshots, filters, kills."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streaming.broker.leases import Consumer
from streaming.broker.messages import PubsubMessage, unframed
from tests.test_broker_seek import JOB, SECOND, TOPIC, FakeClock, Kept

OTHER = "projects/p1/subscriptions/other"
FILTERED = "projects/p1/subscriptions/filtered"
SNAPSHOT = "projects/p1/snapshots/one"

OPERATION = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 4)),
    st.tuples(st.just("together"), st.integers(2, 3)),
    st.tuples(st.just("acknowledge"), st.integers(0, 5)),
    st.tuples(st.just("lease"), st.integers(1, 5)),
    st.tuples(st.just("time"), st.integers(0, 30)),
    st.tuples(st.just("snapshot"), st.just(0)),
    st.tuples(st.just("back"), st.just(0)),
    st.tuples(st.just("kill"), st.just(0)),
    st.tuples(st.just("pass"), st.integers(1, 20)),
)


class Model:
    """What each subscription has not acknowledged, and what it keeps.

    One retains what is acknowledged, one does not, and one, which does, gets even numbers only.
    """

    def __init__(self) -> None:
        self.times: dict[int, int] = {}
        self.open: dict[str, set[int]] = {JOB: set(), OTHER: set(), FILTERED: set()}
        self.snapshot: set[int] | None = None

    def fits(self, name: str, number: int) -> bool:
        return name != FILTERED or number % 2 == 0

    def publish(self, time_us: int) -> int:
        number = len(self.times)
        self.times[number] = time_us
        for name, waiting in self.open.items():
            if self.fits(name, number):
                waiting.add(number)
        if self.snapshot is not None:
            self.snapshot.add(number)
        return number

    def seek(self, name: str, time_us: int) -> None:
        kept = self.open[name] if name == OTHER else {one for one in self.times if self.fits(name, one)}
        self.open[name] = {one for one in kept if self.times[one] >= time_us}

    def back(self, name: str) -> None:
        assert self.snapshot is not None
        self.open[name] = {one for one in self.snapshot if self.fits(name, one)}


class Run:
    """A broker and its model, step by step."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.model = FakeClock(), Model()
        self.kept = Kept(folder, self.clock)
        self.kept.topic()
        self.kept.subscription(JOB, retain_acked_messages=True)
        self.kept.subscription(OTHER)
        self.kept.subscription(FILTERED, retain_acked_messages=True, filter="attributes:even")

    def message(self) -> object:
        number = self.model.publish(self.clock.now_us)
        return PubsubMessage(data=b"%d" % number, attributes={} if number % 2 else {"even": ""})

    def take(self, name: str, limit: int) -> dict[str, int]:
        """Ack id -> number."""
        queue = self.kept.core.pullable(name).queue
        taken = queue.take(Consumer(10 * SECOND), self.clock.now_us, self.clock.now_us, limit)
        return {queue.ack_id(one).decode(): int(PubsubMessage.FromString(unframed(one.field)).data) for one in taken}

    def step(self, name: str, number: int) -> None:
        kept, model = self.kept, self.model
        if name == "publish":
            kept.commit(kept.core.publish(TOPIC, [self.message() for _ in range(number)], 1))
        elif name == "together":
            accepted = []
            for _ in range(number):
                accepted.append(kept.core.publish(TOPIC, [self.message()], 1))
                self.clock.now_us += SECOND
            kept.commit(*accepted)
        elif name in ("acknowledge", "lease"):
            for subscription, waiting in model.open.items():
                taken = self.take(subscription, number)
                assert set(taken.values()) <= waiting, "came again, or was never published"
                if name == "acknowledge":
                    kept.core.subscription(subscription).queue.acknowledge(taken)
                    waiting.difference_update(taken.values())
            kept.commit()
        elif name == "time":
            for subscription in model.open:
                model.seek(subscription, self.clock.now_us - number * SECOND)
                kept.seek(self.clock.now_us - number * SECOND, subscription)
        elif name == "snapshot":
            if model.snapshot is not None:
                kept.snapshots.delete(SNAPSHOT)
            kept.snapshots.create(SNAPSHOT, OTHER, {})
            kept.commit()
            model.snapshot = set(model.open[OTHER])
        elif name == "back" and model.snapshot is not None:
            for subscription in model.open:
                model.back(subscription)
                kept.snapshots.seek_to_snapshot(subscription, SNAPSHOT)
            kept.commit()
        elif name == "kill":
            kept.restart()
        elif name == "pass":
            self.clock.now_us += number * SECOND
            for subscription in model.open:
                kept.core.subscription(subscription).queue.advance(self.clock.now_us)

    def drain(self) -> None:
        """Every subscription has what the model says, and then nothing is left on the disk."""
        self.step("pass", 20)
        for subscription, waiting in self.model.open.items():
            taken = self.take(subscription, 1000)
            assert sorted(taken.values()) == sorted(waiting), subscription
            self.kept.core.subscription(subscription).queue.acknowledge(taken)
            if not self.kept.core.subscription(subscription).history:
                continue
            self.kept.core.keep_history(self.kept.core.subscription(subscription), None)
        if self.model.snapshot is not None:
            self.kept.snapshots.delete(SNAPSHOT)
        self.kept.commit()
        assert self.kept.batches() == 0
        assert self.kept.core.memory.used_bytes == 0


def _check(operations: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        try:
            for name, number in operations:
                run.step(name, number)
            run.drain()
        finally:
            run.kept.storage.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(OPERATION, max_size=25))
def test_a_broker_is_its_model(operations: list[tuple[str, int]]) -> None:
    _check(operations)


@pytest.mark.soak
@settings(max_examples=5000, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(OPERATION, max_size=60))
def test_a_broker_is_its_model_at_length(operations: list[tuple[str, int]]) -> None:
    _check(operations)
