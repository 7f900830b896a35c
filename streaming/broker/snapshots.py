"""Snapshots of what a subscription has not acknowledged, and going back to one, or to a time.

A snapshot is a history: what the subscription had not acknowledged, and all that its topic published since. A seek
puts a new backlog into a subscription and ends every lease.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from streaming.broker.core import Core, page
from streaming.broker.errors import RefusedError, already_exists, invalid, not_found
from streaming.broker.flow import matching
from streaming.broker.history import Entry, History, since
from streaming.broker.messages import Snapshot
from streaming.broker.names import check_name, check_project
from streaming.broker.resources import Snapshotted, Subscribed
from streaming.broker.settings import check_labels, updated
from streaming.broker.storage import Resource

LIFETIME_US = 7 * 86_400_000_000
SHORTEST_US = 3_600_000_000
"""A snapshot that would expire within an hour is refused, as by the service."""


class Snapshots:
    """Snapshots and seeks on one core."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def create(self, name: str, subscription: str, labels: Any) -> Any:
        """Keep what a subscription has not acknowledged, and all that comes.

        Raises:
            RefusedError: ALREADY_EXISTS, NOT_FOUND, INVALID_ARGUMENT, or FAILED_PRECONDITION if the oldest message is
                so old that the snapshot would expire within an hour.
        """
        core = self.core
        subscribed = core.pullable(subscription)
        project = subscription.rpartition("/subscriptions/")[0]
        name = check_name(name or f"{project}/snapshots/snapshot-{secrets.token_hex(8)}", "snapshots")
        if name in core.snapshots:
            raise already_exists(name)
        check_labels(labels)
        core.report_progress()
        waiting = subscribed.queue.unacknowledged()
        now_us = core.clock.wall_us()
        expires_us = min([batch.publish_time_us for batch, _ in waiting], default=now_us) + LIFETIME_US
        if expires_us - now_us < SHORTEST_US:
            raise RefusedError(
                "FAILED_PRECONDITION",
                "The snapshot would expire in less than an hour, because the oldest message that is not acknowledged "
                "is almost 7 days old: acknowledge it, or seek past it.",
            )
        config: Any = Snapshot(name=name, topic=subscribed.config.topic, labels=labels)
        config.expire_time.FromMicroseconds(expires_us)
        uid = core.new_id()
        made = Snapshotted(config, History(uid), uid, subscribed.topic_uid)
        for batch, left in waiting:
            batch.users += 1
            made.history.append(batch, None if len(left) == len(batch.ids) else left)
            core.storage.progressed(uid, batch, left)
        core.snapshots[name] = made
        topic = core.topics.get(subscribed.config.topic)
        if topic is not None:
            topic.snapshots[name] = made
        self._store(made)
        return config

    def get(self, name: str) -> Snapshotted:
        """The snapshot of this name.

        Raises:
            RefusedError: INVALID_ARGUMENT for a malformed name, NOT_FOUND.
        """
        found = self.core.snapshots.get(name)
        if found is None:
            raise not_found(check_name(name, "snapshots"))
        return found

    def update(self, wanted: Any, paths: Sequence[str]) -> Any:
        found = self.get(wanted.name)
        changed: Any = updated(found.config, wanted, paths)
        check_labels(changed.labels)
        now_us = self.core.clock.wall_us()
        if not now_us < changed.expire_time.ToMicroseconds() <= now_us + LIFETIME_US:
            raise invalid("Invalid expire_time: it must be in the future, and at most 7 days from now.")
        found.config = changed
        self._store(found)
        return changed

    def delete(self, name: str) -> None:
        found = self.get(name)
        del self.core.snapshots[name]
        topic = self.core.topics.get(found.config.topic)
        if topic is not None:
            topic.snapshots.pop(name, None)
        self.core.storage.resource_gone(found.uid)
        self.core.release(found.history.clear())

    def expire(self) -> bool:
        """Delete what is past its expire time; whether there was anything."""
        now_us = self.core.clock.wall_us()
        old = [name for name, one in self.core.snapshots.items() if one.config.expire_time.ToMicroseconds() <= now_us]
        for name in old:
            self.delete(name)
        return bool(old)

    def of_project(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        names, token = page(self.core.snapshots, f"{check_project(project)}/", page_size, page_token)
        return [self.core.snapshots[name].config for name in names], token

    def of_topic(self, topic: str, page_size: int, page_token: str) -> tuple[list[str], str]:
        return page(self.core.topic(topic).snapshots, "", page_size, page_token)

    # Seek.

    def seek_to_time(self, subscription: str, time_us: int) -> None:
        """What was published before is acknowledged; what is kept of later messages is delivered again.

        Raises:
            RefusedError: NOT_FOUND, FAILED_PRECONDITION for a detached subscription.
        """
        subscribed = self.core.pullable(subscription)
        self.core.report_progress()
        topic = self.core.topics.get(subscribed.config.topic)
        kept: list[Entry] = []
        for history in (topic.history if topic is not None else None, subscribed.history):
            if history is not None:
                kept += history.entries
        self._go_back(subscribed, since(time_us, kept, subscribed.queue.unacknowledged()))

    def seek_to_snapshot(self, subscription: str, snapshot: str) -> None:
        """The subscription has what the snapshot has.

        Raises:
            RefusedError: NOT_FOUND, INVALID_ARGUMENT for a snapshot of another topic, FAILED_PRECONDITION for a
                detached subscription.
        """
        subscribed = self.core.pullable(subscription)
        found = self.get(snapshot)
        if found.topic_uid != subscribed.topic_uid:
            raise invalid(
                f"The snapshot {snapshot} is of another topic than the subscription {subscription}: seek to one of "
                "its own topic."
            )
        self.core.report_progress()
        self._go_back(subscribed, list(found.history.entries))

    def _go_back(self, subscribed: Subscribed, entries: list[Entry]) -> None:
        core = self.core
        if subscribed.filter is not None:
            through = [(batch, matching(subscribed, batch, left)) for batch, left in entries]
            entries = [(batch, left) for batch, left in through if left]
        for batch, _ in entries:
            batch.use()
        dropped = subscribed.queue.reset(entries, core.new_id())
        for batch in dropped:
            core.storage.progressed(subscribed.uid, batch, [])
        for batch, left in entries:
            core.storage.progressed(subscribed.uid, batch, batch.ids if left is None else left)
        core.release(dropped)

    def _store(self, snapshot: Snapshotted) -> None:
        config = snapshot.config.SerializeToString()
        self.core.storage.resource(Resource("snapshot", snapshot.uid, snapshot.topic_uid, config))
