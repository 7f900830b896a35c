"""Kills: of the broker right after its answers, and of broker and subscribers in the middle of their work.

The rules: what was answered is there after any kill, nothing comes that was not published, and a run in which the
work was done before the last kill proves nothing and fails.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types

from streaming.topics import Endpoint, OutgoingMessage, Publisher, create_subscription, create_topic
from tests.processes import Started, new_seed, wait_until
from tests.test_broker_process import StartProcess, start_broker

PUBLISHERS = 4
SUBSCRIBERS = 3
JOB = "projects/p1/subscriptions/job"


def _call(channel: grpc.Channel, method: str, request: Any, answer: Any) -> Any:
    call = channel.unary_unary(f"/google.pubsub.v1.{method}", None, answer.FromString)
    return call(request.SerializeToString(), timeout=120, wait_for_ready=True)


def _pull(channel: grpc.Channel) -> list[Any]:
    """Up to 1,000 messages, none if there are none now."""
    request = types.PullRequest.pb()(subscription=JOB, max_messages=1000, return_immediately=True)
    found: list[Any] = list(_call(channel, "Subscriber/Pull", request, types.PullResponse.pb()).received_messages)
    return found


def _acknowledge(channel: grpc.Channel, ack_ids: list[str]) -> None:
    request = types.AcknowledgeRequest.pb()(subscription=JOB, ack_ids=ack_ids)
    _call(channel, "Subscriber/Acknowledge", request, types.SeekResponse.pb())


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.soak)])
def test_what_was_answered_is_there_after_a_kill_at_that_instant(
    start_process: StartProcess, tmp_path: Path, kills: int, free_port: Callable[[], int]
) -> None:
    """Exactly-once delivery: of what was published and of what was acknowledged, nothing is lost or comes again."""
    seed = new_seed()
    draw = random.Random(seed)
    where = ("--port", str(free_port()), "--data-dir", tmp_path / "data")
    broker, port = start_broker(start_process, *where)
    endpoint = Endpoint("p1", f"127.0.0.1:{port}")
    create_topic(endpoint, "events")
    with endpoint.channel() as channel:
        made = types.Subscription.pb()(
            name=JOB, topic=endpoint.topic("events"), enable_exactly_once_delivery=True, ack_deadline_seconds=600
        )
        _call(channel, "Subscriber/CreateSubscription", made, types.Subscription.pb())
        waiting: set[str] = set()
        publisher = Publisher(endpoint)
        for kill in range(kills):
            batch = [OutgoingMessage(b"%d" % n) for n in range(draw.randrange(1, 300))]
            waiting.update(publisher.publish("events", batch))
            if kill % 2:
                held = _pull(channel)
                done = draw.sample(held, len(held) // 2)
                _acknowledge(channel, [one.ack_id for one in done])
                waiting.difference_update(one.message.message_id for one in done)
            broker.kill()
            broker, _ = start_broker(start_process, *where)
            if kill % 2:
                with pytest.raises(grpc.RpcError, match="have expired"):
                    _acknowledge(channel, [next(one.ack_id for one in held if one not in done)])
        got: list[str] = []
        while messages := _pull(channel):
            got += [one.message.message_id for one in messages]
            _acknowledge(channel, [one.ack_id for one in messages])
        publisher.close()
    assert sorted(got) == sorted(waiting), f"seed {seed}"
    assert broker.stop() == 0
    assert broker.lines == [broker.line]  # nothing damaged


@pytest.mark.parametrize(("events", "kills"), [(2_000, 1), pytest.param(20_000, 10, marks=pytest.mark.soak)])
def test_total_queue(
    start_process: StartProcess, tmp_path: Path, free_port: Callable[[], int], events: int, kills: int
) -> None:
    """Numbered events from 4 publishers to 3 subscribers while broker and subscribers are killed: none is lost."""
    seed = new_seed()
    draw = random.Random(seed)
    where = ("--port", str(free_port()), "--data-dir", tmp_path / "data")
    broker, port = start_broker(start_process, *where)
    endpoint = Endpoint("p1", f"127.0.0.1:{port}")
    create_topic(endpoint, "events")
    create_subscription(endpoint, "job", "events", ack_deadline_s=10)

    def subscriber() -> Started:
        return start_process(["-m", "tests.broker_subscriber", str(port), "job"], ready="ready")

    every = [subscriber() for _ in range(SUBSCRIBERS)]
    running = list(every)
    answered: list[set[str]] = [set() for _ in range(PUBLISHERS)]
    allowed = threading.Semaphore(0)  # the work goes on as the kills do

    def publish(mine: int) -> None:
        publisher = Publisher(endpoint, deadline_s=300)
        for start in range(mine, events, PUBLISHERS * 50):
            allowed.acquire()
            numbers = range(start, min(start + PUBLISHERS * 50, events), PUBLISHERS)
            publisher.publish("events", [OutgoingMessage(b"%d" % n) for n in numbers])
            answered[mine].update(map(str, numbers))
        publisher.close()

    def got() -> Counter[str]:
        return Counter(line.split()[1] for one in every for line in list(one.lines) if line.startswith("got "))

    threads = [threading.Thread(target=publish, args=(mine,), daemon=True) for mine in range(PUBLISHERS)]
    for thread in threads:
        thread.start()
    steps = -(-events // 50)
    for _ in range(kills):
        before = len(got())
        for _ in range(steps // (kills + 1)):
            allowed.release()
        wait_until(lambda before=before: len(got()) > before, what="messages come")  # type: ignore[misc]
        assert sum(map(len, answered)) < events, "the work was done before the kill"
        broker.kill()
        running.pop(draw.randrange(len(running))).kill()
        broker, _ = start_broker(start_process, *where)
        running.append(subscriber())
        every.append(running[-1])
    for _ in range(steps + PUBLISHERS):
        allowed.release()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    expected = {str(n) for n in range(events)}
    assert set().union(*answered) == expected
    wait_until(lambda: got().keys() >= expected, what="every event came")
    found = got()
    print(f"seed {seed}: {events} events, {kills} kills, {sum(found.values()) - len(found)} came again")
    assert found.keys() == expected
    for one in running:
        one.kill()
    assert broker.stop() == 0
    assert broker.lines == [broker.line]
