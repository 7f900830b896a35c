"""The demo where there is no terminal: a line for each stage that is done, and now and then one on the replay."""

from __future__ import annotations

import threading
import time

from rich.console import Console

from commands.demo_view import Stage, View

EVERY_S = 5.0


class Lines:
    """Called after each change of a stage; keeps a thread that says how the replay goes.

    Args:
        console: to print to.
        view: its stages and tally.
    """

    def __init__(self, console: Console, view: View) -> None:
        self._console, self._view = console, view
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._said_s = time.monotonic()

    def __call__(self, stage: Stage) -> None:
        with self._lock:
            if stage.state == "done" and stage.name not in self._said:
                self._said.add(stage.name)
                self._console.print(f"✓ {stage.name:<16} {stage.detail}  ({stage.seconds:.1f} s)", soft_wrap=True)
                self._said_s = time.monotonic()
            elif stage.state == "running" and time.monotonic() - self._said_s >= EVERY_S:
                self._said_s = time.monotonic()
                share = "" if stage.share is None else f"{stage.share:4.0%} "
                self._console.print(f"  {stage.name:<16} {share}{stage.detail}", soft_wrap=True)
