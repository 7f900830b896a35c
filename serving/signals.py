"""Waiting for SIGTERM and SIGINT in a process full of other libraries' threads."""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType


class StopSignals:
    """Notes SIGTERM and SIGINT from its creation on; make it on the main thread, before anything that takes long.

    A signal may be delivered to a thread of TensorFlow's or gRPC's. Python then only notes it for the main thread,
    which, asleep in a lock (``Event.wait``), never looks. The wake-up descriptor is written wherever it arrives.
    """

    def __init__(self) -> None:
        self._asked = False
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = True

    def wait(self, timeout_s: float | None = None) -> bool:
        """True once a signal has come; False after `timeout_s` without one."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._asked:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            if select.select([self._read], [], [], left_s)[0]:
                os.read(self._read, 4096)  # Python runs the handlers before the next step
        return True
