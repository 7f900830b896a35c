"""SIGINT and SIGTERM as servers and jobs take them: drain and exit 0, whatever moment they come at."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class StopSignal:
    """The first signal asks to stop; a second SIGINT ends the process at once.

    Until `drain` is set (while things are being loaded, and there is nothing to drain) a signal raises out of
    the block of `stop_signal`, which then ends quietly.
    """

    def __init__(self) -> None:
        self.drain: Callable[[], None] | None = None
        self.asked = threading.Event()

    def wait(self) -> None:
        """Return when a signal has come."""
        self.drain = self.drain or (lambda: None)
        while not self.asked.wait(0.2):
            pass  # the kernel may hand the signal to another thread: only a main thread that wakes runs its handler

    def pause(self, seconds: float) -> None:
        """Return after so long, or when a signal has come; wakes now and then, as `wait` does."""
        end_s = time.monotonic() + seconds
        while not self.asked.is_set() and (left_s := end_s - time.monotonic()) > 0:
            self.asked.wait(min(0.2, left_s))

    def _handle(self, number: int, _frame: object) -> None:
        if self.asked.is_set():
            if number == signal.SIGINT:
                os._exit(130)
            return
        self.asked.set()
        if self.drain is None:
            raise _StoppedEarlyError
        self.drain()


class _StoppedEarlyError(BaseException):
    """Told to stop while there was nothing to drain yet."""


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Take SIGINT and SIGTERM over for the block; a signal that comes before there is anything to drain ends it."""
    stop = StopSignal()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop._handle) for number in numbers]
    try:
        yield stop
    except _StoppedEarlyError:
        pass
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
