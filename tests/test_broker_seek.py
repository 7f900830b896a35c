"""Going back: seeks to a time and to a snapshot, what is retained for them, filters, expiration; no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.pubsub_v1 import types

from streaming.broker.clock import Clock
from streaming.broker.core import Core
from streaming.broker.database import Database
from streaming.broker.errors import RefusedError
from streaming.broker.leases import Consumer
from streaming.broker.messages import PubsubMessage, unframed
from streaming.broker.recovery import recover
from streaming.broker.snapshots import Snapshots

SECOND = 1_000_000
DAY = 86_400 * SECOND
TOPIC = "projects/p1/topics/events"
JOB = "projects/p1/subscriptions/job"
OTHER = "projects/p1/subscriptions/other"
SNAPSHOT = "projects/p1/snapshots/before"


class FakeClock:
    def __init__(self) -> None:
        self.now_us = 1_700_000_000 * SECOND

    def wall_us(self) -> int:
        return self.now_us

    def monotonic_us(self) -> int:
        return self.now_us


class Kept:
    """A core on disk that commits after each step, and can be killed."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.open()

    def open(self) -> None:
        self.storage = Database(self.folder)
        self.core = Core(self.clock, self.storage)
        assert recover(self.core) == []
        self.snapshots = Snapshots(self.core)

    def restart(self) -> None:
        """What is not committed is lost."""
        self.storage.close()
        self.open()

    def commit(self, *accepted: Any) -> None:
        stored = self.core.store(accepted)
        self.core.report_progress()
        self.storage.seal(self.core.next_id)
        self.storage.sync()
        for one in stored:
            self.core.deliver(one, durable=True)

    def topic(self, **settings: Any) -> None:
        self.core.create_topic(types.Topic.pb(types.Topic(name=TOPIC, **settings)))
        self.commit()

    def subscription(self, name: str = JOB, **settings: Any) -> None:
        wanted = types.Subscription({"name": name, "topic": TOPIC, **settings})
        self.core.create_subscription(types.Subscription.pb(wanted))
        self.commit()

    def publish(self, *data: bytes, **attributes: str) -> None:
        messages = [PubsubMessage(data=one, attributes=attributes) for one in data]
        self.commit(self.core.publish(TOPIC, messages, 1))

    def pull(self, name: str = JOB, acknowledge: int = 0) -> list[bytes]:
        """What there is; the first so many are acknowledged."""
        queue = self.core.pullable(name).queue
        taken = queue.take(Consumer(10 * SECOND), self.clock.monotonic_us(), self.clock.wall_us(), 1000)
        queue.acknowledge([queue.ack_id(one).decode() for one in taken[:acknowledge]])
        self.commit()
        return [PubsubMessage.FromString(unframed(one.field)).data for one in taken]

    def seek(self, time_us: int, name: str = JOB) -> None:
        self.snapshots.seek_to_time(name, time_us)
        self.commit()

    def batches(self) -> int:
        """How many batches are on disk."""
        found: int = self.storage._reader.execute("SELECT count(*) FROM batch").fetchone()[0]
        return found


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def kept(tmp_path: Path, clock: FakeClock) -> Iterator[Kept]:
    made = Kept(tmp_path / "data", clock)
    yield made
    made.storage.close()


def refused(code: str, text: str) -> Any:
    return pytest.raises(RefusedError, match=text, check=lambda error: error.code == code)


@pytest.mark.parametrize("restart", [False, True])
def test_seeking_back_brings_what_was_acknowledged_if_the_subscription_retains_it(
    kept: Kept, clock: FakeClock, restart: bool
) -> None:
    """publish 1, 2 | publish 3 | acknowledge all | seek to | -> 3 again"""
    kept.topic()
    kept.subscription(retain_acked_messages=True)
    kept.publish(b"1", b"2")
    clock.now_us += 60 * SECOND
    since_us = clock.now_us
    kept.publish(b"3")
    assert kept.pull(acknowledge=3) == [b"1", b"2", b"3"]
    if restart:
        kept.restart()
    assert kept.pull() == []
    kept.seek(since_us)
    if restart:
        kept.restart()
    assert kept.pull() == [b"3"]
    kept.seek(0)
    assert kept.pull() == [b"1", b"2", b"3"]
    kept.seek(clock.now_us + 1)
    if restart:
        kept.restart()
    assert kept.pull() == []


def test_without_retention_seeking_back_brings_only_what_was_not_acknowledged(kept: Kept, clock: FakeClock) -> None:
    kept.topic()
    kept.subscription()
    kept.publish(b"1", b"2")
    assert kept.pull(acknowledge=1) == [b"1", b"2"]
    kept.seek(0)
    assert kept.pull() == [b"2"]
    kept.seek(clock.now_us + DAY)
    assert kept.pull() == []
    assert kept.batches() == 0


