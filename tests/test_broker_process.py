"""The broker as a process: start, stop, refusals, kill -9 under load."""

from __future__ import annotations

import queue
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types

from streaming.broker import Broker
from streaming.topics import Endpoint, OutgoingMessage, Publisher, Subscriber, create_subscription, create_topic
from tests.broker_clients import Inbox, clients, streaming
from tests.processes import Started, wait_until

READY = "listening on"
HELD = 200

StartProcess = Callable[..., Started]


def start_broker(start_process: StartProcess, *arguments: str | Path) -> tuple[Started, int]:
    started = start_process(["-m", "streaming.broker", *arguments], ready=READY)
    return started, int(started.line.rpartition(":")[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_prints_where_it_listens_and_ends_well_on_a_signal(start_process: StartProcess, number: int) -> None:
    started, port = start_broker(start_process, "--port", "0")
    assert re.fullmatch(rf"listening on 127\.0\.0\.1:{port}", started.line)
    endpoint = Endpoint("p1", f"127.0.0.1:{port}")
    create_topic(endpoint, "events")
    create_subscription(endpoint, "job", "events")
    first = {"subscription": endpoint.subscription("job"), "stream_ack_deadline_seconds": 10}
    with endpoint.channel() as channel:
        call = channel.stream_stream("/google.pubsub.v1.Subscriber/StreamingPull", None, None)
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        requests.put(types.StreamingPullRequest.pb()(**first).SerializeToString())
        stream: Any = call(iter(requests.get, None))
        publisher = Publisher(endpoint)
        publisher.publish("events", [OutgoingMessage(b"1")])
        publisher.close()
        next(stream)
        assert started.stop(number) == 0  # an open stream does not hold it up
        with pytest.raises(grpc.RpcError, match="shutting down") as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # OK would end official subscribers for good
        requests.put(None)
    assert started.lines == [started.line]


def test_a_port_in_use_is_one_sentence_and_exit_code_2(start_process: StartProcess) -> None:
    with Broker() as broker:
        refused = start_process(["-m", "streaming.broker", "--port", str(broker.port)])
        assert refused.wait() == 2
        assert refused.lines == [
            f"Port {broker.port} on 127.0.0.1 cannot be listened on: stop what uses it, or choose another with --port."
        ]


def test_a_folder_that_cannot_be_written_to_is_one_sentence_and_exit_code_2(
    start_process: StartProcess, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    refused = start_process(["-m", "streaming.broker", "--port", "0", "--data-dir", tmp_path / "file" / "data"])
    assert refused.wait() == 2
    assert len(refused.lines) == 1
    assert "cannot be written to" in refused.lines[0]


def test_official_clients_go_on_after_a_kill(
    start_process: StartProcess, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    where = ("--port", str(free_port()), "--data-dir", tmp_path / "data")
    first, port = start_broker(start_process, *where)
    with clients(f"127.0.0.1:{port}") as official:
        topic, subscription = official.topic(), official.subscription()
        inbox = Inbox()
        with streaming(official.subscriber, subscription, inbox):
            official.publisher.publish(topic, b"before").result(120)
            inbox.wait_for(1)
            first.kill()
            second, _ = start_broker(start_process, *where)
            official.publisher.publish(topic, b"after").result(120)
            wait_until(lambda: b"after" in {one.data for one in inbox.messages}, what="the message after the kill")
    assert second.stop() == 0
    assert second.lines == [second.line]


def test_kill_under_load_loses_nothing_that_was_acknowledged_to_the_publisher(
    start_process: StartProcess, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    where = ("--port", str(free_port()), "--data-dir", tmp_path / "data")
    broker, port = start_broker(start_process, *where)
    endpoint = Endpoint("p1", f"127.0.0.1:{port}")
    create_topic(endpoint, "events")
    create_subscription(endpoint, "job", "events")
    publisher, subscriber = Publisher(endpoint, deadline_s=300), Subscriber(endpoint, "job", max_messages=HELD)
    stored: list[str] = []
    received: dict[str, int] = {}
    enough, all_published = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def publish() -> None:
        number = 0
        while not enough.is_set():
            size = 1 + number % 40
            batch = [OutgoingMessage(b"%d" % (number + n) * 20) for n in range(size)]
            stored.extend(publisher.publish("events", batch))
            number += size
        all_published.set()

    def receive() -> None:
        while not all_published.is_set() or not set(stored) <= received.keys():
            messages = subscriber.pull(500, 0.2)
            for one in messages:
                received[one.message_id] = received.get(one.message_id, 0) + 1
            subscriber.acknowledge([one.ack_id for one in messages])

    def guarded(run: Callable[[], Any]) -> threading.Thread:
        def target() -> None:
            try:
                run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        return thread

    threads = [guarded(publish), guarded(receive)]
    for _ in range(3):
        goal = len(received) + 3000
        wait_until(lambda goal=goal: len(received) > goal or failures, what="messages come")  # type: ignore[misc]
        broker.kill()
        broker, _ = start_broker(start_process, *where)
    enough.set()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), f"{len(set(stored) - received.keys())} of {len(stored)} messages did not come"
    subscriber.close()
    publisher.close()
    assert failures == []
    assert set(stored) <= received.keys()
    again = sum(number - 1 for number in received.values())
    print(f"{again} of {len(received)} messages came again")
    assert max(received.values()) <= 3, "acknowledgements of 3,000 messages ago were lost, at each of three kills"
    assert broker.stop() == 0
    assert broker.lines == [broker.line]  # nothing damaged
