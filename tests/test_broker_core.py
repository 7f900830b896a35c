"""Topics, subscriptions, settings and limits, as the service answers them; no network."""

from __future__ import annotations

from typing import Any

import pytest
from google.pubsub_v1 import types

from streaming.broker.core import Core
from streaming.broker.errors import RefusedError
from streaming.broker.leases import Consumer
from streaming.broker.messages import PullResponse, publish_response, received, varint

SECOND = 1_000_000
TOPIC = "projects/p1/topics/events"
SUBSCRIPTION = "projects/p1/subscriptions/job"


class FakeClock:
    def __init__(self) -> None:
        self.now_us = 1_700_000_000 * SECOND + 123_456

    def wall_us(self) -> int:
        return self.now_us

    def monotonic_us(self) -> int:
        return self.now_us


@pytest.fixture
def core() -> Core:
    return Core(FakeClock())


def topic(name: str = TOPIC, **settings: Any) -> Any:
    return types.Topic.pb(types.Topic(name=name, **settings))


def subscription(name: str = SUBSCRIPTION, **settings: Any) -> Any:
    return types.Subscription.pb(types.Subscription({"name": name, "topic": TOPIC, **settings}))


def message(data: bytes = b"", key: str = "", attributes: dict[str, str] | None = None) -> Any:
    return types.PubsubMessage.pb(types.PubsubMessage(data=data, ordering_key=key, attributes=attributes or {}))


def publish(core: Core, *messages: Any, name: str = TOPIC, request_bytes: int = 10) -> list[int]:
    accepted = core.publish(name, messages, request_bytes)
    core.deliver(accepted)
    return list(accepted.batch.ids)


def pull(core: Core, name: str = SUBSCRIPTION) -> list[Any]:
    queue = core.pullable(name).queue
    taken = queue.take(Consumer(10 * SECOND), core.clock.monotonic_us(), core.clock.wall_us(), 1000)
    data = b"".join(received(queue.ack_id(one), one.field, one.attempts) for one in taken)
    return list(PullResponse.FromString(data).received_messages)


def refused(code: str, text: str) -> Any:
    return pytest.raises(RefusedError, match=text, check=lambda error: error.code == code)


def test_a_message_gets_id_and_publish_time_whatever_the_publisher_set(core: Core) -> None:
    core.create_topic(topic())
    core.create_subscription(subscription())
    forged = message(b"data", attributes={"colour": "red"})
    forged.message_id = "mine"
    forged.publish_time.seconds = 5
    forged.publish_time.nanos = 7
    (one,) = publish(core, forged)
    (got,) = pull(core)
    assert got.message.data == b"data"
    assert dict(got.message.attributes) == {"colour": "red"}
    assert got.message.message_id == str(one)
    assert got.message.publish_time.ToMicroseconds() == core.clock.wall_us()
    assert got.delivery_attempt == 1


def test_every_subscription_of_the_topic_gets_a_copy_from_its_creation_on(core: Core) -> None:
    core.create_topic(topic())
    publish(core, message(b"nobody"))
    core.create_subscription(subscription())
    publish(core, message(b"1"))
    core.create_subscription(subscription("projects/p1/subscriptions/other"))
    publish(core, message(b"2"))
    assert [one.message.data for one in pull(core)] == [b"1", b"2"]
    assert [one.message.data for one in pull(core, "projects/p1/subscriptions/other")] == [b"2"]


def test_message_ids_go_up_over_restarts() -> None:
    clock = FakeClock()
    first, second = Core(clock), Core(clock)
    first.create_topic(topic())
    ids = publish(first, message(b"1"), message(b"2"))
    clock.now_us += SECOND
    second = Core(clock)
    second.create_topic(topic())
    assert publish(second, message(b"1"))[0] > ids[-1]


@pytest.mark.parametrize(
    ("messages", "request_bytes", "text"),
    [
        ([], 10, "message_count is too small. You passed 0"),
        ([message(b"x")] * 1001, 10, "message_count is too large. You passed 1001 .* maximum value is 1000"),
        ([message(b"x")], 10_000_001, "request_size is too large. You passed 10000001"),
        ([message()], 10, "must contain either non-empty data, or at least one attribute"),
        ([message(b"x", "a"), message(b"x", "b")], 10, "must have the same ordering key"),
        ([message(b"x", "k" * 1025)], 10, "ordering_key is too large"),
        ([message(attributes={"k" * 257: "v"})], 10, "attribute key size is too large"),
        ([message(attributes={"k": "ü" * 513})], 10, "attribute value size is too large. You passed 1026"),
        ([message(attributes={f"k{n}": "v" for n in range(101)})], 10, "attributes_count is too large"),
        ([message(attributes={"": "v"})], 10, "empty key"),
    ],
)
def test_publish_limits(core: Core, messages: list[Any], request_bytes: int, text: str) -> None:
    core.create_topic(topic())
    core.create_subscription(subscription())
    with refused("INVALID_ARGUMENT", text):
        publish(core, *messages, request_bytes=request_bytes)
    assert pull(core) == []


