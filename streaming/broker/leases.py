"""Who holds which message until when.

Messages that are leased together share one deadline and one entry in a heap, so that a delivery of a thousand
messages costs one heap operation, and a group that was acknowledged whole costs nothing at its deadline.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from streaming.broker.backlog import Part

WAITING: Final = 0
LEASED: Final = 1
DONE: Final = 2
ACKNOWLEDGED: Final = 3
"""Acknowledged, but an earlier message of its key is not: if that one comes again, this one does too."""


class Consumer:
    """One stream, or one unary pull: whom messages are leased to, and how much it may hold.

    Args:
        lease_us: how long a lease lasts.
        max_messages, max_bytes: flow control over what is leased and not given back; 0 or less is no limit.
    """

    __slots__ = ("bytes_held", "held", "keys", "lease_us", "max_bytes", "max_messages")

    def __init__(self, lease_us: int, max_messages: int = 0, max_bytes: int = 0) -> None:
        self.lease_us = lease_us
        self.max_messages = max_messages if max_messages > 0 else 1 << 62
        self.max_bytes = max_bytes if max_bytes > 0 else 1 << 62
        self.held = 0
        self.bytes_held = 0
        self.keys: dict[str, Key] = {}
        """Ordering keys that this consumer holds and that have more waiting (kept by `ordering.Keys`)."""

    def full(self) -> bool:
        """Whether flow control lets it have nothing more."""
        return self.held >= self.max_messages or self.bytes_held >= self.max_bytes


class Pending:
    """One message that a subscription has taken out of its backlog and that is not acknowledged yet."""

    __slots__ = ("attempts", "consumer", "field", "group", "id", "key", "part", "state")

    def __init__(self, message_id: int, field: bytes, key: str, part: Part) -> None:
        self.id = message_id
        self.field = field
        self.key = key
        self.part = part
        self.attempts = 0
        self.state = WAITING
        self.group: Group | None = None
        self.consumer: Consumer | None = None


class Key:
    """One ordering key with messages leased or waiting."""

    __slots__ = ("leased", "name", "owner", "ready_us", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner: Consumer | None = None
        self.leased: dict[int, Pending] = {}
        self.waiting: deque[Pending] = deque()
        self.ready_us = 0


class Group:
    """Leases that end at the same moment."""

    __slots__ = ("deadline_us", "items", "left")

    def __init__(self, deadline_us: int, items: list[Pending]) -> None:
        self.deadline_us = deadline_us
        self.items = items
        self.left = len(items)


class Leases:
    """All leases of one subscription, by deadline.

    Attributes:
        held, bytes_held: how many there are, and their size.
    """

    def __init__(self) -> None:
        self.held = 0
        self.bytes_held = 0
        self._heap: list[tuple[int, int, Group]] = []
        self._number = 0

    def add(self, items: list[Pending], consumer: Consumer, deadline_us: int) -> None:
        """Lease `items`, which are waiting, to `consumer`."""
        group = self._group(items, deadline_us)
        size = 0
        for one in items:
            one.state = LEASED
            one.group = group
            one.consumer = consumer
            one.attempts += 1
            size += len(one.field)
        consumer.held += len(items)
        consumer.bytes_held += size
        self.held += len(items)
        self.bytes_held += size

    def extend(self, items: list[Pending], deadline_us: int) -> None:
        """Give `items`, which are leased, another deadline."""
        group = self._group(items, deadline_us)
        for one in items:
            self._leave(one)
            one.group = group

    def end(self, one: Pending, state: int) -> None:
        """End the lease of `one`, which becomes `state`."""
        self._leave(one)
        one.state = state
        one.group = None
        self.held -= 1
        self.bytes_held -= len(one.field)
        consumer = one.consumer
        if consumer is not None:
            consumer.held -= 1
            consumer.bytes_held -= len(one.field)
            one.consumer = None

    def expired(self, now_us: int) -> list[Pending]:
        """Leased messages whose deadline has come; the caller ends each lease."""
        late: list[Pending] = []
        while self._heap and self._heap[0][0] <= now_us:
            group = heapq.heappop(self._heap)[2]
            late += [one for one in group.items if one.group is group]
        return late

    def next_us(self) -> int | None:
        """The earliest deadline, on the monotonic clock."""
        while self._heap and not self._heap[0][2].left:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _group(self, items: list[Pending], deadline_us: int) -> Group:
        group = Group(deadline_us, items)
        self._number += 1
        heapq.heappush(self._heap, (deadline_us, self._number, group))
        if len(self._heap) > 4096 and self._number % 4096 == 0:  # many short-lived groups before a far deadline
            self._heap = [entry for entry in self._heap if entry[2].left]
            heapq.heapify(self._heap)
        return group

    @staticmethod
    def _leave(one: Pending) -> None:
        group = one.group
        if group is not None:
            group.left -= 1
            if not group.left:
                group.items = []  # let go of the messages now, not at the deadline
