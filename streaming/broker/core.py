"""Topics and subscriptions of one broker: what can be made, changed, listed and deleted, and published to."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from streaming.broker.errors import RefusedError, already_exists, exhausted, not_found, too_small
from streaming.broker.filters import parse
from streaming.broker.flow import Flow
from streaming.broker.names import DELETED_TOPIC, check_name, check_project
from streaming.broker.publishing import check_messages, check_request
from streaming.broker.resources import Accepted, Published, Subscribed
from streaming.broker.schemas import Schemas
from streaming.broker.settings import (
    complete_subscription,
    complete_topic,
    micros,
    policy_of,
    time_to_live_us,
    updated,
)
from streaming.broker.storage import Resource
from streaming.broker.subscription import Subscription

log = logging.getLogger(__name__)

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Core(Flow):
    """All resources of one broker.

    Attributes:
        schemas: the schemas that topics may be bound to.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.schemas = Schemas(self)

    # Topics.

    def create_topic(self, topic: Any) -> Any:
        topic = complete_topic(topic)
        if topic.name in self.topics:
            raise already_exists(topic.name)
        self.schemas.check_settings(topic)
        made = self.topics[topic.name] = Published(topic, self.new_id())
        self.apply_topic(made)
        self._store_topic(made)
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
        changed = complete_topic(updated(found.config, wanted, paths))
        if any(path.partition(".")[0] == "schema_settings" for path in paths):
            self.schemas.check_settings(changed)
        found.config = changed
        self.apply_topic(found)
        self._store_topic(found)
        return changed

    def apply_topic(self, topic: Published) -> None:
        """Let a topic's settings take effect."""
        kept = topic.config.HasField("message_retention_duration")
        self.keep_history(topic, micros(topic.config.message_retention_duration) if kept else None)

    def delete_topic(self, name: str) -> None:
        """Delete a topic; its subscriptions and snapshots keep what they have."""
        found = self.topic(name)
        del self.topics[name]
        self.storage.resource_gone(found.uid)
        self.keep_history(found, None)
        for subscribed in found.subscriptions.values():
            subscribed.config.topic = DELETED_TOPIC
            self._store_subscription(subscribed)
        for snapshot in found.snapshots.values():
            snapshot.config.topic = DELETED_TOPIC
            config = snapshot.config.SerializeToString()
            self.storage.resource(Resource("snapshot", snapshot.uid, snapshot.topic_uid, config))

    def list_topics(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        names, token = page(self.topics, f"{check_project(project)}/", page_size, page_token)
        return [self.topics[name].config for name in names], token

    def list_topic_subscriptions(self, topic: str, page_size: int, page_token: str) -> tuple[list[str], str]:
        return page(self.topic(topic).subscriptions, "", page_size, page_token)

    # Subscriptions.

    def create_subscription(self, subscription: Any) -> Any:
        subscription = complete_subscription(subscription)
        if subscription.name in self.subscriptions:
            raise already_exists(subscription.name)
        topic = self.topic(subscription.topic)
        self._check_dead_letters(subscription)
        subscribed = self.attach(subscription, self.new_id(), topic.uid)
        topic.subscriptions[subscription.name] = subscribed
        self._store_subscription(subscribed)
        return self.shown(subscribed)

    def attach(self, config: Any, uid: int, topic_uid: int) -> Subscribed:
        """Make a subscription known that has no messages yet."""
        queue = Subscription(uid, policy_of(config), epoch=self.epoch)
        subscribed = Subscribed(config, queue, uid, topic_uid, active_us=self.clock.wall_us())
        queue.dead_letter = lambda one: self.dead_letter(subscribed, one)
        queue.backlog.damaged = lambda batch: log.error(
            "%d messages from %d on are damaged on disk and were dropped from %s",
            len(batch.ids), batch.ids[0], config.name,
        )  # fmt: skip
        self.subscriptions[config.name] = subscribed
        self.apply_subscription(subscribed)
        return subscribed

    def apply_subscription(self, subscribed: Subscribed) -> None:
        """Let a subscription's settings take effect."""
        config: Any = subscribed.config
        policy = subscribed.queue.policy = policy_of(config)
        subscribed.filter = parse(config.filter) if config.filter else None
        kept = config.retain_acked_messages and not config.detached
        self.keep_history(subscribed, policy.retention_us if kept else None)

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
        found.active_us = self.clock.wall_us()
        return found

    def shown(self, subscribed: Subscribed) -> Any:
        """A subscription as it is told to clients."""
        config: Any = subscribed.config
        topic = self.topics.get(config.topic)
        if topic is None or not topic.config.HasField("message_retention_duration"):
            return config
        told = type(config)()
        told.CopyFrom(config)
        told.topic_message_retention_duration.CopyFrom(topic.config.message_retention_duration)
        return told

    def update_subscription(self, wanted: Any, paths: Sequence[str]) -> Any:
        found = self.subscription(wanted.name)
        detached = found.config.detached
        changed = complete_subscription(updated(found.config, wanted, paths))
        self._check_dead_letters(changed)
        changed.detached = detached
        found.config = changed
        self.apply_subscription(found)
        self._store_subscription(found)
        return self.shown(found)

    def delete_subscription(self, name: str) -> None:
        found = self.subscription(name)
        self.drop_messages(found)
        del self.subscriptions[name]
        self._leave_topic(found)
        self.storage.resource_gone(found.uid)
        self.gone(found)

    def detach_subscription(self, name: str) -> None:
        """Drop a subscription's messages and refuse further pulls."""
        found = self.subscription(name)
        self.drop_messages(found)
        self._leave_topic(found)
        found.config.detached = True
        self._store_subscription(found)
        self.gone(found)
        self.attach(found.config, found.uid, found.topic_uid)

    def list_subscriptions(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        names, token = page(self.subscriptions, f"{check_project(project)}/", page_size, page_token)
        return [self.shown(self.subscriptions[name]) for name in names], token

    def expire(self) -> bool:
        """Delete subscriptions that nobody has used for as long as their expiration policy says; whether there were."""
        wall_us = self.clock.wall_us()
        old = [
            name
            for name, subscribed in self.subscriptions.items()
            if (ttl_us := time_to_live_us(subscribed.config)) is not None and wall_us - subscribed.active_us > ttl_us
        ]
        for name in old:
            log.warning("subscription %s expired: nobody used it for as long as its expiration policy says", name)
            self.delete_subscription(name)
        return bool(old)

    # Messages.

    def publish(self, topic: str, messages: Sequence[Any], request_bytes: int) -> Accepted:
        """Check, stamp and journal the messages of one request; `deliver` what it returns once it is durable.

        Raises:
            RefusedError: NOT_FOUND, INVALID_ARGUMENT if any message breaks a limit or does not fit the topic's
                schema, RESOURCE_EXHAUSTED if the topic's backlog is full (none is published then).
        """
        found = self.topic(topic)
        check_request(messages, request_bytes)
        kept = found.kept.size_bytes
        if self.max_backlog_bytes is not None and kept + request_bytes > self.max_backlog_bytes:
            raise exhausted(
                f"The backlog of {topic} is full: {kept} bytes are not acknowledged by every subscription, of at most "
                f"{self.max_backlog_bytes}. Acknowledge or delete what keeps them, or raise --max-backlog-bytes."
            )
        if found.config.HasField("schema_settings"):
            self.schemas.check_messages(found.config.schema_settings, messages)
        serialised, key = check_messages(messages)
        return self.accept(found, serialised, key)

    # Steps inside.

    def _check_dead_letters(self, subscription: Any) -> None:
        if subscription.HasField("dead_letter_policy"):
            self.topic(subscription.dead_letter_policy.dead_letter_topic)

    def _leave_topic(self, subscribed: Subscribed) -> None:
        topic = self.topics.get(subscribed.config.topic)
        if topic is not None:
            topic.subscriptions.pop(subscribed.config.name, None)

    def _store_topic(self, topic: Published) -> None:
        self.storage.resource(Resource("topic", topic.uid, 0, topic.config.SerializeToString()))

    def _store_subscription(self, subscribed: Subscribed) -> None:
        config: Any = subscribed.config
        self.storage.resource(
            Resource("subscription", subscribed.uid, subscribed.topic_uid, config.SerializeToString())
        )


def page(names: Iterable[str], prefix: str, page_size: int, page_token: str) -> tuple[list[str], str]:
    """The names after the token in order, and the token of the next page ("" on the last)."""
    if page_size < 0:
        raise too_small("page_size", page_size, 0)
    size = min(page_size or DEFAULT_PAGE, MAX_PAGE)
    matching = sorted(name for name in names if name.startswith(prefix) and name > page_token)
    return matching[:size], matching[size - 1] if len(matching) > size else ""
