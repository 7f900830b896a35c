"""After a restart: from what the storage has to a core that goes on where the last one ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from streaming.broker.backlog import Batch, Kept
from streaming.broker.core import Core
from streaming.broker.flow import matching
from streaming.broker.history import History
from streaming.broker.messages import Snapshot, Subscription, Topic
from streaming.broker.resources import Published, Snapshotted, Subscribed
from streaming.broker.storage import Recovered


@dataclass(slots=True)
class _OfTopic:
    """Who may want the messages of one topic."""

    subscriptions: list[Subscribed] = field(default_factory=list)
    snapshots: list[Snapshotted] = field(default_factory=list)
    history: History | None = None
    kept: Kept = field(default_factory=Kept)


def recover(core: Core) -> list[str]:
    """Take over what the storage has into an empty core; one sentence for each thing that was lost.

    A subscription has the messages published after it was created: ids and uids come from one counter.
    """
    found = core.storage.recover()
    core.next_id = max(core.next_id, found.next_id)
    core.epoch = core.new_id()  # greater than that of any earlier start
    of_topics = _resources(core, found)
    for topic_uid, batch in found.batches:
        of_topic = of_topics.get(topic_uid)
        wanting = [] if of_topic is None else list(_wanting(of_topic, batch, found))
        keeping = [] if of_topic is None else list(_keeping(of_topic, batch, found, core.clock.wall_us()))
        kept = Kept() if of_topic is None else of_topic.kept
        batch.keep(core.memory, kept, len(wanting), len(wanting) + len(keeping), durable=True)
        for subscribed, left in wanting:
            subscribed.queue.backlog.append(batch, left)
        for history, positions in keeping:
            history.append(batch, positions)
        if not batch.users:
            core.storage.finished(batch)
    return found.damage


def _resources(core: Core, found: Recovered) -> dict[int, _OfTopic]:
    topics: dict[int, Published] = {}
    of_topics: dict[int, _OfTopic] = {}
    for resource in sorted(found.resources, key=lambda one: one.kind != "topic"):  # topics first
        if resource.kind == "topic":
            config = Topic.FromString(resource.config)
            topic = topics[resource.uid] = core.topics[config.name] = Published(config, resource.uid)
            core.apply_topic(topic)
            of_topics[resource.uid] = _OfTopic(history=topic.history, kept=topic.kept)
        elif resource.kind == "subscription":
            config = Subscription.FromString(resource.config)
            subscribed = core.attach(config, resource.uid, resource.topic_uid)
            if config.detached:
                continue
            of_topics.setdefault(resource.topic_uid, _OfTopic()).subscriptions.append(subscribed)
            if resource.topic_uid in topics:
                topics[resource.topic_uid].subscriptions[config.name] = subscribed
        elif resource.kind == "snapshot":
            config = Snapshot.FromString(resource.config)
            kept = Snapshotted(config, History(resource.uid), resource.uid, resource.topic_uid)
            core.snapshots[config.name] = kept
            of_topics.setdefault(resource.topic_uid, _OfTopic()).snapshots.append(kept)
            if resource.topic_uid in topics:
                topics[resource.topic_uid].snapshots[config.name] = kept
        else:
            core.schemas.recovered(resource.uid, resource.config)
    return of_topics


def _wanting(of_topic: _OfTopic, batch: Batch, found: Recovered) -> Iterator[tuple[Subscribed, list[int] | None]]:
    """The subscriptions that have not acknowledged all of a batch, with what is left (None: all)."""
    first = batch.ids[0]
    for subscribed in of_topic.subscriptions:
        left = found.left.get((subscribed.uid, first))
        if left is None:
            if subscribed.uid > first:
                continue
            if subscribed.filter is not None:
                left = matching(subscribed, batch)
        if left != []:
            yield subscribed, left


def _keeping(
    of_topic: _OfTopic, batch: Batch, found: Recovered, wall_us: int
) -> Iterator[tuple[History, Sequence[int] | None]]:
    """Who keeps a batch whatever becomes of it, and what of it (None: all)."""
    first = batch.ids[0]
    for snapshot in of_topic.snapshots:
        left = found.left.get((snapshot.uid, first))
        if left or (left is None and snapshot.uid < first):
            yield snapshot.history, left
    histories = [one.history for one in of_topic.subscriptions if one.uid < first]
    for history in (of_topic.history, *histories):
        kept_us = None if history is None else history.retention_us
        if history is not None and kept_us is not None and batch.publish_time_us >= wall_us - kept_us:
            yield history, None