def test_a_topics_retention_serves_subscriptions_made_later_and_ends(kept: Kept, clock: FakeClock) -> None:
    kept.topic(message_retention_duration={"seconds": 3600})
    kept.publish(b"1")
    kept.subscription()
    assert kept.core.shown(kept.core.subscription(JOB)).topic_message_retention_duration.seconds == 3600
    assert kept.pull() == []
    kept.restart()
    kept.seek(0)
    kept.restart()
    assert kept.pull(acknowledge=1) == [b"1"]
    clock.now_us += 3601 * SECOND
    kept.core.forget(clock.wall_us())
    kept.commit()
    kept.seek(0)
    assert kept.pull() == []
    assert kept.batches() == 0


def test_messages_committed_together_are_told_apart_by_their_own_times(kept: Kept, clock: FakeClock) -> None:
    kept.topic()
    kept.subscription()
    first = kept.core.publish(TOPIC, [PubsubMessage(data=b"1")], 1)
    clock.now_us += 2 * SECOND
    second = kept.core.publish(TOPIC, [PubsubMessage(data=b"2")], 1)
    third = kept.core.publish(TOPIC, [PubsubMessage(data=b"3")], 1)
    kept.commit(first, second, third)
    assert kept.batches() == 1
    kept.seek(clock.now_us - SECOND)
    assert kept.pull() == [b"2", b"3"]


def test_ack_ids_from_before_a_seek_mean_nothing(kept: Kept) -> None:
    kept.topic()
    kept.subscription()
    kept.publish(b"1")
    queue = kept.core.subscription(JOB).queue
    (taken,) = queue.take(Consumer(10 * SECOND), 0, kept.clock.wall_us(), 10)
    old = queue.ack_id(taken).decode()
    kept.seek(0)
    queue.acknowledge([old])
    assert kept.pull() == [b"1"]
    queue.acknowledge([old])
    assert queue.counts() == {"unacknowledged": 1, "leased": 1}


def test_a_seek_gives_flow_control_its_room_back(kept: Kept) -> None:
    kept.topic()
    kept.subscription(enable_message_ordering=True)
    messages = [PubsubMessage(data=b"%d" % n, ordering_key="k") for n in range(3)]
    kept.commit(kept.core.publish(TOPIC, messages, 1))
    queue, consumer = kept.core.subscription(JOB).queue, Consumer(10 * SECOND, max_messages=2)
    assert len(queue.take(consumer, 0, kept.clock.wall_us(), 10)) == 2
    kept.seek(0)
    assert (consumer.held, consumer.bytes_held, consumer.keys) == (0, 0, {})
    assert len(queue.take(consumer, 0, kept.clock.wall_us(), 10)) == 2


@pytest.mark.parametrize("restart", [False, True])
def test_a_snapshot_keeps_what_was_not_acknowledged_and_all_that_came_after(kept: Kept, restart: bool) -> None:
    kept.topic()
    kept.subscription()
    kept.publish(b"1", b"2", b"3")
    assert len(kept.pull(acknowledge=1)) == 3
    made = kept.snapshots.create(SNAPSHOT, JOB, {"a": "b"})
    kept.commit()
    assert made.topic == TOPIC
    assert made.expire_time.ToMicroseconds() == kept.clock.wall_us() + 7 * DAY
    kept.publish(b"4")
    kept.seek(kept.clock.wall_us() + 1)
    if restart:
        kept.restart()
    assert kept.pull() == []
    kept.snapshots.seek_to_snapshot(JOB, SNAPSHOT)
    kept.commit()
    if restart:
        kept.restart()
    assert kept.pull(acknowledge=3) == [b"2", b"3", b"4"]
    kept.subscription(OTHER)
    kept.snapshots.seek_to_snapshot(OTHER, SNAPSHOT)
    kept.commit()
    assert kept.pull(OTHER, acknowledge=3) == [b"2", b"3", b"4"]
    assert kept.snapshots.of_topic(TOPIC, 0, "") == ([SNAPSHOT], "")
    kept.snapshots.delete(SNAPSHOT)
    kept.commit()
    assert kept.batches() == 0


def test_a_snapshot_made_while_a_message_is_on_its_way_has_it(kept: Kept) -> None:
    kept.topic()
    kept.subscription()
    accepted = kept.core.store([kept.core.publish(TOPIC, [PubsubMessage(data=b"1")], 1)])
    kept.snapshots.create(SNAPSHOT, JOB, {})
    for one in accepted:
        kept.core.deliver(one, durable=True)
    kept.commit()
    kept.restart()
    assert kept.pull(acknowledge=1) == [b"1"]
    kept.snapshots.seek_to_snapshot(JOB, SNAPSHOT)
    assert kept.pull() == [b"1"]


