"""The same tests with Google's own clients on the embedded broker and, where it is installed, on Google's emulator.

What Google's emulator does not do is skipped there, by name.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import pubsub_v1

from streaming.broker import Broker
from tests.broker_clients import Clients, Inbox, clients, emulator_command, streaming
from tests.processes import free_port, start, wait_until

NOT_IN_EMULATOR = {
    "test_flow_control_bounds_what_is_outstanding": "Google's emulator now and then sends a stream all that there is",
    "test_a_nack_brings_the_message_and_its_followers_again_in_order": "Google's emulator brings it alone",
    "test_a_filter_lets_through_what_matches": "Google's emulator takes every filter and applies none",
    "test_labels_are_changed": "Google's emulator cannot change labels",
    "test_a_detached_subscription_cannot_be_pulled": "Google's emulator does not implement DetachSubscription",
    "test_iam_permits_everything": "Google's emulator does not implement IAM",
    "test_messages_beyond_the_limits_are_refused": "Google's emulator has few limits",
}
AVRO = '{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}'
WIDER = '{"type":"record","name":"R","fields":[{"name":"a","type":"string"},{"name":"b","type":"int","default":0}]}'

_projects = (f"p{n}" for n in itertools.count(1))


@pytest.fixture(scope="module", params=["broker", "emulator"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Which one, and its host and port."""
    if request.param == "broker":
        with Broker() as broker:
            yield "broker", f"127.0.0.1:{broker.port}"
        return
    port = free_port()
    started = start([*emulator_command(), "--host=127.0.0.1", f"--port={port}"], ready="Server started")
    yield "emulator", f"127.0.0.1:{port}"
    started.kill()


@pytest.fixture
def official(server: tuple[str, str], request: pytest.FixtureRequest) -> Iterator[Clients]:
    """Clients with a project of their own."""
    name = request.function.__name__
    if server[0] == "emulator" and name in NOT_IN_EMULATOR:
        pytest.skip(NOT_IN_EMULATOR[name])
    with clients(server[1], next(_projects)) as made:
        yield made


def pulled(official: Clients, subscription: str, number: int) -> list[Any]:
    """So many messages, however many pulls it takes."""
    got: list[Any] = []

    def pull() -> bool:  # the emulator may answer that there is nothing, and have it a moment later
        with contextlib.suppress(exceptions.DeadlineExceeded):
            request = {"subscription": subscription, "max_messages": number - len(got)}
            got.extend(official.subscriber.pull(request=request, timeout=30).received_messages)
        return len(got) >= number

    wait_until(pull, what=f"{number} messages")
    return got


def nothing_more(official: Clients, subscription: str) -> bool:
    """Whether a pull waits in vain."""
    try:
        answer = official.subscriber.pull(subscription=subscription, max_messages=10, timeout=1, retry=None)
    except exceptions.DeadlineExceeded:
        return True
    return not answer.received_messages


