"""Events that keep coming while faults happen, and the clock that says when to strike."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.rig import Rig
from tests.processes import PATIENCE_S, wait_until


class Flow:
    """Publishes in small batches on a thread of its own.

    Args:
        rig: to publish on.
        total: events at most.
        every_s, batch: a batch of that many, and the pause between two.
    """

    def __init__(self, rig: Rig, total: int, *, every_s: float = 0.02, batch: int = 5) -> None:
        self._rig, self._total, self._every_s, self._batch = rig, total, every_s, batch
        self._stop, self._hurry = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        left = self._total
        try:
            while left > 0 and not self._stop.is_set():
                batch = min(left, 500 if self._hurry.is_set() else self._batch)
                self._rig.publish(batch)
                left -= batch
                if not self._hurry.is_set():
                    self._stop.wait(self._every_s)
        except Exception as error:  # raised again by `finish`
            self.failure = error

    @property
    def running(self) -> bool:
        """Whether there is more to come."""
        return self._thread.is_alive()

    def finish(self, timeout_s: float = PATIENCE_S) -> None:
        """Publish what is left at once."""
        self._hurry.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the publisher is stuck"
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """Publish no more."""
        self._stop.set()
        self._thread.join(120)


@contextmanager
def flow(rig: Rig, total: int, *, every_s: float = 0.02, batch: int = 5) -> Iterator[Flow]:
    """A `Flow` that ends with the block, whatever happens in it."""
    made = Flow(rig, total, every_s=every_s, batch=batch)
    try:
        yield made
    finally:
        made.stop()


def kill_clock(rig: Rig, before: int, mean_s: float) -> None:
    """Wait for the first row archived since there were ``before``, then for an exponential time."""
    wait_until(lambda: rig.archived() > before, what=f"a row is archived after the restart (seed {rig.seed})")
    until_s = time.monotonic() + min(rig.draw.expovariate(1 / mean_s), 4 * mean_s)
    wait_until(lambda: time.monotonic() >= until_s, what="the clock rings")