def test_snapshots_are_refused_listed_changed_and_expire(kept: Kept, clock: FakeClock) -> None:
    kept.topic()
    kept.subscription(message_retention_duration={"seconds": 31 * 86400})
    kept.publish(b"1")
    clock.now_us += DAY
    made = kept.snapshots.create("", JOB, {})
    assert made.name.startswith("projects/p1/snapshots/")
    assert made.expire_time.ToMicroseconds() == clock.now_us + 6 * DAY
    with refused("ALREADY_EXISTS", "already exists"):
        kept.snapshots.create(made.name, JOB, {})
    with refused("NOT_FOUND", "resource=none"):
        kept.snapshots.get("projects/p1/snapshots/none")
    with refused("NOT_FOUND", "resource=none"):
        kept.snapshots.seek_to_snapshot(JOB, "projects/p1/snapshots/none")
    other = "projects/p1/topics/other"
    kept.core.create_topic(types.Topic.pb()(name=other))
    kept.core.create_subscription(types.Subscription.pb()(name=OTHER, topic=other))
    with refused("INVALID_ARGUMENT", "of another topic"):
        kept.snapshots.seek_to_snapshot(OTHER, made.name)
    wanted = types.Snapshot.pb()(name=made.name, labels={"k": "v"})
    assert dict(kept.snapshots.update(wanted, ["labels"]).labels) == {"k": "v"}
    with refused("INVALID_ARGUMENT", "is not mutable"):
        kept.snapshots.update(wanted, ["topic"])
    with refused("INVALID_ARGUMENT", "Invalid expire_time"):
        kept.snapshots.update(wanted, ["expire_time"])
    assert [one.name for one in kept.snapshots.of_project("projects/p1", 0, "")[0]] == [made.name]
    clock.now_us += 6 * DAY
    with refused("FAILED_PRECONDITION", "expire in less than an hour"):
        kept.snapshots.create(SNAPSHOT, JOB, {})
    assert kept.snapshots.expire()
    assert kept.core.snapshots == {}


def test_a_deleted_topic_shows_in_its_snapshots(kept: Kept) -> None:
    kept.topic()
    kept.subscription()
    kept.snapshots.create(SNAPSHOT, JOB, {})
    kept.core.delete_topic(TOPIC)
    kept.commit()
    kept.restart()
    assert kept.snapshots.get(SNAPSHOT).config.topic == "_deleted-topic_"


@pytest.mark.parametrize("restart", [False, True])
def test_a_filter_lets_through_what_matches_and_nothing_else(kept: Kept, restart: bool) -> None:
    kept.topic()
    kept.subscription(filter='attributes.colour = "red"', retain_acked_messages=True)
    kept.subscription(OTHER)
    kept.publish(b"red", colour="red")
    kept.publish(b"blue", colour="blue")
    kept.commit(
        kept.core.publish(TOPIC, [PubsubMessage(data=b"none")], 1),
        kept.core.publish(TOPIC, [PubsubMessage(data=b"red too", attributes={"colour": "red"})], 1),
    )
    if restart:
        kept.restart()
    assert kept.pull(acknowledge=2) == [b"red", b"red too"]
    assert kept.pull(OTHER) == [b"red", b"blue", b"none", b"red too"]
    kept.seek(0)
    if restart:
        kept.restart()
    assert kept.pull() == [b"red", b"red too"]
    kept.snapshots.create(SNAPSHOT, OTHER, {})
    kept.snapshots.seek_to_snapshot(JOB, SNAPSHOT)
    assert kept.pull() == [b"red", b"red too"]


def test_a_bad_filter_is_refused_and_a_filter_cannot_change(kept: Kept) -> None:
    kept.topic()
    with refused("INVALID_ARGUMENT", "Invalid filter"):
        kept.subscription(filter="colour = red")
    kept.subscription(filter="attributes:a")
    wanted = types.Subscription.pb()(name=JOB, filter="attributes:b")
    with refused("INVALID_ARGUMENT", "is not mutable"):
        kept.core.update_subscription(wanted, ["filter"])


def test_a_subscription_that_nobody_uses_expires(kept: Kept, clock: FakeClock) -> None:
    kept.topic()
    kept.subscription(expiration_policy={"ttl": {"seconds": 86400}})
    kept.subscription(OTHER, expiration_policy={})
    clock.now_us += DAY // 2
    kept.pull()
    clock.now_us += DAY // 2 + SECOND
    assert not kept.core.expire()
    clock.now_us += DAY
    assert kept.core.expire()
    assert list(kept.core.subscriptions) == [OTHER]


def test_retention_that_is_switched_on_later_keeps_what_is_there_and_off_lets_go(kept: Kept) -> None:
    kept.topic()
    kept.subscription()
    kept.publish(b"1", b"2")
    wanted = types.Subscription.pb()(name=JOB, retain_acked_messages=True)
    kept.core.update_subscription(wanted, ["retain_acked_messages"])
    assert len(kept.pull(acknowledge=2)) == 2
    kept.seek(0)
    assert kept.pull(acknowledge=2) == [b"1", b"2"]
    assert kept.batches() == 1
    wanted.retain_acked_messages = False
    kept.core.update_subscription(wanted, ["retain_acked_messages"])
    kept.commit()
    assert kept.batches() == 0
