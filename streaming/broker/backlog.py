"""What a subscription has not delivered yet, batch by batch, and what of each batch is not acknowledged.

Batches are shared between storage and subscriptions. Above a limit of memory a batch keeps only its ids, and its
messages are loaded from the storage when their turn comes; so a backlog may be larger than memory.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streaming.broker.leases import DONE, WAITING, Pending

DEFAULT_MEMORY_BYTES = 256 << 20


class DamagedError(Exception):
    """A stored batch cannot be read any more."""


@dataclass(slots=True)
class Memory:
    """How many bytes of undelivered messages a broker keeps at hand.

    Attributes:
        limit_bytes: above it, new batches are left to the storage.
        used_bytes: what is at hand now.
        load: reads the messages of a batch by its first id; None if the storage keeps nothing.
    """

    limit_bytes: int = DEFAULT_MEMORY_BYTES
    used_bytes: int = 0
    load: Callable[[int], list[bytes]] | None = None


@dataclass(slots=True)
class Kept:
    """How much of one topic is kept, at hand or in the storage, because somebody has not acknowledged it.

    Attributes:
        size_bytes: of whole batches.
    """

    size_bytes: int = 0


class Batch:
    """Messages of one topic, published by one request or committed together.

    Attributes:
        ids: message ids, ascending.
        key: ordering key of all of them, "" if none.
        publish_time_us: of the last one, since 1970.
        readers: subscriptions that have not read it through.
        users: subscriptions that have not acknowledged all of it, and histories and snapshots that keep it.
    """

    __slots__ = ("_fields", "_kept", "_memory", "ids", "key", "publish_time_us", "readers", "size_bytes", "users")

    def __init__(self, ids: Sequence[int], fields: list[bytes] | None, key: str, publish_time_us: int) -> None:
        self.ids = ids
        self.key = key
        self.publish_time_us = publish_time_us
        self.readers = 0
        self.users = 0
        self.size_bytes = sum(map(len, fields)) if fields is not None else 0
        self._fields = fields
        self._memory: Memory | None = None
        self._kept: Kept | None = None

    def keep(self, memory: Memory, kept: Kept, readers: int, users: int, *, durable: bool) -> None:
        """Count it as waiting for subscriptions; its messages stay at hand if there is room.

        Args:
            memory: what is shared by all batches of the broker.
            kept: what is shared by all batches of the topic.
            readers: how many subscriptions will read it.
            users: these, and the histories and snapshots that keep it.
            durable: whether `Memory.load` could bring the messages back.
        """
        self.readers, self.users = readers, users
        self._memory, self._kept = memory, kept
        if users:
            kept.size_bytes += self.size_bytes
        if self._fields is None or not (users if memory.load is None else readers):
            self._fields = None
            return
        if durable and memory.load is not None and memory.used_bytes + self.size_bytes > memory.limit_bytes:
            self._fields = None
        else:
            memory.used_bytes += self.size_bytes

    def use(self) -> None:
        """One more subscription will read it: somebody went back to it."""
        self.readers += 1
        self.users += 1

    def read_through(self) -> None:
        """One subscription needs the messages no more (those it leased it has)."""
        self.readers -= 1
        if not self.readers and self._memory is not None and self._memory.load is not None:
            self._let_go()

    def release(self) -> bool:
        """One user less; whether it was the last."""
        self.users -= 1
        if not self.users:
            self._let_go()
            if self._kept is not None:
                self._kept.size_bytes -= self.size_bytes
        return not self.users

    def _let_go(self) -> None:
        if self._fields is not None and self._memory is not None:
            self._fields = None
            self._memory.used_bytes -= self.size_bytes

    def fields(self) -> list[bytes]:
        """Per message, what `messages.framed` made.

        Raises:
            DamagedError: they had to be loaded and could not.
        """
        if self._fields is not None:
            return self._fields
        if self._memory is None or self._memory.load is None:
            raise DamagedError("the messages are gone")
        return self._memory.load(self.ids[0])


class Part:
    """What one subscription still has to do in one batch: `read` messages were read, `left` are not acknowledged."""

    __slots__ = ("batch", "fields", "left", "read")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.left = len(batch.ids)
        self.read = 0
        self.fields: list[bytes] | None = None


class Backlog:
    """The batches of one subscription, in order.

    Attributes:
        touched: parts of which something was acknowledged since somebody last cleared it.
        damaged: called with a batch that cannot be read; its messages are dropped.
    """

    def __init__(self, damaged: Callable[[Batch], None] = lambda _: None) -> None:
        self.touched: dict[Part, None] = {}
        self.damaged = damaged
        self._queue: deque[Part] = deque()
        self._parts: dict[int, Part] = {}  # by first id: with messages that are not acknowledged
        self._ahead: set[int] = set()  # acknowledged while still in the queue: leased before a restart

    def __bool__(self) -> bool:
        return bool(self._queue)

    def append(self, batch: Batch, left: Sequence[int] | None = None) -> None:
        """Add a batch at the end; after a restart only `left` of it may not be acknowledged yet."""
        part = Part(batch)
        if left is not None:
            self._ahead.update(set(batch.ids).difference(left))
        self._parts[batch.ids[0]] = part
        self._queue.append(part)

    def head(self) -> Batch:
        """The batch whose messages come next."""
        return self._queue[0].batch

    def fitting(self, room: int, space: int) -> int:
        """How many of the head's messages fit into `room` messages and `space` bytes; the last may exceed it."""
        fields = self._head_fields()
        start = self._queue[0].read
        stop, most = start, min(start + room, len(fields))
        while stop < most and space > 0:
            space -= len(fields[stop])
            stop += 1
        return stop - start

    def read(self, number: int, keyed: bool) -> list[Pending]:
        """Take `number` messages of the head; fewer come back if some were acknowledged already."""
        fields, part = self._head_fields(), self._queue[0]
        batch, start = part.batch, part.read
        key = batch.key if keyed else ""
        got = [
            Pending(message_id, field, key, part)
            for message_id, field in zip(batch.ids[start : start + number], fields[start : start + number], strict=True)
        ]
        self._move(number)
        if self._ahead:
            for one in got:
                if one.id in self._ahead:
                    self._ahead.discard(one.id)
                    one.state = DONE
                    self.done(part)
            got = [one for one in got if one.state == WAITING]
        return got

    def skip_head(self) -> None:
        """Drop what is left of the head."""
        part, number = self._queue[0], self.rest()
        self._ahead.difference_update(part.batch.ids[part.read :])
        self._move(number)
        self.done(part, number)

    def rest(self) -> int:
        """How many messages of the head are left."""
        return len(self._queue[0].batch.ids) - self._queue[0].read

    def done(self, part: Part, number: int = 1) -> None:
        """Note that so many messages of a part are acknowledged or dropped."""
        part.left -= number
        self.touched[part] = None
        if not part.left:
            del self._parts[part.batch.ids[0]]

    def acknowledge_ahead(self, message_ids: Sequence[int]) -> None:
        """Note acknowledgements of messages that were not read since the broker started."""
        if not self._queue:
            return
        first, last = self._queue[0].batch.ids[self._queue[0].read], self._queue[-1].batch.ids[-1]
        inside = [one for one in message_ids if first <= one <= last]
        if not inside:
            return
        parts = sorted(self._queue, key=_first_id)
        for one in inside:
            part = parts[bisect.bisect_right(parts, one, key=_first_id) - 1]
            if one in part.batch.ids[part.read :]:
                self._ahead.add(one)
                self.touched[part] = None

    def left(self, part: Part, open_ids: dict[int, Pending]) -> list[int]:
        """The ids of a part's messages that are neither acknowledged nor dropped, given those read and open."""
        ids, start = part.batch.ids, part.read
        return [one for one in ids[:start] if one in open_ids] + [one for one in ids[start:] if one not in self._ahead]

    def parts(self) -> list[Part]:
        """All parts with messages that are not acknowledged, in order."""
        return list(self._parts.values())

    def unacknowledged(self) -> int:
        """How many messages are neither acknowledged nor dropped."""
        return sum(part.left for part in self._parts.values()) - len(self._ahead)

    def clear(self) -> list[Batch]:
        """Drop everything; the batches that were not acknowledged whole."""
        for part in self._queue:
            part.batch.read_through()
        self._queue.clear()
        dropped = [part.batch for part in self._parts.values()]
        self._parts.clear()
        self._ahead.clear()
        self.touched = {}
        return dropped

    def _head_fields(self) -> list[bytes]:
        part = self._queue[0]
        if part.fields is None:
            try:
                part.fields = part.batch.fields()
            except DamagedError:
                self.damaged(part.batch)
                self.skip_head()
                raise
        return part.fields

    def _move(self, number: int) -> None:
        part = self._queue[0]
        part.read += number
        if part.read == len(part.batch.ids):
            self._queue.popleft()
            part.fields = None
            part.batch.read_through()


def _first_id(part: Part) -> int:
    return part.batch.ids[0]