def test_attributes_at_the_limits_pass(core: Core) -> None:
    core.create_topic(topic())
    core.create_subscription(subscription())
    publish(core, message(attributes={"ü" * 128: "ü" * 512}), message(attributes={"a": ""}))
    assert len(pull(core)) == 2


@pytest.mark.parametrize(
    "name",
    ["events", "projects/p1/topics/", "projects/p1/topics/ab", "projects/p1/topics/goog-x", "projects/p1/topics/1ab",
     "projects/p1/topics/a/b", "projects/p1/topics/a b c", "projects//topics/abc", "projects/p1/topics/" + "a" * 256,
     "projects/p1/subscriptions/abc"],
)  # fmt: skip
def test_malformed_names(core: Core, name: str) -> None:
    with refused("INVALID_ARGUMENT", "Invalid resource name given"):
        core.create_topic(topic(name))
    with refused("INVALID_ARGUMENT", "Invalid resource name given"):
        core.topic(name)


def test_existing_and_missing_resources(core: Core) -> None:
    core.create_topic(topic())
    core.create_subscription(subscription())
    with refused("ALREADY_EXISTS", r"Resource already exists in the project \(resource=events\)"):
        core.create_topic(topic())
    with refused("ALREADY_EXISTS", r"resource=job"):
        core.create_subscription(subscription())
    with refused("NOT_FOUND", r"Resource not found \(resource=none\)"):
        publish(core, message(b"x"), name="projects/p1/topics/none")
    with refused("NOT_FOUND", r"resource=none"):
        core.subscription("projects/p1/subscriptions/none")
    with refused("NOT_FOUND", r"resource=none"):
        core.create_subscription(subscription("projects/p1/subscriptions/other", topic="projects/p1/topics/none"))


def test_defaults_are_the_services(core: Core) -> None:
    core.create_topic(topic())
    made = core.create_subscription(subscription(retry_policy={}, dead_letter_policy={"dead_letter_topic": TOPIC}))
    assert made.ack_deadline_seconds == 10
    assert made.message_retention_duration.seconds == 7 * 86400
    assert made.expiration_policy.ttl.seconds == 31 * 86400
    assert (made.retry_policy.minimum_backoff.seconds, made.retry_policy.maximum_backoff.seconds) == (10, 600)
    assert made.dead_letter_policy.max_delivery_attempts == 5
    assert made.state == types.Subscription.State.ACTIVE


