"""After a restart: from what the storage has to a core that goes on where the last one ended."""

from __future__ import annotations

from streaming.broker.core import Core
from streaming.broker.messages import Subscription, Topic
from streaming.broker.resources import Published, Subscribed


def recover(core: Core) -> list[str]:
    """Take over what the storage has into an empty core; one sentence for each thing that was lost.

    A subscription has the messages published after it was created: ids and uids come from one counter.
    """
    found = core.storage.recover()
    core.next_id = max(core.next_id, found.next_id)
    topics: dict[int, Published] = {}
    readers: dict[int, list[Subscribed]] = {}
    for resource in found.resources:
        if resource.kind == "topic":
            config = Topic.FromString(resource.config)
            topics[resource.uid] = core.topics[config.name] = Published(config, resource.uid)
    for resource in found.resources:
        if resource.kind == "subscription":
            config = Subscription.FromString(resource.config)
            subscribed = core.attach(config, resource.uid, resource.topic_uid)
            if config.detached:
                continue
            readers.setdefault(resource.topic_uid, []).append(subscribed)
            if resource.topic_uid in topics:
                topics[resource.topic_uid].subscriptions[config.name] = subscribed
    for topic_uid, batch in found.batches:
        first = batch.ids[0]
        wanting = [
            (subscribed, left)
            for subscribed in readers.get(topic_uid, ())
            if subscribed.uid < first and (left := found.left.get((subscribed.uid, first))) != []
        ]
        batch.keep(core.memory, len(wanting), durable=True)
        for subscribed, left in wanting:
            subscribed.queue.backlog.append(batch, left)
        if not wanting:
            core.storage.finished(batch)
    return found.damage
