"""The event loop's side of a subscription: who waits for messages, and when leases must be looked at."""

from __future__ import annotations

import asyncio

from streaming.broker.clock import Clock
from streaming.broker.leases import Consumer, Pending
from streaming.broker.messages import received
from streaming.broker.resources import Subscribed


class Desk:
    """Wakes waiting consumers the moment something may be deliverable, and the queue when a lease ends.

    Attributes:
        closed: the subscription was deleted or detached, or the broker stops; every waiter is woken then.
    """

    def __init__(self, subscribed: Subscribed, clock: Clock) -> None:
        self.subscribed = subscribed
        self.clock = clock
        self.closed = False
        self._waiters: list[asyncio.Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0
        subscribed.queue.ready = self.wake

    def join(self, waiter: asyncio.Event) -> None:
        """Set `waiter` whenever there may be something to take."""
        self._waiters.append(waiter)

    def leave(self, waiter: asyncio.Event) -> None:
        self._waiters.remove(waiter)

    def in_use(self) -> bool:
        """Whether a stream is open or a pull waits."""
        return bool(self._waiters)

    def wake(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    def close(self) -> None:
        """End every stream and pull of this subscription."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.wake()

    def take(self, consumer: Consumer, limit: int, waiter: asyncio.Event) -> bytes:
        """Serialised ``received_messages`` for `consumer`, b"" if there is nothing for it now."""
        queue = self.subscribed.queue
        taken = queue.take(consumer, self.clock.monotonic_us(), self.clock.wall_us(), limit)
        if not taken:
            return b""
        if len(self._waiters) > 1:  # who got something is last in line for the next
            self._waiters.remove(waiter)
            self._waiters.append(waiter)
        self.arm()
        counted = queue.policy.max_attempts > 0
        return b"".join([self._received(one, counted) for one in taken])

    def _received(self, one: Pending, counted: bool) -> bytes:
        return received(self.subscribed.queue.ack_id(one), one.field, one.attempts if counted else 0)

    def arm(self) -> None:
        """Make sure that the queue is looked at when its next lease or delay ends."""
        next_us = self.subscribed.queue.next_us()
        if next_us is None or self.closed:
            return
        if self._timer is not None:
            if self._timer_us <= next_us:
                return
            self._timer.cancel()
        self._timer_us = next_us
        delay_s = max(0, next_us - self.clock.monotonic_us()) / 1e6
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._advance)

    def _advance(self) -> None:
        self._timer = None
        self.subscribed.queue.advance(self.clock.monotonic_us())
        self.arm()
