"""Things to do later, on one thread that starts with the first of them."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable


class Timers:
    """Runs actions after a delay, one after the other, on one daemon thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Run `action` in `delay_s` seconds; it must not raise. Forgotten after `close`."""
        with self._news:
            if self._closed:
                return
            heapq.heappush(self._heap, (time.monotonic() + delay_s, self._sequence, action))
            self._sequence += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._news.notify()

    def close(self) -> None:
        """Drop what is still to come and end the thread."""
        with self._news:
            self._closed = True
            self._heap.clear()
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._closed:
                    wait_s = self._heap[0][0] - time.monotonic() if self._heap else None
                    if wait_s is not None and wait_s <= 0:
                        break
                    self._news.wait(wait_s)
                if self._closed:
                    return
                _, _, action = heapq.heappop(self._heap)
            action()
