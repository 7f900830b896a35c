"""Google's own Python clients against the embedded broker, as users will run them."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1
from google.pubsub_v1 import types

from streaming.broker import Broker
from tests.broker_clients import Clients, Inbox, clients, streaming, subscription_path, topic_path
from tests.processes import wait_until


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker() as running:
        yield running


@pytest.fixture
def official(broker: Broker) -> Iterator[Clients]:
    with clients(f"127.0.0.1:{broker.port}") as made:
        yield made


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.soak)])
def test_keys_stay_in_order_over_refusals_and_two_subscribers(official: Clients, count: int) -> None:
    """Whatever is refused: the first time that each message of a key comes, those before it have come."""
    topic, subscription = official.topic(), official.subscription(enable_message_ordering=True)
    draw, lock, first = random.Random(5), threading.Lock(), dict[str, dict[int, None]]()

    def handle(message: Any) -> None:
        with lock:
            first.setdefault(message.ordering_key, {})[int(message.data)] = None
            refuse = draw.random() < 0.05
        message.nack() if refuse else message.ack()

    inboxes = Inbox(handle), Inbox(handle)
    with (
        streaming(official.subscriber, subscription, inboxes[0]),
        streaming(official.subscriber, subscription, inboxes[1]),
    ):
        for n in range(count):
            for key in range(count):
                official.ordered.publish(topic, b"%d" % n, ordering_key=f"key-{key}")
        wait_until(lambda: sum(map(len, first.values())) == count**2, what="every message came")
    assert all(list(numbers) == list(range(count)) for numbers in first.values())


def test_exactly_once_tells_of_success_and_of_a_lease_that_is_over(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(enable_exactly_once_delivery=True)
    answers: list[Any] = []
    inbox = Inbox(lambda message: answers.append((message.ack_id, message.ack_with_response())))
    with streaming(official.subscriber, subscription, inbox):
        official.publisher.publish(topic, b"1").result(120)
        inbox.wait_for(1)
        assert answers[0][1].result(120) == pubsub_v1.subscriber.exceptions.AcknowledgeStatus.SUCCESS
    with pytest.raises(exceptions.InvalidArgument, match="have expired") as caught:
        official.subscriber.acknowledge(subscription=subscription, ack_ids=[answers[0][0]])
    error: Any = caught.value
    assert error.metadata == {answers[0][0]: "PERMANENT_FAILURE_INVALID_ACK_ID"}


def test_five_megabytes_come_through_and_more_than_ten_are_refused(official: Clients, broker: Broker) -> None:
    topic, subscription = official.topic(), official.subscription()
    inbox = Inbox()
    # In emulator mode the official subscriber itself receives 4 MB at most, unless it is given a channel.
    unlimited = [("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(f"127.0.0.1:{broker.port}", options=unlimited)
    transport = pubsub_v1.SubscriberClient.get_transport_class("grpc")(channel=channel)
    with pubsub_v1.SubscriberClient(transport=transport) as subscriber, streaming(subscriber, subscription, inbox):
        official.publisher.publish(topic, b"x" * 5_000_000).result(120)
        assert len(inbox.wait_for(1)[0].data) == 5_000_000
    request = types.PublishRequest.pb()(topic=topic, messages=[types.PubsubMessage.pb()(data=b"x" * 10_000_001)])
    with grpc.insecure_channel(f"127.0.0.1:{broker.port}", options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary("/google.pubsub.v1.Publisher/Publish", None, None)
        with pytest.raises(grpc.RpcError, match="request_size is too large") as caught:
            call(request.SerializeToString(), timeout=120)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_deleting_a_subscription_ends_its_stream_with_not_found(official: Clients) -> None:
    official.topic()
    subscription = official.subscription()
    future = official.subscriber.subscribe(subscription, Inbox())
    official.publisher.publish(topic_path("events"), b"1").result(120)
    official.subscriber.delete_subscription(subscription=subscription)
    with pytest.raises(exceptions.NotFound, match="resource=job"):
        future.result(120)


def test_detaching_ends_pulls_with_failed_precondition(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription()
    official.publisher.detach_subscription(request={"subscription": subscription})
    with pytest.raises(exceptions.FailedPrecondition, match="detached"):
        official.subscriber.pull(subscription=subscription, max_messages=1, timeout=120)
    assert list(official.publisher.list_topic_subscriptions(topic=topic)) == []


def test_resources_are_listed_updated_and_deleted(official: Clients) -> None:
    names = [official.topic(f"topic-{n:02}") for n in range(12)]
    for n in range(3):
        official.subscription(f"sub-{n}", "topic-00")
    publisher, subscriber = official.publisher, official.subscriber
    listed = publisher.list_topics(request={"project": "projects/p1", "page_size": 5})
    assert [one.name for one in listed] == names
    assert [one.name for one in subscriber.list_subscriptions(request={"project": "projects/p1", "page_size": 2})] == [
        subscription_path(f"sub-{n}") for n in range(3)
    ]
    assert len(list(publisher.list_topic_subscriptions(request={"topic": names[0], "page_size": 1}))) == 3
    assert publisher.get_topic(topic=names[0]).name == names[0]
    changed = subscriber.update_subscription(
        request={
            "subscription": {"name": subscription_path("sub-0"), "ack_deadline_seconds": 44},
            "update_mask": {"paths": ["ack_deadline_seconds"]},
        }
    )
    assert changed.ack_deadline_seconds == 44
    assert subscriber.get_subscription(subscription=subscription_path("sub-0")) == changed
    publisher.delete_topic(topic=names[0])
    assert subscriber.get_subscription(subscription=subscription_path("sub-0")).topic == "_deleted-topic_"
    with pytest.raises(exceptions.NotFound, match="resource=topic-00"):
        publisher.get_topic(topic=names[0])
    with pytest.raises(exceptions.AlreadyExists, match="resource=topic-01"):
        publisher.create_topic(name=names[1])
    with pytest.raises(exceptions.InvalidArgument, match="Invalid resource name"):
        publisher.create_topic(name="nonsense")


def test_what_the_broker_does_not_do_is_said(official: Clients) -> None:
    official.topic()
    with pytest.raises(exceptions.MethodNotImplemented, match="does not support push delivery"):
        official.subscription(push_config={"push_endpoint": "https://example.com/push"})


@pytest.mark.parametrize(
    ("later", "text"),
    [
        ({"max_outstanding_messages": 5}, "may only be in the first request"),
        ({"modify_deadline_ack_ids": ["x"]}, "differ in length"),
        ({"ack_ids": ["nonsense"]}, "invalid ack ID"),
        ({"stream_ack_deadline_seconds": 5}, "stream_ack_deadline_seconds is too small"),
        ({"subscription": subscription_path("other")}, "cannot change its subscription"),
        ({"protocol_version": 1}, "protocol_version may only be in the first request"),
    ],
)
def test_a_stream_that_breaks_the_rules_ends_with_invalid_argument(
    official: Clients, broker: Broker, later: dict[str, Any], text: str
) -> None:
    official.topic()
    first = {"subscription": official.subscription(), "stream_ack_deadline_seconds": 10}
    made = types.StreamingPullRequest.pb()
    with grpc.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        call = channel.stream_stream("/google.pubsub.v1.Subscriber/StreamingPull", None, None)
        requests = iter([made(**first).SerializeToString(), made(**later).SerializeToString()])
        with pytest.raises(grpc.RpcError, match=text) as caught:
            list(call(requests, timeout=120))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_confirms_acknowledgements_and_gives_signs_of_life(official: Clients, broker: Broker) -> None:
    """Exactly-once delivery: what became of each ack id; protocol version 1: an answer to each empty request."""
    topic = official.topic()
    subscription = official.subscription(enable_exactly_once_delivery=True, ack_deadline_seconds=600)
    made, parse = types.StreamingPullRequest.pb(), types.StreamingPullResponse.pb().FromString
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    requests.put(made(subscription=subscription, stream_ack_deadline_seconds=600, protocol_version=1))
    with grpc.insecure_channel(f"127.0.0.1:{broker.port}") as channel:
        call: Any = channel.stream_stream("/google.pubsub.v1.Subscriber/StreamingPull", made.SerializeToString, parse)
        stream = call(iter(requests.get, None), timeout=120)
        official.publisher.publish(topic, b"1").result(120)
        first = next(stream)
        assert first.subscription_properties.exactly_once_delivery_enabled
        (held,) = first.received_messages
        requests.put(made(modify_deadline_ack_ids=[held.ack_id, "1-1-1"], modify_deadline_seconds=[20, 20]))
        confirmed = next(stream).modify_ack_deadline_confirmation
        assert (list(confirmed.ack_ids), list(confirmed.invalid_ack_ids)) == ([held.ack_id], ["1-1-1"])
        requests.put(made(ack_ids=[held.ack_id]))
        assert list(next(stream).acknowledge_confirmation.ack_ids) == [held.ack_id]
        requests.put(made(ack_ids=[held.ack_id]))
        assert list(next(stream).acknowledge_confirmation.invalid_ack_ids) == [held.ack_id]
        requests.put(made())
        alive = next(stream)
        assert not alive.received_messages
        assert alive.subscription_properties.exactly_once_delivery_enabled
        requests.put(None)