@pytest.mark.parametrize(
    ("settings", "code", "text"),
    [
        ({"ack_deadline_seconds": 9}, "INVALID_ARGUMENT", "ack_deadline_seconds is too small"),
        ({"ack_deadline_seconds": 601}, "INVALID_ARGUMENT", "ack_deadline_seconds is too large"),
        ({"message_retention_duration": {"seconds": 599}}, "INVALID_ARGUMENT", "message_retention_duration"),
        ({"message_retention_duration": {"seconds": 32 * 86400}}, "INVALID_ARGUMENT", "message_retention_duration"),
        ({"expiration_policy": {"ttl": {"seconds": 60}}}, "INVALID_ARGUMENT", "expiration_policy.ttl"),
        ({"retry_policy": {"maximum_backoff": {"seconds": 601}}}, "INVALID_ARGUMENT", "_backoff is out of bounds"),
        ({"retry_policy": {"minimum_backoff": {"seconds": 9}, "maximum_backoff": {"seconds": 8}}},
         "INVALID_ARGUMENT", "maximum_backoff is too small. You passed 8s"),
        ({"dead_letter_policy": {"dead_letter_topic": TOPIC, "max_delivery_attempts": 4}},
         "INVALID_ARGUMENT", "max_delivery_attempts is too small"),
        ({"dead_letter_policy": {"dead_letter_topic": "x"}}, "INVALID_ARGUMENT", "Invalid resource name"),
        ({"labels": {"k" * 64: "v"}}, "INVALID_ARGUMENT", "Invalid label"),
        ({"labels": {f"k{n}": "v" for n in range(65)}}, "INVALID_ARGUMENT", "labels is too large"),
        ({"push_config": {"push_endpoint": "https://example.com"}}, "UNIMPLEMENTED", "push delivery"),
        ({"bigquery_config": {"table": "t"}}, "UNIMPLEMENTED", "bigquery_config"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(core: Core, settings: dict[str, Any], code: str, text: str) -> None:
    core.create_topic(topic())
    with refused(code, text):
        core.create_subscription(subscription(**settings))
    assert core.subscriptions == {}


def test_pages_go_through_all_names_once(core: Core) -> None:
    names = [f"projects/p1/topics/t-{n:03}" for n in range(25)]
    for name in [*reversed(names), "projects/p10/topics/elsewhere"]:
        core.create_topic(topic(name))
    seen, token = [], ""
    for _ in range(4):
        page, token = core.list_topics("projects/p1", 8, token)
        seen.append([one.name for one in page])
    assert [len(page) for page in seen] == [8, 8, 8, 1]
    assert [name for page in seen for name in page] == names
    assert token == ""
    assert core.list_topics("projects/p1", 25, "")[1] == ""
    with refused("INVALID_ARGUMENT", "page_size is too small"):
        core.list_topics("projects/p1", -1, "")
    with refused("INVALID_ARGUMENT", "Invalid resource name"):
        core.list_subscriptions("p1", 0, "")


def test_update_changes_what_the_mask_names_and_nothing_else(core: Core) -> None:
    core.create_topic(topic(labels={"a": "1"}))
    core.create_subscription(subscription(labels={"a": "1"}, ack_deadline_seconds=20))
    wanted = subscription(ack_deadline_seconds=30, labels={"b": "2"}, retry_policy={"maximum_backoff": {"seconds": 20}})
    core.update_subscription(wanted, ["ack_deadline_seconds", "retry_policy"])
    found = core.subscription(SUBSCRIPTION)
    assert found.config.ack_deadline_seconds == 30
    assert dict(found.config.labels) == {"a": "1"}
    assert found.queue.policy.max_backoff_us == 20 * SECOND
    core.update_subscription(subscription(), ["retry_policy"])
    assert found.queue.policy.max_backoff_us == 0
    core.update_topic(topic(labels={"b": "2"}), ["labels"])
    assert dict(core.topic(TOPIC).config.labels) == {"b": "2"}
    for paths, text in [([], "update_mask"), (["nonsense"], "nonsense"), (["topic"], "is not mutable")]:
        with refused("INVALID_ARGUMENT", text):
            core.update_subscription(wanted, paths)


def test_a_deleted_topic_leaves_its_subscriptions_with_what_they_have(core: Core) -> None:
    core.create_topic(topic())
    core.create_subscription(subscription())
    publish(core, message(b"1"))
    core.delete_topic(TOPIC)
    assert core.subscription(SUBSCRIPTION).config.topic == "_deleted-topic_"
    assert [one.message.data for one in pull(core)] == [b"1"]
    core.create_topic(topic())
    publish(core, message(b"2"))
    assert pull(core) == []


def test_a_detached_subscription_is_empty_and_cannot_be_pulled(core: Core) -> None:
    core.create_topic(topic())
    core.create_subscription(subscription())
    publish(core, message(b"1"))
    core.detach_subscription(SUBSCRIPTION)
    publish(core, message(b"2"))
    with refused("FAILED_PRECONDITION", "is detached"):
        core.pullable(SUBSCRIPTION)
    assert core.subscription(SUBSCRIPTION).config.detached
    assert core.list_topic_subscriptions(TOPIC, 0, "") == ([], "")


def test_dead_letters_carry_their_origin_and_wait_for_their_topic(core: Core) -> None:
    letters = "projects/p1/topics/letters"
    core.create_topic(topic())
    wanted = subscription(dead_letter_policy={"dead_letter_topic": letters, "max_delivery_attempts": 5})
    with refused("NOT_FOUND", "resource=letters"):
        core.create_subscription(wanted)
    core.create_topic(topic(letters))
    core.create_subscription(wanted)
    core.delete_topic(letters)
    publish(core, message(b"bad", attributes={"colour": "red"}))
    queue = core.subscription(SUBSCRIPTION).queue

    def fail() -> None:
        (one,) = pull(core)
        queue.modify([one.ack_id], [0], core.clock.monotonic_us())

    for _ in range(6):
        fail()  # the topic does not exist: the message stays
    core.create_topic(topic(letters))
    core.create_subscription(subscription("projects/p1/subscriptions/letters", topic=letters))
    fail()
    assert pull(core) == []
    (letter,) = pull(core, "projects/p1/subscriptions/letters")
    assert letter.message.data == b"bad"
    attributes = dict(letter.message.attributes)
    time = attributes.pop("CloudPubSubDeadLetterSourceTopicPublishTime")
    assert time == "2023-11-14T22:13:20.123456Z"
    assert attributes == {
        "colour": "red",
        "CloudPubSubDeadLetterSourceDeliveryCount": "7",
        "CloudPubSubDeadLetterSourceSubscription": "job",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "p1",
    }


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**21, 2**35 + 17])
def test_varints_are_protobufs(value: int) -> None:
    request = types.StreamingPullRequest.pb()(max_outstanding_messages=value)
    assert request.SerializeToString() == (b"\x38" + varint(value) if value else b"")


def test_publish_response_is_protobufs() -> None:
    ids = [1_700_000_000_000_000, 5]
    parsed = types.PublishResponse.pb().FromString(publish_response(ids))
    assert list(parsed.message_ids) == [str(one) for one in ids]
