"""Ordering keys: messages of one key go to one consumer at a time, in the order of their publication.

A key is held by a consumer as long as it has a message of it leased. Further messages of the key go to the same
consumer or wait. When one is given back, those of its key that were delivered after it are taken back too.
"""

from __future__ import annotations

import heapq

from streaming.broker.leases import ACKNOWLEDGED, Consumer, Key, Pending


class Keys:
    """The ordering keys of one subscription that have messages out of the backlog."""

    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}
        self._free: dict[str, Key] = {}
        self._delayed: list[tuple[int, str]] = []
        self.parked = 0
        """Messages that wait here, taken out of the backlog: the reader of the backlog bounds them."""

    def may_have(self, name: str, consumer: Consumer) -> bool:
        """Whether the next message of this key in the backlog may go to `consumer` at once."""
        key = self._keys.get(name)
        return key is None or (not key.waiting and (key.owner is consumer or key.owner is None))

    def park(self, name: str, items: list[Pending]) -> None:
        """Let messages from the backlog wait for their key."""
        key = self._keys.setdefault(name, Key(name))
        key.waiting.extend(items)
        self.parked += len(items)
        self._place(key)

    def leased(self, items: list[Pending], consumer: Consumer) -> None:
        """Note that these messages of one key were leased, in their order."""
        key = self._keys.setdefault(items[0].key, Key(items[0].key))
        if key.owner is not consumer:
            key.owner = consumer
            self._place(key)
        for one in items:
            key.leased[one.id] = one

    def acknowledged(self, one: Pending) -> list[Pending]:
        """Note that a leased message was acknowledged; the messages of its key that are done with now.

        A message is done with when all before it are, because redelivery of one brings all that follow it.
        """
        key = self._keys[one.key]
        done: list[Pending] = []
        for other in key.leased.values():
            if other.state != ACKNOWLEDGED:
                break
            done.append(other)
        for other in done:
            del key.leased[other.id]
        self._settle(key)
        return done

    def forget(self, one: Pending) -> None:
        """Note that a leased message is done with, whatever becomes of those before it."""
        key = self._keys[one.key]
        del key.leased[one.id]
        self._settle(key)

    def after(self, one: Pending) -> list[Pending]:
        """The messages of this one's key from it on, leased or acknowledged before their turn, in order."""
        return [other for other in self._keys[one.key].leased.values() if other.id >= one.id]

    def give_back(self, items: list[Pending], ready_us: int, now_us: int) -> None:
        """Let messages that `after` returned wait again, before all that wait for their key."""
        key = self._keys[items[0].key]
        for one in reversed(items):
            del key.leased[one.id]
            key.waiting.appendleft(one)
        self.parked += len(items)
        if ready_us > now_us:
            key.ready_us = max(key.ready_us, ready_us)
            heapq.heappush(self._delayed, (key.ready_us, key.name))
        self._settle(key)

    def waiting_for(self, consumer: Consumer) -> list[Key]:
        """Keys with messages that `consumer` may have now; after taking from the left of one, tell `took`."""
        return [*consumer.keys.values(), *self._free.values()]

    def took(self, key: Key, number: int) -> None:
        """Note that `number` messages were taken from the left of those that wait for `key`."""
        self.parked -= number
        self._settle(key)

    def advance(self, now_us: int) -> bool:
        """End the delays that are over; whether there were any."""
        moved = False
        while self._delayed and self._delayed[0][0] <= now_us:
            key = self._keys.get(heapq.heappop(self._delayed)[1])
            if key is not None and key.ready_us <= now_us:
                key.ready_us = 0
                self._place(key)
                moved = True
        return moved

    def clear(self) -> None:
        """Forget every key; consumers hold none any more."""
        for key in self._keys.values():
            if key.owner is not None:
                key.owner.keys.pop(key.name, None)
        self._keys, self._free, self._delayed, self.parked = {}, {}, [], 0

    def next_us(self) -> int | None:
        """When the next delay ends."""
        return self._delayed[0][0] if self._delayed else None

    def _settle(self, key: Key) -> None:
        if not key.leased:
            if key.owner is not None:
                key.owner.keys.pop(key.name, None)
                key.owner = None
            if not key.waiting:
                self._free.pop(key.name, None)
                self._keys.pop(key.name, None)
                return
        self._place(key)

    def _place(self, key: Key) -> None:
        self._free.pop(key.name, None)
        if key.owner is not None:
            key.owner.keys.pop(key.name, None)
        if key.waiting and not key.ready_us:
            if key.owner is None:
                self._free[key.name] = key
            else:
                key.owner.keys[key.name] = key