def test_publish_and_subscribe(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription()
    inbox = Inbox()
    with streaming(official.subscriber, subscription, inbox):
        ids = [official.publisher.publish(topic, b"%d" % n, number=str(n)) for n in range(300)]
        got = inbox.wait_for(300)
    assert {one.message_id for one in got} == {one.result(120) for one in ids}
    assert all(one.data.decode() == one.attributes["number"] for one in got)
    assert nothing_more(official, subscription)


def test_ordering_keys(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(enable_message_ordering=True)
    inbox = Inbox()
    with streaming(official.subscriber, subscription, inbox):
        for n in range(600):
            official.ordered.publish(topic, b"%d" % n, ordering_key=f"key-{n % 7}")
        got = inbox.wait_for(600)
    for key in range(7):
        mine = [int(one.data) for one in got if one.ordering_key == f"key-{key}"]
        assert mine == list(range(key, 600, 7))


def test_a_nack_brings_the_message_and_its_followers_again_in_order(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(enable_message_ordering=True)
    refused_once = threading.Event()

    def handle(message: Any) -> None:
        if message.data == b"2" and not refused_once.is_set():
            refused_once.set()
            message.nack()
        else:
            message.ack()

    inbox = Inbox(handle)
    for n in range(5):
        official.ordered.publish(topic, b"%d" % n, ordering_key="key").result(120)
    with streaming(official.subscriber, subscription, inbox):
        wait_until(lambda: inbox.messages and _ended_again(inbox), what="2, 3 and 4 came again")
    data = [int(one.data) for one in inbox.messages]
    assert data[:3] == [0, 1, 2]
    again = len(data) - 1 - data[::-1].index(2)  # the client may have handled 3 and 4 before the nack arrived
    assert data[again:] == [2, 3, 4]


def _ended_again(inbox: Inbox) -> bool:
    data = [int(one.data) for one in inbox.messages]
    return data.count(2) == 2 and data[-1] == 4 and data[-3:] == [2, 3, 4]


def test_flow_control_bounds_what_is_outstanding(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(ack_deadline_seconds=600)
    release = threading.Event()
    inbox = Inbox(lambda message: (release.wait(), message.ack()))
    ids = {official.publisher.publish(topic, b"%d" % n).result(120) for n in range(50)}
    flow = pubsub_v1.types.FlowControl(max_messages=5)
    with streaming(official.subscriber, subscription, inbox, flow_control=flow):
        try:
            others = {one.message.message_id for one in pulled(official, subscription, 45)}
        finally:
            release.set()  # until then the stream took no more than it may hold
        wait_until(lambda: ids <= others | {one.message_id for one in inbox.messages}, what="the rest in the stream")


def test_unary_pull_acknowledge_and_deadlines(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(ack_deadline_seconds=600)
    official.publisher.publish(topic, b"1").result(120)
    official.publisher.publish(topic, b"2").result(120)
    first, second = (one for _ in range(2) for one in pulled(official, subscription, 1))
    assert [first.message.data, second.message.data] == [b"1", b"2"]
    assert nothing_more(official, subscription)
    official.subscriber.acknowledge(subscription=subscription, ack_ids=[first.ack_id])
    official.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[second.ack_id], ack_deadline_seconds=0)
    assert [one.message.data for one in pulled(official, subscription, 1)] == [b"2"]
    assert nothing_more(official, subscription)


def test_a_waiting_pull_gets_a_message_the_moment_it_is_published(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.extend(pulled(official, subscription, 1)), daemon=True)
    waiting.start()
    official.publisher.publish(topic, b"now").result(120)
    waiting.join(120)
    assert [one.message.data for one in got] == [b"now"]


def test_two_streams_share_a_backlog_without_a_message_in_both(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription()
    inboxes = Inbox(), Inbox()
    with (
        streaming(official.subscriber, subscription, inboxes[0]),
        streaming(official.subscriber, subscription, inboxes[1]),
    ):
        sent = [official.publisher.publish(topic, b"%d" % n) for n in range(200)]
        ids = {one.result(120) for one in sent}
        both = _wait_for_both(inboxes, 200)
    assert sorted(both) == sorted(ids)


def _wait_for_both(inboxes: tuple[Inbox, Inbox], number: int) -> list[str]:
    def seen() -> list[str]:
        return [one.message_id for inbox in inboxes for one in inbox.messages]

    wait_until(lambda: len(seen()) >= number, what="all messages in either inbox")
    return seen()


def test_exactly_once_says_success_and_refuses_an_ack_id_whose_lease_is_over(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(enable_exactly_once_delivery=True)
    answers: list[Any] = []
    inbox = Inbox(lambda message: answers.append(message.ack_with_response()))
    with streaming(official.subscriber, subscription, inbox):
        official.publisher.publish(topic, b"1").result(120)
        inbox.wait_for(1)
        assert answers[0].result(120) == pubsub_v1.subscriber.exceptions.AcknowledgeStatus.SUCCESS
    # another one, as the stream may still hold on
    subscription = official.subscription("other", enable_exactly_once_delivery=True, ack_deadline_seconds=600)
    official.publisher.publish(topic, b"2").result(120)
    (held,) = pulled(official, subscription, 1)
    official.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[held.ack_id], ack_deadline_seconds=0)
    (again,) = pulled(official, subscription, 1)
    with pytest.raises(exceptions.InvalidArgument):
        official.subscriber.acknowledge(subscription=subscription, ack_ids=[held.ack_id], retry=None)
    official.subscriber.acknowledge(subscription=subscription, ack_ids=[again.ack_id], retry=None)


def test_a_filter_lets_through_what_matches(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(filter='attributes.colour = "red"')
    for colour in ("blue", "red", "green"):
        official.publisher.publish(topic, b"x", colour=colour).result(120)
    assert [one.message.attributes["colour"] for one in pulled(official, subscription, 1)] == ["red"]
    assert nothing_more(official, subscription)


def test_a_message_that_is_refused_too_often_goes_to_the_dead_letter_topic(official: Clients) -> None:
    official.topic()
    letters = official.topic("letters")
    kept = official.subscription("letters", "letters")
    policy = {"dead_letter_topic": letters, "max_delivery_attempts": 5}
    subscription = official.subscription(dead_letter_policy=policy)
    attempts: list[int] = []

    def refuse(message: Any) -> None:
        attempts.append(message.delivery_attempt)
        message.nack()

    with streaming(official.subscriber, subscription, Inbox(refuse)):
        official.publisher.publish(f"projects/{official.project}/topics/events", b"bad", colour="red").result(120)
        (letter,) = pulled(official, kept, 1)
    assert attempts[:5] == [1, 2, 3, 4, 5]
    assert letter.message.data == b"bad"
    assert letter.message.attributes["colour"] == "red"
    assert letter.message.attributes["CloudPubSubDeadLetterSourceSubscription"] == "job"


def test_seeking_back_and_forth_in_time(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription(retain_acked_messages=True)
    official.publisher.publish(topic, b"1").result(120)
    (first,) = pulled(official, subscription, 1)
    official.subscriber.acknowledge(subscription=subscription, ack_ids=[first.ack_id])
    now = datetime.datetime.now(datetime.UTC)
    official.subscriber.seek(request={"subscription": subscription, "time": now - datetime.timedelta(hours=1)})
    assert [one.message.message_id for one in pulled(official, subscription, 1)] == [first.message.message_id]
    official.subscriber.seek(request={"subscription": subscription, "time": now + datetime.timedelta(hours=1)})
    assert nothing_more(official, subscription)


def test_seeking_to_a_snapshot(official: Clients) -> None:
    topic, subscription = official.topic(), official.subscription()
    official.publisher.publish(topic, b"1").result(120)
    name = f"projects/{official.project}/snapshots/before"
    made = official.subscriber.create_snapshot(request={"name": name, "subscription": subscription})
    assert made.topic == topic
    assert made.expire_time > datetime.datetime.now(datetime.UTC)
    (held,) = pulled(official, subscription, 1)
    official.subscriber.acknowledge(subscription=subscription, ack_ids=[held.ack_id])
    official.subscriber.seek(request={"subscription": subscription, "snapshot": name})
    assert [one.message.data for one in pulled(official, subscription, 1)] == [b"1"]
    assert [one.name for one in official.subscriber.list_snapshots(project=f"projects/{official.project}")] == [name]
    official.subscriber.delete_snapshot(snapshot=name)
    with pytest.raises(exceptions.NotFound):
        official.subscriber.delete_snapshot(snapshot=name)


def test_schemas_and_their_revisions(official: Clients) -> None:
    parent = f"projects/{official.project}"
    schema = {"type_": "AVRO", "definition": AVRO}
    made = official.schemas.create_schema(parent=parent, schema=schema, schema_id="event")
    assert made.name == f"{parent}/schemas/event"
    with pytest.raises(exceptions.AlreadyExists):
        official.schemas.create_schema(parent=parent, schema=schema, schema_id="event")
    wider = {**schema, "name": made.name, "definition": WIDER}
    second = official.schemas.commit_schema(name=made.name, schema=wider)
    assert official.schemas.get_schema(name=made.name).definition == WIDER
    back = official.schemas.rollback_schema(name=made.name, revision_id=made.revision_id)
    revisions = [one.revision_id for one in official.schemas.list_schema_revisions(name=made.name)]
    assert sorted(revisions) == sorted([made.revision_id, second.revision_id, back.revision_id])
    official.schemas.delete_schema_revision(name=f"{made.name}@{second.revision_id}")
    with pytest.raises(exceptions.NotFound):
        official.schemas.get_schema(name=f"{made.name}@{second.revision_id}")
    assert [one.name for one in official.schemas.list_schemas(parent=parent)] == [made.name]
    official.schemas.validate_schema(parent=parent, schema=schema)
    with pytest.raises(exceptions.InvalidArgument):
        official.schemas.validate_schema(parent=parent, schema={**schema, "definition": "{"})
    message = {"parent": parent, "name": made.name, "encoding": "JSON"}
    official.schemas.validate_message(request={**message, "message": b'{"a": "x"}'})
    with pytest.raises(exceptions.InvalidArgument):
        official.schemas.validate_message(request={**message, "message": b'{"a": 1}'})
    official.schemas.delete_schema(name=made.name)
    with pytest.raises(exceptions.NotFound):
        official.schemas.get_schema(name=made.name)


@pytest.mark.parametrize(("encoding", "good"), [("JSON", b'{"a": "x"}'), ("BINARY", b"\x02x")])
def test_a_topic_with_a_schema_takes_what_fits_and_says_what_it_is(
    official: Clients, encoding: str, good: bytes
) -> None:
    schema = {"type_": "AVRO", "definition": AVRO}
    made = official.schemas.create_schema(parent=f"projects/{official.project}", schema=schema, schema_id="event")
    topic = official.topic(schema_settings={"schema": made.name, "encoding": encoding})
    subscription = official.subscription()
    official.publisher.publish(topic, good, mine="kept").result(120)
    with pytest.raises(exceptions.InvalidArgument):
        official.publisher.publish(topic, b"\x99").result(120)
    (one,) = pulled(official, subscription, 1)
    assert dict(one.message.attributes) == {
        "mine": "kept", "googclient_schemaencoding": encoding, "googclient_schemaname": made.name,
        "googclient_schemarevisionid": made.revision_id,
    }  # fmt: skip
    official.schemas.delete_schema(name=made.name)
    assert official.publisher.get_topic(topic=topic).schema_settings.schema == "_deleted-schema_"


def test_resources_come_page_by_page_and_a_deleted_topic_shows(official: Clients) -> None:
    names = [official.topic(f"topic-{n}") for n in range(5)]
    made = [official.subscription(f"sub-{n}", "topic-0") for n in range(3)]
    project = f"projects/{official.project}"
    listed = official.publisher.list_topics(request={"project": project, "page_size": 2})
    assert sorted(one.name for one in listed) == names
    found = official.subscriber.list_subscriptions(request={"project": project, "page_size": 2})
    assert sorted(one.name for one in found) == made
    of_topic = official.publisher.list_topic_subscriptions(request={"topic": names[0], "page_size": 1})
    assert sorted(of_topic) == made
    official.publisher.delete_topic(topic=names[0])
    assert official.subscriber.get_subscription(subscription=made[0]).topic == "_deleted-topic_"
    with pytest.raises(exceptions.NotFound):
        official.publisher.get_topic(topic=names[0])
    with pytest.raises(exceptions.AlreadyExists):
        official.publisher.create_topic(name=names[1])
    with pytest.raises(exceptions.NotFound):
        official.publisher.publish(names[0], b"x").result(120)


def test_subscriptions_are_changed_by_masks(official: Clients) -> None:
    official.topic()
    wanted: dict[str, Any] = {"name": official.subscription(), "ack_deadline_seconds": 44}

    def change(*paths: str) -> Any:
        request = {"subscription": wanted, "update_mask": {"paths": paths}}
        return official.subscriber.update_subscription(request=request)

    assert change("ack_deadline_seconds").ack_deadline_seconds == 44
    wanted["enable_exactly_once_delivery"] = True
    assert change("enable_exactly_once_delivery").enable_exactly_once_delivery
    for path, text in {
        "": "must be set, and must contain a non-empty paths list",
        "nope": "nope is not a known Subscription field",
        "topic": "the topic field in the Subscription is not mutable",
    }.items():
        with pytest.raises(exceptions.InvalidArgument, match=text):
            change(*([path] if path else []))


def test_labels_are_changed(official: Clients) -> None:
    topic = official.topic()
    request = {"topic": {"name": topic, "labels": {"a": "b"}}, "update_mask": {"paths": ["labels"]}}
    assert dict(official.publisher.update_topic(request=request).labels) == {"a": "b"}


def test_a_detached_subscription_cannot_be_pulled(official: Clients) -> None:
    official.topic()
    subscription = official.subscription()
    official.publisher.detach_subscription(request={"subscription": subscription})
    with pytest.raises(exceptions.FailedPrecondition):
        official.subscriber.pull(subscription=subscription, max_messages=1, timeout=120)


def test_iam_permits_everything(official: Clients) -> None:
    topic = official.topic()
    policy = official.publisher.get_iam_policy(request={"resource": topic})
    policy.bindings.add(role="roles/pubsub.viewer", members=["allUsers"])
    assert official.publisher.set_iam_policy(request={"resource": topic, "policy": policy}).bindings == policy.bindings
    asked = {"resource": topic, "permissions": ["pubsub.topics.publish"]}
    assert official.publisher.test_iam_permissions(request=asked).permissions == asked["permissions"]


@pytest.mark.parametrize(
    ("attributes", "key"), [({"k" * 257: "v"}, ""), ({"k": "v" * 1025}, ""), ({f"k{n}": "" for n in range(101)}, ""),
                            ({}, "k" * 1025)]
)  # fmt: skip
def test_messages_beyond_the_limits_are_refused(official: Clients, attributes: dict[str, str], key: str) -> None:
    topic = official.topic()
    with pytest.raises(exceptions.InvalidArgument, match="too large"):
        official.ordered.publish(topic, b"x", ordering_key=key, **attributes).result(120)
