"""Topics and subscriptions as the broker holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streaming.broker.backlog import Batch
from streaming.broker.subscription import Subscription


@dataclass(slots=True)
class Subscribed:
    """A subscription as clients see it (`config`) and its deliveries (`queue`)."""

    config: Any
    queue: Subscription
    uid: int
    topic_uid: int


@dataclass(slots=True)
class Published:
    """A topic and its subscriptions, by name."""

    config: Any
    uid: int
    subscriptions: dict[str, Subscribed] = field(default_factory=dict)


@dataclass(slots=True)
class Accepted:
    """Messages that were accepted; `stored` once the storage was told of them."""

    topic: Published
    batch: Batch
    stored: bool = False
