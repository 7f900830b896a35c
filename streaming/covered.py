"""Which work is part of a completed checkpoint, from what Beam's runner for Flink tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial


class Covered:
    """Finds out what a completed checkpoint holds.

    When a checkpoint completes, Beam's portable runner calls the finalizers of *all* bundles that have ended, also of
    those that came behind the checkpoint's barrier and that a failure would take back. So a call says that some
    checkpoint has completed, and what had ended before it is taken for covered when the *next* one completes: its
    barrier came later. Calls that come together are of one checkpoint: those registered before its first call, and
    all that come within ``pause_s``.

    Args:
        done: called with the number up to which all is covered; it may come several times.
        pause_s: less than lies between the end of one checkpoint and that of the next.
        clock: seconds.

    >>> now = 0.0
    >>> covered = Covered(print, pause_s=1, clock=lambda: now)
    >>> first, second = covered.notice(1), covered.notice(2)
    >>> first()
    >>> second()
    >>> now = 2.0
    >>> covered.notice(7)()
    2
    """

    def __init__(
        self, done: Callable[[int], None], pause_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._done, self._pause_s, self._clock = done, pause_s, clock
        self._lock = threading.Lock()
        self._completed = self._ended = 0
        self._last_s = float("-inf")

    def notice(self, number: int) -> Callable[[], None]:
        """A finalizer for the bundle that is at work, which ends with ``number`` at most."""
        return partial(self._called, self._completed, number)

    def _called(self, registered: int, number: int) -> None:
        with self._lock:
            covered = None
            if registered == self._completed and self._clock() - self._last_s >= self._pause_s:
                self._completed += 1
                self._last_s = self._clock()
                covered = self._ended
            self._ended = max(self._ended, number)
        if covered:
            self._done(covered)
