"""Topics, subscriptions and snapshots as the broker holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from streaming.broker.backlog import Batch, Kept
from streaming.broker.filters import Filter
from streaming.broker.history import History
from streaming.broker.subscription import Subscription


@dataclass(slots=True)
class Subscribed:
    """A subscription as clients see it (`config`) and its deliveries (`queue`).

    Attributes:
        filter: which messages it gets, by their attributes; None: all.
        history: what it keeps after acknowledgement, if it retains that.
        active_us: when somebody last used it, since 1970.
    """

    config: Any
    queue: Subscription
    uid: int
    topic_uid: int
    filter: Filter | None = None
    history: History | None = None
    active_us: int = 0


@dataclass(slots=True)
class Snapshotted:
    """A snapshot as clients see it, and its messages."""

    config: Any
    history: History
    uid: int
    topic_uid: int


@dataclass(slots=True)
class Published:
    """A topic, its subscriptions and snapshots by name, and what it keeps for subscriptions that go back."""

    config: Any
    uid: int
    subscriptions: dict[str, Subscribed] = field(default_factory=dict)
    snapshots: dict[str, Snapshotted] = field(default_factory=dict)
    history: History | None = None
    kept: Kept = field(default_factory=Kept)

    def histories(self) -> Iterator[History]:
        """All that keeps its messages, acknowledged or not."""
        if self.history is not None:
            yield self.history
        for subscribed in self.subscriptions.values():
            if subscribed.history is not None:
                yield subscribed.history
        for snapshot in self.snapshots.values():
            yield snapshot.history

    def wanted(self) -> bool:
        """Whether anybody wants what is published."""
        return bool(self.subscriptions or self.snapshots or self.history)


@dataclass(slots=True)
class Accepted:
    """Messages that were accepted; `stored` once the storage was told of them."""

    topic: Published
    batch: Batch
    stored: bool = False
