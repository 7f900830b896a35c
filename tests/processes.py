"""Real processes for tests: started, waited for by a printed line, and always ended.

Nothing here sleeps: a reader thread takes the output line by line and wakes whoever waits for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHOWN_LINES = 60
PATIENCE_S = 300.0
"""How long a test waits for what must come: its end says that something hangs, not that the machine is busy."""

NEW_DRAWS = "new" in os.environ.get("SAMERIVER_DRAWS_OF_TESTS", "")
"""`make soak` draws other examples and faults each time; else they are the same, so that a red run can be repeated."""

RUN_FOLDER = "SAMERIVER_RUN_FOLDER_OF_TESTS"
"""Names the folder that the processes of one run share; tests/conftest.py makes and removes it."""

PORTS = range(10_000, 32_000)
"""Linux gives these neither to who asks for any port nor to connections that go out."""


def new_seed() -> int:
    """The seed of what a test draws; the test says it where it fails."""
    return random.randrange(1 << 30) if NEW_DRAWS else 1


def free_port() -> int:
    """A TCP port on loopback for this process and those that it starts, also while nothing listens there.

    A name in Linux's abstract space says that it is taken, until this process ends. Prefer port 0 where the server
    can print its own.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        ours = socket.socket(socket.AF_UNIX)
        try:
            ours.bind(f"\0sameriver-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            ours.close()
            continue
        ours.detach()  # open until this process ends
        return port
    raise AssertionError("no port is free")


def once_a_run(name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder that one process of this run makes, whichever asks first, for all of them."""
    home = Path(os.environ[RUN_FOLDER])
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / name).exists():
            aside = home / f"{name}-{os.getpid()}"
            make(aside)
            aside.rename(home / name)
    return home / name


def wait_until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, what: str = "condition") -> None:
    """Poll `condition` until it is true; AssertionError after `timeout_s`.

    For state that offers nothing to wait on; an Event or a printed line is better where there is one.
    """
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not true within {timeout_s:g} s")
        pause.wait(0.01)


class Started:
    """A running process and what it has printed so far (stdout and stderr together).

    Attributes:
        process: the Popen object.
        lines: every line printed so far, without line ends.
        line: the line that made the process count as ready ("" if none was asked for).
    """

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self.process = process
        self.name = name
        self.lines: list[str] = []
        self.line = ""
        self._news = threading.Condition()
        self._closed = False
        self._reader = threading.Thread(target=self._read, name=f"read {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def wait_for_line(self, text: str, timeout_s: float = PATIENCE_S, after: int = 0) -> str:
        """The first line, from number `after` on, that contains `text`.

        AssertionError, with what was printed, at the deadline or if the process ends first.
        """
        deadline = time.monotonic() + timeout_s
        seen = after
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if text in line:
                        return line
                seen = len(self.lines)
                if self._closed:
                    raise AssertionError(f"{self.name} ended before it printed {text!r}:\n{self.tail()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{self.name} did not print {text!r} within {timeout_s:g} s:\n{self.tail()}")
                self._news.wait(left)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code, once the process has ended and all it printed is in `lines`."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s:\n{self.tail()}") from None
        self._reader.join(timeout_s)
        return code

    def stop(self, signal_number: int = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Send a signal to the process alone, as an operator would, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End the process and all it started, whatever they are doing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group outlives a leader that has ended
        self.process.wait(30)
        self._reader.join(30)

    def tail(self) -> str:
        """The last lines printed, for messages."""
        return "\n".join(self.lines[-SHOWN_LINES:])


def start(
    args: Sequence[str | os.PathLike[str]],
    ready: str | None = None,
    env: Mapping[str, str | None] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout_s: float = PATIENCE_S,
) -> Started:
    """Start a process, by default from a folder of its own, and wait until it prints `ready`.

    Args:
        args: the command; one that begins with ``-m``, ``-c`` or a ``.py`` file runs in this Python.
        ready: part of the line that says the process is ready; None returns at once.
        env: variables added to this process's own; a value of None removes one.
        cwd: working folder; the repository if not given. The packages are importable from anywhere.
        timeout_s: how long to wait for `ready`.
    """
    command = [os.fspath(arg) for arg in args]
    if command[0] in {"-m", "-c"} or command[0].endswith(".py"):
        command.insert(0, sys.executable)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY)}
    for name, value in (env or {}).items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
        cwd=cwd or REPOSITORY,
        start_new_session=True,
    )
    started = Started(process, " ".join(command[:4]))
    if ready is not None:
        try:
            started.line = started.wait_for_line(ready, timeout_s)
        except BaseException:
            started.kill()
            raise
    return started
