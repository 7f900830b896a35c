"""Faults of the broker and around it: a topic whose backlog is full, clocks that step, callbacks that take long."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from streaming.broker import Broker
from streaming.broker.core import Core
from streaming.broker.errors import RefusedError
from streaming.broker.messages import PubsubMessage
from streaming.topics import Endpoint, OutgoingMessage, Publisher, Subscriber, create_subscription, create_topic
from tests.broker_clients import Inbox, clients, streaming
from tests.processes import wait_until
from tests.test_broker_storage import JOB, OTHER, TOPIC, Stored

HOUR_US = 3_600_000_000


class Small(Stored):
    """A topic may keep 2,000 bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.core.max_backlog_bytes = 2_000


def kept(core: Core) -> int:
    return core.topics[TOPIC].kept.size_bytes


def test_a_full_backlog_refuses_until_every_subscription_has_acknowledged(tmp_path: Path) -> None:
    """Counted: what anybody has not acknowledged. Nothing that was taken is dropped; it counts after a restart too."""
    stored = Small(tmp_path / "data")
    stored.create(JOB, OTHER)
    for _ in range(3):
        stored.publish(b"x" * 600)
    assert 1_800 < kept(stored.core) < 2_000
    with pytest.raises(
        RefusedError, match=r"The backlog of .*events is full: 1... bytes are not ack.* of at most 2000"
    ):
        stored.core.publish(TOPIC, [PubsubMessage(data=b"more")], 600)
    again = Stored(stored.crash(tmp_path / "crash"))
    assert kept(again.core) == kept(stored.core)
    for name in (JOB, OTHER):
        with pytest.raises(RefusedError, match="is full"):
            stored.core.publish(TOPIC, [PubsubMessage(data=b"more")], 600)
        taken = stored.take(name)
        assert len(taken) == 3
        stored.acknowledge(list(taken), name)
        stored.commit()
    assert kept(stored.core) == 0
    stored.publish(b"x" * 600)
    stored.close()
    again.close()


def test_a_publisher_waits_until_there_is_room() -> None:
    """RESOURCE_EXHAUSTED is tried again by clients: a full backlog slows the publisher, and nothing is lost."""
    with Broker(max_backlog_bytes=50_000) as broker:
        endpoint = Endpoint("p1", f"127.0.0.1:{broker.port}")
        create_topic(endpoint, "events")
        create_subscription(endpoint, "job", "events")
        sent: list[int] = []

        def publish() -> None:
            publisher = Publisher(endpoint)
            for number in range(20):
                publisher.publish("events", [OutgoingMessage(b"%06d" % number + b"x" * 10_000)])
                sent.append(number)
            publisher.close()

        thread = threading.Thread(target=publish, daemon=True)
        thread.start()
        wait_until(lambda: len(sent) == 4, what="four messages are kept")
        thread.join(0.5)  # it cannot end, nor send a fifth
        assert thread.is_alive()
        assert len(sent) == 4
        subscriber = Subscriber(endpoint, "job", max_messages=2)
        got: list[int] = []
        while len(got) < 20:
            messages = subscriber.pull(10, 120.0)
            assert messages
            got += [int(message.data[:6]) for message in messages]
            subscriber.acknowledge([message.ack_id for message in messages])
        thread.join(120)
        subscriber.close()
    assert sent == got == list(range(20))


class Stepping:
    """The machine's clock with a wall that can be moved."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000_000
        self.monotonic = 0

    def wall_us(self) -> int:
        return self.wall

    def monotonic_us(self) -> int:
        return self.monotonic


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_step_of_the_clock_loses_nothing_and_keeps_the_order(hours: int) -> None:
    """Leases go by a clock that never jumps; message ids, and the order with them, do not go by the clock at all."""
    clock = Stepping()
    with Broker(clock=clock) as broker:
        endpoint = Endpoint("p1", f"127.0.0.1:{broker.port}")
        create_topic(endpoint, "events")
        create_subscription(endpoint, "job", "events")
        publisher, subscriber = Publisher(endpoint), Subscriber(endpoint, "job", max_messages=100)
        ids, got = [], []
        for number in range(6):
            ids += publisher.publish("events", [OutgoingMessage(b"%d" % number)])
            (message,) = subscriber.pull(10, 120.0)
            got.append(message)
            clock.wall += hours * HOUR_US
        assert [int(one.data) for one in got] == list(range(6))
        assert [one.message_id for one in got] == ids == sorted(ids, key=int)
        assert subscriber.pull(10, 0.1) == []  # no lease ended
        subscriber.acknowledge([one.ack_id for one in got])
        subscriber.close()
        publisher.close()


@pytest.mark.soak
def test_callbacks_of_thirteen_seconds_get_each_message_once() -> None:
    """As python-pubsub's system test: the client's leases hold for as long as a callback runs; for a minute."""
    with Broker() as broker, clients(f"127.0.0.1:{broker.port}") as official:
        topic, subscription = official.topic(), official.subscription(ack_deadline_seconds=10)
        pause = threading.Event()

        def slow(message: Any) -> None:
            pause.wait(13)
            message.ack()

        inbox = Inbox(slow)
        with streaming(official.subscriber, subscription, inbox):
            for number in range(40):
                official.publisher.publish(topic, b"%d" % number).result(120)
            inbox.wait_for(40)
            pause.wait(20)
        assert sorted(int(one.data) for one in inbox.messages) == list(range(40))
