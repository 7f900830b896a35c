"""Publisher and subscriber of the job, against the embedded broker and, where it matters, a broken service."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types

from streaming.broker import Broker
from streaming.topics import (
    Endpoint,
    Message,
    OutgoingMessage,
    Publisher,
    Subscriber,
    TopicError,
    create_subscription,
    create_topic,
    delete_subscription,
    delete_topic,
)
from tests.processes import PATIENCE_S, wait_until


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Broker() as broker:
        made = Endpoint("p1", f"127.0.0.1:{broker.port}")
        create_topic(made, "events")
        create_subscription(made, "job", "events")
        yield made


@pytest.fixture
def publisher(endpoint: Endpoint) -> Iterator[Publisher]:
    made = Publisher(endpoint)
    yield made
    made.close()


@pytest.fixture
def subscriber(endpoint: Endpoint) -> Iterator[Subscriber]:
    made = Subscriber(endpoint, "job")
    yield made
    made.close()


def pull_all(subscriber: Subscriber, number: int, timeout_s: float = PATIENCE_S) -> list[Message]:
    """`number` messages, in the order in which they came."""
    got: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while len(got) < number and time.monotonic() < deadline:
        got += subscriber.pull(number - len(got), 1.0)
    assert len(got) == number
    return got


def test_messages_come_as_they_were_published(publisher: Publisher, subscriber: Subscriber) -> None:
    before_us = time.time_ns() // 1000
    ids = publisher.publish("events", [OutgoingMessage(b"\x00\xff", {"event_type": "departed"}), OutgoingMessage(b"2")])
    first, second = pull_all(subscriber, 2)
    assert (first.data, first.attributes, first.message_id) == (b"\x00\xff", {"event_type": "departed"}, ids[0])
    assert (second.data, second.attributes, second.message_id) == (b"2", {}, ids[1])
    assert before_us <= first.publish_time_us <= time.time_ns() // 1000
    assert first.delivery_attempt == 0


def test_thousands_are_split_into_requests_and_keep_their_order(publisher: Publisher, subscriber: Subscriber) -> None:
    messages = [OutgoingMessage(b"%d" % n) for n in range(5500)]
    ids = publisher.publish("events", messages)
    assert len(set(ids)) == 5500
    got = pull_all(subscriber, 5500)
    assert {one.message_id: one.data for one in got} == {one: b"%d" % n for n, one in enumerate(ids)}


def test_large_messages_are_split_by_size(publisher: Publisher, subscriber: Subscriber) -> None:
    publisher.publish("events", [OutgoingMessage(bytes([n]) * 5_000_000) for n in range(4)])
    assert sorted(one.data[0] for one in pull_all(subscriber, 4)) == [0, 1, 2, 3]


def test_nothing_to_publish_is_no_request(publisher: Publisher) -> None:
    assert publisher.publish("no-such-topic", []) == []


def test_ordering_keys_keep_the_order_of_each(endpoint: Endpoint, publisher: Publisher) -> None:
    create_subscription(endpoint, "ordered", "events", ordered=True)
    subscriber = Subscriber(endpoint, "ordered")
    messages = [OutgoingMessage(b"%d" % n, {}, f"key-{n % 3}") for n in range(2000)]
    publisher.publish("events", messages[:1000])
    publisher.publish("events", messages[1000:])
    got = pull_all(subscriber, 2000)
    subscriber.close()
    for key in range(3):
        assert [int(one.data) for one in got if one.ordering_key == f"key-{key}"] == list(range(key, 2000, 3))


def test_pull_waits_no_longer_than_told_and_wakes_at_once(publisher: Publisher, subscriber: Subscriber) -> None:
    assert subscriber.pull(10, 0.05) == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(subscriber.pull, 10, 10 * PATIENCE_S)
        publisher.publish("events", [OutgoingMessage(b"now")])
        assert [one.data for one in waiting.result(120)] == [b"now"]


def test_pull_hands_out_no_more_than_asked(publisher: Publisher, subscriber: Subscriber) -> None:
    publisher.publish("events", [OutgoingMessage(b"%d" % n) for n in range(10)])
    assert len(pull_all(subscriber, 10)) == 10
    publisher.publish("events", [OutgoingMessage(b"%d" % n) for n in range(10)])
    wait_until(lambda: len(subscriber._buffer) == 10)
    assert [one.data for one in subscriber.pull(3, 1)] == [b"0", b"1", b"2"]


def test_released_messages_come_again_and_acknowledged_ones_do_not(
    endpoint: Endpoint, publisher: Publisher, subscriber: Subscriber
) -> None:
    publisher.publish("events", [OutgoingMessage(b"1"), OutgoingMessage(b"2")])
    first, second = pull_all(subscriber, 2)
    subscriber.release([first.ack_id])
    again = pull_all(subscriber, 1)[0]
    assert (again.data, again.message_id) == (b"1", first.message_id)
    subscriber.acknowledge([again.ack_id, second.ack_id])
    subscriber.close()
    other = Subscriber(endpoint, "job")
    assert other.pull(10, 0.3) == []
    other.close()


def test_what_is_held_when_it_closes_comes_to_the_next_at_once(endpoint: Endpoint, publisher: Publisher) -> None:
    subscriber = Subscriber(endpoint, "job")
    publisher.publish("events", [OutgoingMessage(b"%d" % n) for n in range(100)])
    subscriber.acknowledge([one.ack_id for one in pull_all(subscriber, 40)])
    subscriber.close()
    other = Subscriber(endpoint, "job")
    assert sorted(int(one.data) for one in pull_all(other, 60)) == list(range(40, 100))
    other.close()


def test_leases_are_extended_as_long_as_a_message_is_held(endpoint: Endpoint, publisher: Publisher) -> None:
    subscriber = Subscriber(endpoint, "job", lease_s=10)
    extended: list[tuple[list[str], int]] = []
    seen = threading.Event()

    def extend(ack_ids: Any, seconds: int) -> None:
        if ack_ids:
            extended.append((list(ack_ids), seconds))
            seen.set()

    subscriber._acks.extend = extend  # type: ignore[method-assign]
    publisher.publish("events", [OutgoingMessage(b"1"), OutgoingMessage(b"2")])
    first, second = pull_all(subscriber, 2)
    subscriber.acknowledge([first.ack_id])
    assert seen.wait(120)
    assert extended[0] == ([second.ack_id], 10)
    subscriber.close()


def test_flow_control_holds_back_what_would_not_fit(endpoint: Endpoint, publisher: Publisher) -> None:
    subscriber = Subscriber(endpoint, "job", max_messages=10)
    publisher.publish("events", [OutgoingMessage(b"%d" % n) for n in range(30)])
    first = pull_all(subscriber, 10)
    assert subscriber.pull(10, 0.2) == []
    subscriber.acknowledge([one.ack_id for one in first])
    assert len(pull_all(subscriber, 10)) == 10
    subscriber.close()


def test_several_streams_share_the_messages_and_what_may_be_held(endpoint: Endpoint, publisher: Publisher) -> None:
    subscriber = Subscriber(endpoint, "job", max_messages=30, streams=3)
    wait_until(lambda: subscriber.receiving, what="three streams")
    publisher.publish("events", [OutgoingMessage(b"%d" % n) for n in range(100)])
    seen: list[bytes] = []
    while len(seen) < 100:
        taken = pull_all(subscriber, 1)
        assert subscriber.held <= 30
        seen += [one.data for one in taken]
        subscriber.acknowledge([one.ack_id for one in taken])
    assert sorted(map(int, seen)) == list(range(100))
    subscriber.close()


def test_a_missing_subscription_is_said_by_pull(endpoint: Endpoint) -> None:
    subscriber = Subscriber(endpoint, "none")
    with pytest.raises(TopicError, match=r"Receiving from projects/p1/subscriptions/none failed .* NOT_FOUND"):
        subscriber.pull(1, PATIENCE_S)
    subscriber.close()


def test_publishing_to_a_missing_topic_is_refused_at_once(publisher: Publisher) -> None:
    with pytest.raises(TopicError, match=r"Publish to projects/p1/topics/none failed .* NOT_FOUND") as caught:
        publisher.publish("none", [OutgoingMessage(b"1")])
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(TopicError, match="NOT_FOUND"):
        publisher.publish("none", [OutgoingMessage(b"1")] * 1001)


def test_creating_and_deleting_twice_is_fine(endpoint: Endpoint) -> None:
    create_topic(endpoint, "events")
    create_subscription(endpoint, "job", "events")
    for _ in range(2):
        delete_subscription(endpoint, "job")
        delete_topic(endpoint, "events")
    with pytest.raises(TopicError, match="CreateSubscription of projects/p1/subscriptions/job failed"):
        create_subscription(endpoint, "job", "events")


def test_a_service_that_is_not_there_is_tried_until_the_deadline(free_port: Any) -> None:
    nowhere = Endpoint("p1", f"127.0.0.1:{free_port()}")
    publisher = Publisher(nowhere, deadline_s=0.5)
    with pytest.raises(TopicError, match=r"Publish to projects/p1/topics/events failed .* UNAVAILABLE"):
        publisher.publish("events", [OutgoingMessage(b"1")])
    publisher.close()


def test_publisher_and_subscriber_outlive_a_restart_of_the_service(free_port: Any) -> None:
    port = free_port()
    endpoint = Endpoint("p1", f"127.0.0.1:{port}")

    def serve() -> Broker:
        broker = Broker(port)
        broker.start()
        create_topic(endpoint, "events")
        create_subscription(endpoint, "job", "events")
        return broker

    broker = serve()
    publisher, subscriber = Publisher(endpoint), Subscriber(endpoint, "job")
    publisher.publish("events", [OutgoingMessage(b"before")])
    held = pull_all(subscriber, 1)
    broker.stop()
    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(publisher.publish, "none-yet", [OutgoingMessage(b"x")])
        broker = serve()
        with pytest.raises(TopicError, match="NOT_FOUND"):  # it was tried until the service answered
            meanwhile.result(120)
    subscriber.acknowledge([held[0].ack_id])  # unknown to the new broker: passed over
    publisher.publish("events", [OutgoingMessage(b"after")])
    assert [one.data for one in pull_all(subscriber, 1)] == [b"after"]
    subscriber.close()
    publisher.close()
    broker.stop()


class _OnceBroken(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """A service whose streams end with the given codes, one after another, and then deliver one message."""

    def __init__(self, codes: list[grpc.StatusCode]) -> None:
        self.codes = codes

    def service(self, handler_call_details: Any) -> Any:
        if not handler_call_details.method.endswith("StreamingPull"):
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: b"")
        return grpc.stream_stream_rpc_method_handler(self._stream)

    def _stream(self, requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
        if self.codes:
            code = self.codes.pop(0)
            if code is not grpc.StatusCode.OK:
                context.abort(code, "broken on purpose")
            return
        message = types.PubsubMessage(data=b"at last")
        response = types.StreamingPullResponse(received_messages=[types.ReceivedMessage(ack_id="1", message=message)])
        yield types.StreamingPullResponse.serialize(response)
        for _ in requests:
            pass


def test_streams_that_end_are_opened_again_whatever_ended_them() -> None:
    codes = ["UNAVAILABLE", "OK", "INTERNAL", "RESOURCE_EXHAUSTED", "ABORTED", "UNKNOWN", "DEADLINE_EXCEEDED"]
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_OnceBroken([grpc.StatusCode[code] for code in codes]),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    subscriber = Subscriber(Endpoint("p1", f"127.0.0.1:{port}"), "job")
    assert [one.data for one in pull_all(subscriber, 1)] == [b"at last"]
    subscriber.close()
    server.stop(None).wait()


def test_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:8085")
    monkeypatch.delenv("PUBSUB_PROJECT_ID", raising=False)
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    assert Endpoint.from_environment() == Endpoint("sameriver", "127.0.0.1:8085")
    monkeypatch.setenv("PUBSUB_PROJECT_ID", "p2")
    assert Endpoint.from_environment().topic("events") == "projects/p2/topics/events"
    assert Endpoint.from_environment("p3").subscription("job") == "projects/p3/subscriptions/job"
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST")
    assert Endpoint.from_environment().host_port is None
    assert Endpoint("p1").topic("projects/p9/topics/t") == "projects/p9/topics/t"
