"""The way of messages: accepted, stored, delivered to subscriptions, acknowledged, forgotten.

Like `subscription`, a pure state machine: the clock is an argument, and the caller decides when what was
published is durable and may be delivered. Not thread-safe: one thread calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from streaming.broker.backlog import DEFAULT_MEMORY_BYTES, Batch, DamagedError, Memory
from streaming.broker.clock import Clock, SystemClock
from streaming.broker.history import History
from streaming.broker.leases import Pending
from streaming.broker.messages import PubsubMessage, framed, publish_time_field, unframed
from streaming.broker.publishing import merged
from streaming.broker.resources import Accepted, Published, Snapshotted, Subscribed
from streaming.broker.storage import InMemory, Storage

log = logging.getLogger(__name__)


class Flow:
    """What moves in one broker.

    Args:
        clock: where publish times and leases come from.
        storage: is told what must survive; see `streaming.broker.storage`.
        gone: called with a subscription that was deleted or detached, so that its streams end.
        memory_bytes: undelivered messages kept at hand; more are read back from the storage.
        max_backlog_bytes: what one topic may keep for its subscriptions, then nothing is published to it; None: all.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        storage: Storage | None = None,
        gone: Callable[[Subscribed], None] = lambda _: None,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        max_backlog_bytes: int | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.storage = storage or InMemory()
        self.gone = gone
        self.max_backlog_bytes = max_backlog_bytes
        self.topics: dict[str, Published] = {}
        self.subscriptions: dict[str, Subscribed] = {}
        self.snapshots: dict[str, Snapshotted] = {}
        # Ids go up from the time of the start: they stay unique over restarts, even of a broker without a disk.
        self.next_id = self.epoch = self.clock.wall_us()
        self.memory = Memory(memory_bytes, load=None if self.storage.volatile else self.storage.load)

    def new_id(self) -> int:
        """The next of the numbers that name messages, topics and subscriptions."""
        self.next_id += 1
        return self.next_id - 1

    def accept(self, topic: Published, serialised: Sequence[bytes], key: str) -> Accepted:
        """Stamp checked messages with ids and a publish time."""
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
            if one.topic.wanted():
                one.stored = True
                self.storage.published(one.topic.uid, one.batch)
        return together

    def deliver(self, accepted: Accepted, *, durable: bool = False) -> None:
        """Hand messages to the subscriptions that the topic had when they were published and still has.

        Args:
            accepted: in the order of `publish`.
            durable: whether the storage has them, so that memory need not keep them.
        """
        batch, first = accepted.batch, accepted.batch.ids[0]
        readers: list[tuple[Subscribed, list[int] | None]] = []
        for subscribed in accepted.topic.subscriptions.values():
            if subscribed.uid < first:
                left = None if subscribed.filter is None else matching(subscribed, batch)
                if left != []:
                    readers.append((subscribed, left))
        histories = [one for one in accepted.topic.histories() if one.uid < first or one.retention_us is None]
        batch.keep(self.memory, accepted.topic.kept, len(readers), len(readers) + len(histories), durable=durable)
        for subscribed, left in readers:
            subscribed.queue.add(batch, left)
        for history in histories:
            history.append(batch)
            if history.uid > first:  # a snapshot that was made while this was under way
                self.storage.progressed(history.uid, batch, batch.ids)
        if accepted.stored and not batch.users:
            self.storage.finished(batch)

    def report_progress(self) -> bool:
        """Tell the storage what was acknowledged since the last call; whether there was anything."""
        any_progress = False
        for subscribed in self.subscriptions.values():
            for batch, left, done in subscribed.queue.progress():
                any_progress = True
                if not done or batch.users > 1:
                    self.storage.progressed(subscribed.uid, batch, left)
                if done:
                    self.release([batch])
        return any_progress

    def release(self, batches: Sequence[Batch]) -> None:
        """Each of these batches has a user less."""
        for batch in batches:
            if batch.release():
                self.storage.finished(batch)

    def forget(self, wall_us: int) -> None:
        """Drop what is older than the retention of whoever keeps it."""
        for subscribed in self.subscriptions.values():
            subscribed.queue.trim(wall_us)
            if subscribed.history is not None:
                self.release(subscribed.history.expired(wall_us))
        for topic in self.topics.values():
            if topic.history is not None:
                self.release(topic.history.expired(wall_us))

    def drop_messages(self, subscribed: Subscribed) -> None:
        """Let go of all that a subscription has or keeps."""
        self.report_progress()
        self.release(subscribed.queue.backlog.clear())
        self.keep_history(subscribed, None)

    def keep_history(self, owner: Subscribed | Published, retention_us: int | None) -> None:
        """Keep messages for so long whatever becomes of them; None: no more."""
        if retention_us is None:
            if owner.history is not None:
                self.release(owner.history.clear())
            owner.history = None
        elif owner.history is not None:
            owner.history.retention_us = retention_us
        else:
            owner.history = History(owner.uid, retention_us)
            if isinstance(owner, Subscribed):
                for batch, left in owner.queue.unacknowledged():
                    batch.users += 1
                    owner.history.append(batch, left)

    def dead_letter(self, subscribed: Subscribed, one: Pending) -> bool:
        """Publish a message that has used up its attempts; False if its dead-letter topic is gone."""
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
        letter = self.accept(topic, [message.SerializeToString()], message.ordering_key)
        for stored in self.store([letter]):
            self.deliver(stored)
        return True


def matching(subscribed: Subscribed, batch: Batch, left: Sequence[int] | None = None) -> list[int]:
    """The ids in a batch, or in `left`, that a subscription's filter lets through."""
    if subscribed.filter is None:
        return list(batch.ids if left is None else left)
    try:
        fields: Any = batch.fields()
    except DamagedError:
        return []
    wanted = None if left is None else set(left)
    through = subscribed.filter
    return [
        one
        for one, field in zip(batch.ids, fields, strict=True)
        if (wanted is None or one in wanted) and through(PubsubMessage.FromString(unframed(field)).attributes)
    ]
