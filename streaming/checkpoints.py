"""Acknowledging after a checkpoint: on a cluster a message is done with when the runner's state remembers it too."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence


class CheckpointedAcks:
    """Acknowledges what has been committed and is part of a checkpoint, in the order of delivery.

    Both come as counts over the same order, so a notice of a checkpoint that got lost is made up for by the next.

    Args:
        acknowledge: tells the subscription.

    >>> acks = CheckpointedAcks(print)
    >>> acks.committed(["a", "b", "c"])
    >>> acks.checkpointed(2)
    ['a', 'b']
    >>> acks.checkpointed(4)
    ['c']
    >>> acks.committed(["d", "e"])
    ['d']
    """

    def __init__(self, acknowledge: Callable[[Sequence[str]], None]) -> None:
        self._acknowledge = acknowledge
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._sent = self._allowed = 0

    @property
    def sent(self) -> int:
        """Messages acknowledged so far."""
        return self._sent

    def committed(self, ack_ids: Sequence[str]) -> None:
        """These messages, the next in the order of delivery, are archived and their results published."""
        with self._lock:
            self._waiting.extend(ack_ids)
            self._send()

    def checkpointed(self, messages: int) -> None:
        """The first so many messages delivered are part of a checkpoint."""
        with self._lock:
            self._allowed = max(self._allowed, messages)
            self._send()

    def _send(self) -> None:
        number = min(self._allowed - self._sent, len(self._waiting))
        if number > 0:
            ack_ids = [self._waiting.popleft() for _ in range(number)]
            self._sent += number
            self._acknowledge(ack_ids)
