"""Work that must not be felt by requests: in a thread of its own, at the lowest priority that the system gives."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

NICENESS = 15
"""Of 19: with both cores busy, such a thread gets about 3 % of one of them."""


def in_background(function: Callable[[], Result], name: str, timeout_s: float | None = None) -> Result:
    """What `function` returns or raises, computed by a thread of low priority.

    TimeoutError after `timeout_s`; the thread then goes on by itself.
    """
    outcome: list[Any] = []

    def run() -> None:
        _yield_to_others()
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError(f"{name}: not done within {timeout_s:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    found: Result = result
    return found


def _yield_to_others() -> None:
    # On Linux a niceness belongs to a thread, and cannot be lowered again: hence one thread a task.
    if sys.platform == "linux":
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        except OSError:
            return
