"""Topics and subscriptions of one broker, and the way of a published message to the subscriptions.

Like `subscription`, a pure state machine: the clock is an argument, and the caller decides when what was
published is durable and may be delivered. Not thread-safe: one thread calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from streaming.broker.backlog import DEFAULT_MEMORY_BYTES, Batch, Memory
from streaming.broker.clock import Clock, SystemClock
from streaming.broker.errors import RefusedError, already_exists, not_found, too_small
from streaming.broker.leases import Pending
from streaming.broker.messages import PubsubMessage, framed, publish_time_field, unframed
from streaming.broker.names import DELETED_TOPIC, check_name, check_project
from streaming.broker.publishing import check_messages, merged
from streaming.broker.resources import Accepted, Published, Subscribed
from streaming.broker.settings import complete_subscription, complete_topic, policy_of, updated
from streaming.broker.storage import InMemory, Resource, Storage
from streaming.broker.subscription import Subscription

log = logging.getLogger(__name__)

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Core:
    """All resources of one broker.

    Args:
        clock: where publish times and leases come from.
        storage: is told what must survive; see `streaming.broker.storage`.
        gone: called with a subscription that was deleted or detached, so that its streams end.
        memory_bytes: undelivered messages kept at hand; more are read back from the storage.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        storage: Storage | None = None,
        gone: Callable[[Subscribed], None] = lambda _: None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self.clock = clock or SystemClock()
        self.storage = storage or InMemory()
        self.gone = gone
        self.topics: dict[str, Published] = {}
        self.subscriptions: dict[str, Subscribed] = {}
        # Ids go up from the time of the start: they stay unique over restarts, even of a broker without a disk.
        self.next_id = self.clock.wall_us()
        self.memory = Memory(memory_bytes, load=None if self.storage.volatile else self.storage.load)

    # Topics.

    def create_topic(self, topic: Any) -> Any:
        topic = complete_topic(topic)
        if topic.name in self.topics:
            raise already_exists(topic.name)
        self.topics[topic.name] = Published(topic, self._new_id())
        self._store_topic(self.topics[topic.name])
        return topic

    def topic(self, name: str) -> Published:
        """The topic of this name.

        Raises:
            RefusedError: INVALID_ARGUMENT for a malformed name, NOT_FOUND.
        """
        found = self.topics.get(name)
        if found is None:
            raise not_found(check_name(name, "topics"))
        return found

    def update_topic(self, wanted: Any, paths: Sequence[str]) -> Any:
        found = self.topic(wanted.name)
        found.config = complete_topic(updated(found.config, wanted, paths))
        self._store_topic(found)
        return found.config

    def delete_topic(self, name: str) -> None:
        """Delete a topic; its subscriptions keep what they have."""
        found = self.topic(name)
        del self.topics[name]
        self.storage.resource_gone(found.uid)
        for subscribed in found.subscriptions.values():
            subscribed.config.topic = DELETED_TOPIC
            self._store_subscription(subscribed)

    def list_topics(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        names, token = _page(self.topics, f"{check_project(project)}/", page_size, page_token)
        return [self.topics[name].config for name in names], token

    def list_topic_subscriptions(self, topic: str, page_size: int, page_token: str) -> tuple[list[str], str]:
        return _page(self.topic(topic).subscriptions, "", page_size, page_token)

    # Subscriptions.

    def create_subscription(self, subscription: Any) -> Any:
        subscription = complete_subscription(subscription)
        if subscription.name in self.subscriptions:
            raise already_exists(subscription.name)
        topic = self.topic(subscription.topic)
        subscribed = self.attach(subscription, self._new_id(), topic.uid)
        topic.subscriptions[subscription.name] = subscribed
        self._store_subscription(subscribed)
        return subscription

    def attach(self, config: Any, uid: int, topic_uid: int) -> Subscribed:
        """Make a subscription known that has no messages yet."""
        queue = Subscription(uid, policy_of(config))
        subscribed = Subscribed(config, queue, uid, topic_uid)
        queue.dead_letter = lambda one: self._dead_letter(subscribed, one)
        queue.backlog.tracked = not self.storage.volatile
        queue.backlog.damaged = lambda batch: log.error(
            "%d messages from %d on are damaged on disk and were dropped from %s",
            len(batch.ids), batch.ids[0], config.name,
        )  # fmt: skip
        self.subscriptions[config.name] = subscribed
        return subscribed

    def subscription(self, name: str) -> Subscribed:
        """The subscription of this name.

        Raises:
            RefusedError: INVALID_ARGUMENT for a malformed name, NOT_FOUND.
        """
        found = self.subscriptions.get(name)
        if found is None:
            raise not_found(check_name(name, "subscriptions"))
        return found

    def pullable(self, name: str) -> Subscribed:
        """As `subscription`; FAILED_PRECONDITION if it is detached."""
        found = self.subscription(name)
        if found.config.detached:
            raise RefusedError(
                "FAILED_PRECONDITION",
                f"The subscription {name} is detached from its topic: delete it and create a new one.",
            )
        return found

    def update_subscription(self, wanted: Any, paths: Sequence[str]) -> Any:
        found = self.subscription(wanted.name)
        detached = found.config.detached
        changed = complete_subscription(updated(found.config, wanted, paths))
        changed.detached = detached
        found.config = changed
        found.queue.policy = policy_of(changed)
        self._store_subscription(found)
        return changed

    def delete_subscription(self, name: str) -> None:
        found = self.subscription(name)
        del self.subscriptions[name]
        self._leave_topic(found)
        self.storage.resource_gone(found.uid)
        self._drop_messages(found)
        self.gone(found)

    def detach_subscription(self, name: str) -> None:
        """Drop a subscription's messages and refuse further pulls."""
        found = self.subscription(name)
        self._leave_topic(found)
        found.config.detached = True
        self._store_subscription(found)
        self._drop_messages(found)
        self.gone(found)
        self.attach(found.config, found.uid, found.topic_uid)

    def list_subscriptions(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        names, token = _page(self.subscriptions, f"{check_project(project)}/", page_size, page_token)
        return [self.subscriptions[name].config for name in names], token

    # Messages.

    def publish(self, topic: str, messages: Sequence[Any], request_bytes: int) -> Accepted:
        """Check, stamp and journal the messages of one request; `deliver` what it returns once it is durable.

        Raises:
            RefusedError: NOT_FOUND, or INVALID_ARGUMENT if any message breaks a limit (none is published then).
        """
        found = self.topic(topic)
        serialised, key = check_messages(messages, request_bytes)
        return self._accept(found, serialised, key)

    def _accept(self, topic: Published, serialised: list[bytes], key: str) -> Accepted:
        time_us = self.clock.wall_us()
        stamp = publish_time_field(time_us)
        first = self.next_id
        self.next_id += len(serialised)
        ids = range(first, self.next_id)
        fields = [framed(one, n, stamp) for one, n in zip(serialised, ids, strict=True)]
        return Accepted(topic, Batch(ids, fields, key, time_us))

    def store(self, accepted: Sequence[Accepted]) -> list[Accepted]:
        """Report accepted messages to the storage, small batches put together; `deliver` what this returns."""
        together = merged(accepted)
        for one in together:
            if one.topic.subscriptions:
                one.stored = True
                self.storage.published(one.topic.uid, one.batch)
        return together

    def deliver(self, accepted: Accepted, *, durable: bool = False) -> None:
        """Hand messages to the subscriptions that the topic had when they were published and still has.

        Args:
            accepted: in the order of `publish`.
            durable: whether the storage has them, so that memory need not keep them.
        """
        batch = accepted.batch
        readers = [one for one in accepted.topic.subscriptions.values() if one.uid < batch.ids[0]]
        batch.keep(self.memory, len(readers), durable=durable)
        for subscribed in readers:
            subscribed.queue.add(batch)
        if accepted.stored and not readers:
            self.storage.finished(batch)

    def report_progress(self) -> bool:
        """Tell the storage what was acknowledged since the last call; whether there was anything."""
        any_progress = False
        for subscribed in self.subscriptions.values():
            for batch, left in subscribed.queue.progress():
                any_progress = True
                if left or batch.users > 1:
                    self.storage.progressed(subscribed.uid, batch, left)
                if not left:
                    self._release(batch)
        return any_progress

    def _dead_letter(self, subscribed: Subscribed, one: Pending) -> bool:
        topic = self.topics.get(subscribed.config.dead_letter_policy.dead_letter_topic)
        if topic is None:
            return False
        message = PubsubMessage.FromString(unframed(one.field))
        source = subscribed.config.name.split("/")
        message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] = str(one.attempts)
        message.attributes["CloudPubSubDeadLetterSourceSubscription"] = source[3]
        message.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"] = source[1]
        message.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"] = message.publish_time.ToJsonString()
        message.ClearField("message_id")
        message.ClearField("publish_time")
        letter = self._accept(topic, [message.SerializeToString()], message.ordering_key)
        for stored in self.store([letter]):
            self.deliver(stored)
        return True

    # Steps inside.

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def _leave_topic(self, subscribed: Subscribed) -> None:
        topic = self.topics.get(subscribed.config.topic)
        if topic is not None:
            topic.subscriptions.pop(subscribed.config.name, None)

    def _drop_messages(self, subscribed: Subscribed) -> None:
        for batch in subscribed.queue.backlog.clear():
            self._release(batch)

    def _release(self, batch: Batch) -> None:
        batch.users -= 1
        if not batch.users:
            self.storage.finished(batch)

    def _store_topic(self, topic: Published) -> None:
        self.storage.resource(Resource("topic", topic.uid, 0, topic.config.SerializeToString()))

    def _store_subscription(self, subscribed: Subscribed) -> None:
        config: Any = subscribed.config
        self.storage.resource(
            Resource("subscription", subscribed.uid, subscribed.topic_uid, config.SerializeToString())
        )


def _page(names: dict[str, Any], prefix: str, page_size: int, page_token: str) -> tuple[list[str], str]:
    """The names after the token in order, and the token of the next page ("" on the last)."""
    if page_size < 0:
        raise too_small("page_size", page_size, 0)
    size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
    matching = sorted(name for name in names if name.startswith(prefix) and name > page_token)
    return matching[:size], matching[size - 1] if len(matching) > size else ""
