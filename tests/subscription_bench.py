"""A subscription of the broker's state machine under a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

from streaming.broker.backlog import Batch
from streaming.broker.leases import Consumer, Pending
from streaming.broker.subscription import Policy, Subscription

SECOND = 1_000_000
FIELD = b"\x12\x03abc"


class Bench:
    """A subscription, a clock and a publisher with ids 100, 101, …"""

    def __init__(self, policy: Policy | None = None) -> None:
        self.now_us = 0
        self.wall_us = 1_700_000_000 * SECOND
        self.woken = 0
        self.letters: list[int] = []
        self.queue = Subscription(7, policy or Policy(), self._letter, self._wake)
        self._ids = count(100)

    def _wake(self) -> None:
        self.woken += 1

    def _letter(self, one: Pending) -> bool:
        self.letters.append(one.id)
        return True

    def publish(self, number: int = 1, key: str = "", field: bytes = FIELD) -> list[int]:
        ids = [next(self._ids) for _ in range(number)]
        self.queue.add(Batch(ids, [field] * number, key, self.wall_us))
        return ids

    def open(self) -> list[int]:
        """The ids that are not done with."""
        return [one for _, left in self.queue.unacknowledged() for one in left]

    def ack(self, ack_ids: Iterable[str]) -> list[int]:
        """Acknowledge; the ids that this ended."""
        before = self.open()
        self.queue.acknowledge(ack_ids)
        after = set(self.open())
        return [one for one in before if one not in after]

    def consumer(self, lease_s: int = 10, max_messages: int = 0, max_bytes: int = 0) -> Consumer:
        return Consumer(lease_s * SECOND, max_messages, max_bytes)

    def take(self, consumer: Consumer, limit: int = 1000) -> dict[int, str]:
        """Message id -> ack id."""
        taken = self.queue.take(consumer, self.now_us, self.wall_us, limit)
        return {one.id: self.queue.ack_id(one).decode() for one in taken}

    def pass_s(self, seconds: float) -> None:
        self.now_us += int(seconds * SECOND)
        self.wall_us += int(seconds * SECOND)
        self.queue.advance(self.now_us)
