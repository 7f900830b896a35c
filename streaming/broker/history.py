"""Batches that are kept acknowledged or not, so that a subscription can go back to them.

A topic with a retention has one, a subscription that retains what is acknowledged has one, and a snapshot is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from streaming.broker.backlog import Batch, DamagedError
from streaming.broker.messages import PubsubMessage, unframed

Entry = tuple[Batch, Sequence[int] | None]
"""A batch and the ids in it that are not acknowledged; None: all of them."""


class History:
    """Batches in the order of publication.

    Args:
        uid: from the same counter as message ids.
        retention_us: how long after its publication a batch is kept; None: until `clear`.
    """

    def __init__(self, uid: int, retention_us: int | None = None) -> None:
        self.uid = uid
        self.retention_us = retention_us
        self.entries: deque[Entry] = deque()

    def append(self, batch: Batch, left: Sequence[int] | None = None) -> None:
        """Keep a batch, or `left` of it. The caller counts it among the batch's users."""
        self.entries.append((batch, left))

    def expired(self, wall_us: int) -> list[Batch]:
        """Take out what is older than the retention; the caller releases it."""
        old: list[Batch] = []
        if self.retention_us is not None:
            oldest_us = wall_us - self.retention_us
            while self.entries and self.entries[0][0].publish_time_us < oldest_us:
                old.append(self.entries.popleft()[0])
        return old

    def clear(self) -> list[Batch]:
        """Take out everything; the caller releases it."""
        dropped = [batch for batch, _ in self.entries]
        self.entries.clear()
        return dropped


def since(time_us: int, kept: Iterable[Entry], waiting: Iterable[tuple[Batch, list[int]]]) -> list[Entry]:
    """What a subscription has after a seek to a time: what was published then or later, and nothing else.

    Args:
        time_us: since 1970.
        kept: what histories have, acknowledged or not.
        waiting: what the subscription has not acknowledged.

    Returns:
        batches in the order of publication.
    """
    found: dict[int, Entry] = {}
    for batch, left in (*waiting, *kept):
        if batch.publish_time_us < time_us:
            continue
        ids: Sequence[int] = batch.ids if left is None else left
        if not isinstance(batch.ids, range):  # several requests committed together, each with its own time
            ids = _published_since(time_us, batch, ids)
        if ids:
            found[batch.ids[0]] = (batch, None if len(ids) == len(batch.ids) else list(ids))
    return [found[first] for first in sorted(found)]


def _published_since(time_us: int, batch: Batch, ids: Sequence[int]) -> Sequence[int]:
    try:
        fields = batch.fields()
    except DamagedError:
        return ids  # said, and dropped, when it is read
    times = {
        one: PubsubMessage.FromString(unframed(field)).publish_time.ToMicroseconds()
        for one, field in zip(batch.ids, fields, strict=True)
    }
    return [one for one in ids if times[one] >= time_us]
