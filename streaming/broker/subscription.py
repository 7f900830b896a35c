"""One subscription as a pure state machine: time is an argument, nothing waits, nothing talks to a network.

    backlog ──take──> leased ──acknowledge──> done
                        │  ^
             nack or    │  │ take
             deadline   v  │
                      returned (at once, or after the retry policy's delay)

Guaranteed: a message that was added is leased again and again until it is acknowledged, dead-lettered or older
than the retention; never to two consumers at a time; messages of one ordering key in their order. Not
guaranteed: that a message is delivered once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from streaming.broker.backlog import Backlog, Batch, DamagedError
from streaming.broker.errors import RefusedError, invalid
from streaming.broker.leases import ACKNOWLEDGED, DONE, LEASED, WAITING, Consumer, Leases, Pending
from streaming.broker.ordering import Keys

RESPONSE_BYTES = 3_500_000
"""Most bytes of messages in one response; clients in many languages receive 4 MB by default."""

MAX_PARKED = 20_000
"""Messages read from the backlog that wait for their ordering keys, before reading on is put off."""

MAX_LEASED = 500_000
MAX_LEASED_BYTES = 256 << 20
"""Most that all consumers together hold: what is leased is in memory, and a consumer may ask for no flow control."""

INVALID_ACK_ID = "PERMANENT_FAILURE_INVALID_ACK_ID"


@dataclass(slots=True)
class Policy:
    """The settings of a subscription that decide deliveries; durations in microseconds.

    The filter is applied before messages reach the subscription.
    """

    ack_deadline_us: int = 10_000_000
    retention_us: int = 7 * 86_400_000_000
    ordered: bool = False
    exactly_once: bool = False
    min_backoff_us: int = 0
    max_backoff_us: int = 0
    max_attempts: int = 0

    def backoff_us(self, attempts: int) -> int:
        """How long a message waits after its n-th delivery failed: doubled each time, within the policy."""
        return min(self.max_backoff_us, self.min_backoff_us << min(attempts - 1, 40)) if self.max_backoff_us else 0


class Subscription:
    """Backlog, leases and redelivery of one subscription.

    Args:
        uid: unique over the broker's life; part of ack ids, so that those of a deleted namesake mean nothing.
        policy: current settings; replace it to change them.
        dead_letter: publishes a message that has used up its attempts; False keeps it here (topic missing).
        ready: called when something may have become deliverable.
        epoch: greater after each start of the broker; part of ack ids, so that a lease from before a restart is
            not taken for one of the same message after it.
    """

    def __init__(
        self,
        uid: int,
        policy: Policy,
        dead_letter: Callable[[Pending], bool] = lambda _: False,
        ready: Callable[[], None] = lambda: None,
        epoch: int = 0,
    ) -> None:
        self.uid = uid
        self.epoch = epoch
        self.policy = policy
        self.dead_letter = dead_letter
        self.ready = ready
        self.backlog = Backlog()
        self._oldest_epoch = 0  # ack ids from before the last seek mean nothing
        self._open: dict[int, Pending] = {}  # taken out of the backlog, not done with
        self._returned: list[tuple[int, Pending]] = []
        self._delayed: list[tuple[int, int, Pending]] = []
        self._leases = Leases()
        self._keys = Keys()

    # Messages in, messages out.

    def add(self, batch: Batch, left: Sequence[int] | None = None) -> None:
        """Append a published batch to the backlog; only `left` of it if there is a filter."""
        self.backlog.append(batch, left)
        self.ready()

    def take(self, consumer: Consumer, now_us: int, wall_us: int, limit: int) -> list[Pending]:
        """Lease up to `limit` messages to `consumer`: returned ones first, then the backlog in order.

        Flow control may be exceeded by the last message, so that one larger than the limit still comes through.

        Args:
            consumer: who gets them.
            now_us: monotonic time, from which the leases run.
            wall_us: time since 1970, for retention.
            limit: most messages.
        """
        self.trim(wall_us)
        room = min(limit, consumer.max_messages - consumer.held, MAX_LEASED - self._leases.held)
        space = min(
            RESPONSE_BYTES, consumer.max_bytes - consumer.bytes_held, MAX_LEASED_BYTES - self._leases.bytes_held
        )
        if room <= 0 or space <= 0:
            return []
        taken: list[Pending] = []
        while self._returned and room > 0 and space > 0:
            one = heapq.heappop(self._returned)[1]
            if one.state != WAITING:
                continue
            if one.part.batch.publish_time_us < wall_us - self.policy.retention_us:
                self._drop(one)
            else:
                taken.append(one)
                room -= 1
                space -= len(one.field)
        if self.policy.ordered:
            room, space = self._take_keyed(consumer, now_us, wall_us, taken, room, space)
        if room > 0 and space > 0:
            self._take_backlog(consumer, now_us, taken, room, space)
        plain = [one for one in taken if one.state == WAITING] if self.policy.ordered else taken
        if plain:
            self._leases.add(plain, consumer, now_us + consumer.lease_us)
        return taken

    def _take_keyed(
        self, consumer: Consumer, now_us: int, wall_us: int, taken: list[Pending], room: int, space: int
    ) -> tuple[int, int]:
        for key in self._keys.waiting_for(consumer):
            got: list[Pending] = []
            before = len(key.waiting)
            while key.waiting and room > 0 and space > 0:
                one = key.waiting.popleft()
                if one.part.batch.publish_time_us < wall_us - self.policy.retention_us:
                    self._drop(one)
                    continue
                got.append(one)
                room -= 1
                space -= len(one.field)
            number = before - len(key.waiting)
            self._lease_keyed(got, consumer, now_us, taken)
            self._keys.took(key, number)
            if room <= 0 or space <= 0:
                break
        return room, space

    def _lease_keyed(self, got: list[Pending], consumer: Consumer, now_us: int, taken: list[Pending]) -> None:
        if got:
            self._leases.add(got, consumer, now_us + consumer.lease_us)
            self._keys.leased(got, consumer)
            taken += got

    def _take_backlog(self, consumer: Consumer, now_us: int, taken: list[Pending], room: int, space: int) -> None:
        backlog = self.backlog
        while backlog and room > 0 and space > 0:
            key = backlog.head().key if self.policy.ordered else ""
            try:
                if key and not self._keys.may_have(key, consumer):
                    if self._keys.parked >= MAX_PARKED:
                        return
                    self._keys.park(key, self._read(backlog.rest()))
                    continue
                got = self._read(backlog.fitting(room, space))
            except DamagedError:
                continue  # reported and dropped
            room -= len(got)
            space -= sum([len(one.field) for one in got])
            if key:
                self._lease_keyed(got, consumer, now_us, taken)
            else:
                taken += got

    def _read(self, number: int) -> list[Pending]:
        got = self.backlog.read(number, self.policy.ordered)
        for one in got:
            self._open[one.id] = one
        return got

    # What consumers say about messages.

    def ack_id(self, one: Pending) -> bytes:
        """The ack id of the current lease of a message; later leases of it have others."""
        if self.epoch:
            return b"%x.%x-%d-%d" % (self.uid, self.epoch, one.id, one.attempts)
        return b"%x-%d-%d" % (self.uid, one.id, one.attempts)

    def acknowledge(self, ack_ids: Iterable[str]) -> None:
        """End messages for good.

        An ack id whose lease is over still counts, as with the service, because the work was done; not so with
        exactly-once delivery, nor with an ordering key, whose messages come again together. Unknown ids are
        passed over.

        Raises:
            RefusedError: INVALID_ARGUMENT for what cannot be an ack id (nothing is changed). With exactly-once
                delivery, `LeaseOverError` with the ids whose lease is over in `metadata`, after the others were
                acknowledged.
        """
        failed: dict[str, str] = {}
        unknown: list[int] = []
        for ack_id, uid, epoch, message_id, attempt in self._parsed(ack_ids):
            mine = uid == self.uid and epoch >= self._oldest_epoch
            one = self._open.get(message_id) if mine else None
            current = (
                one is not None
                and one.attempts == attempt
                and epoch == self.epoch
                and one.state in (LEASED, ACKNOWLEDGED)
            )
            if self.policy.exactly_once and not current:
                failed[ack_id] = INVALID_ACK_ID
            elif one is not None and (current or not one.key):
                if one.state != ACKNOWLEDGED:
                    self._finish(one)
            elif one is None and mine and not self.policy.ordered:
                unknown.append(message_id)
        self.backlog.acknowledge_ahead(unknown)
        if self.has_work():
            self.ready()
        if failed:
            raise LeaseOverError(failed)

    def modify(self, ack_ids: Sequence[str], seconds: Sequence[int], now_us: int) -> None:
        """Move the deadlines of leases to `seconds` (0 to 600, one per ack id) from now; 0 gives back (nack).

        Raises:
            RefusedError: as `acknowledge`.
        """
        failed: dict[str, str] = {}
        extended: dict[int, list[Pending]] = {}
        returned: list[Pending] = []
        for (ack_id, uid, epoch, message_id, attempt), deadline_s in zip(self._parsed(ack_ids), seconds, strict=True):
            one = self._open.get(message_id) if uid == self.uid and epoch == self.epoch else None
            if one is None or one.state != LEASED or one.attempts != attempt:
                failed[ack_id] = INVALID_ACK_ID
            elif deadline_s:
                extended.setdefault(deadline_s, []).append(one)
            else:
                returned.append(one)
        for deadline_s, items in extended.items():
            self._leases.extend(list(dict.fromkeys(items)), now_us + deadline_s * 1_000_000)
        self._give_back(returned, now_us)
        if failed and self.policy.exactly_once:
            raise LeaseOverError(failed)

    def advance(self, now_us: int) -> None:
        """Take back what was not acknowledged in time, and let delays end."""
        self._give_back(self._leases.expired(now_us), now_us)
        moved = self._keys.advance(now_us)
        while self._delayed and self._delayed[0][0] <= now_us:
            one = heapq.heappop(self._delayed)[2]
            if one.state == WAITING:
                heapq.heappush(self._returned, (one.id, one))
                moved = True
        if moved:
            self.ready()

    def next_us(self) -> int | None:
        """When `advance` has something to do next, on the monotonic clock."""
        times = [self._leases.next_us(), self._keys.next_us(), self._delayed[0][0] if self._delayed else None]
        return min((time for time in times if time is not None), default=None)

    def reset(self, entries: Iterable[tuple[Batch, Sequence[int] | None]], epoch: int) -> list[Batch]:
        """Forget every message and lease, and go on with these batches (None: all of it): a seek.

        Returns:
            the batches that were there and not acknowledged whole.
        """
        for one in self._open.values():
            if one.state == LEASED:
                self._leases.end(one, DONE)
        dropped = self.backlog.clear()
        self._open, self._returned, self._delayed = {}, [], []
        self._leases = Leases()
        self._keys.clear()
        self.epoch = self._oldest_epoch = epoch
        for batch, left in entries:
            self.backlog.append(batch, left)
        self.ready()
        return dropped

    def has_work(self) -> bool:
        """Whether a consumer with room may get something now."""
        return bool(self.backlog or self._returned or self._keys.parked)

    # Retention and what is left.

    def trim(self, wall_us: int) -> None:
        """Drop from the backlog what is older than the retention."""
        oldest_us = wall_us - self.policy.retention_us
        while self.backlog and self.backlog.head().publish_time_us < oldest_us:
            self.backlog.skip_head()

    def unacknowledged(self) -> list[tuple[Batch, list[int]]]:
        """Per batch that is not done with, in order, the ids that are not acknowledged."""
        return [(part.batch, self.backlog.left(part, self._open)) for part in self.backlog.parts()]

    def progress(self) -> list[tuple[Batch, list[int], bool]]:
        """As `unacknowledged`, for the batches of which something was acknowledged since the last call.

        The last entry says whether the batch is done with: one that was acknowledged before it was read is not,
        because it is still in the backlog.
        """
        touched = self.backlog.touched
        if not touched:
            return []
        self.backlog.touched = {}
        return [
            (part.batch, self.backlog.left(part, self._open) if part.left else [], not part.left) for part in touched
        ]

    def counts(self) -> dict[str, int]:
        """Messages not acknowledged, and how many of them are leased."""
        leased = sum(one.state == LEASED for one in self._open.values())
        return {"unacknowledged": self.backlog.unacknowledged(), "leased": leased}

    # Steps inside.

    def _parsed(self, ack_ids: Iterable[str]) -> list[tuple[str, int, int, int, int]]:
        """Per ack id: it, uid, epoch, message id, attempt."""
        parsed = []
        for ack_id in ack_ids:
            try:
                lease, message_id, attempt = ack_id.split("-")
                uid, _, epoch = lease.partition(".")
                parsed.append((ack_id, int(uid, 16), int(epoch or "0", 16), int(message_id), int(attempt)))
            except ValueError:
                raise invalid(f"You have passed an invalid ack ID to the service (ack_id={ack_id[:200]}).") from None
        return parsed

    def _finish(self, one: Pending) -> None:
        """End a message for good, or note that it ends when all before it of its key have."""
        if one.key and self.policy.exactly_once:  # never again, whatever becomes of earlier ones of its key
            self._leases.end(one, DONE)
            self._keys.forget(one)
        elif one.key:
            self._leases.end(one, ACKNOWLEDGED)
            for other in self._keys.acknowledged(one):
                self._drop(other)
            return
        elif one.state == LEASED:
            self._leases.end(one, DONE)
        self._drop(one)

    def _drop(self, one: Pending) -> None:
        """Forget a message that is neither leased nor waiting for its key."""
        one.state = DONE
        del self._open[one.id]
        self.backlog.done(one.part)

    def _give_back(self, items: list[Pending], now_us: int) -> None:
        """Let leased messages wait again, or dead-letter those that have used up their attempts."""
        if not items:
            return
        for one in items:
            if one.state != LEASED:
                continue  # given back already, with an earlier one of its key
            if self.policy.max_attempts and one.attempts >= self.policy.max_attempts and self.dead_letter(one):
                self._finish(one)
                continue
            ready_us = now_us + self.policy.backoff_us(one.attempts)
            if one.key:
                again = self._keys.after(one)
                for other in again:
                    if other.state == LEASED:
                        self._leases.end(other, WAITING)
                    other.state = WAITING
                self._keys.give_back(again, ready_us, now_us)
                continue
            self._leases.end(one, WAITING)
            if ready_us > now_us:
                heapq.heappush(self._delayed, (ready_us, one.id, one))
            else:
                heapq.heappush(self._returned, (one.id, one))
        self.ready()


class LeaseOverError(RefusedError):
    """Exactly-once delivery: some leases were over. The service's code is INVALID_ARGUMENT."""

    def __init__(self, failed: dict[str, str]) -> None:
        super().__init__(
            "INVALID_ARGUMENT",
            "Some acknowledgement ids in the request were invalid. This could be because the acknowledgement ids "
            "have expired or the acknowledgement ids were malformed.",
            failed,
        )
