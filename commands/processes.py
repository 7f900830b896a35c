"""Child processes: started by this Python, ready when they say so, stopped in order, never left behind.

A child prints JSON objects, one a line: ``{"ready": true, …}`` once it serves, ``{"progress": …}`` while it works,
and its result last. What else it prints, and its standard error, go to its log file. Its standard input is a pipe
from here: when this process is gone, however it went, the child reads the end of it and stops (`STOP_WITH_PARENT`).
Each child has a session of its own, so that Ctrl-C reaches this process alone, which then stops them in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.group import STOP_WITH_PARENT, CommandError
from commands.output import PROGRESS_AS_JSON

CODE = Path(__file__).resolve().parent.parent
"""Where the packages are; children find them there too, wherever they run."""

Record = dict[str, Any]


def code_environment(**more: str) -> dict[str, str]:
    """This process's environment for a child that runs our code.

    Our packages have names that folders of anybody's have too (``batch``, ``apps``): neither the child nor what it
    starts in turn, Beam's workers for example, looks for modules where it happens to run (PYTHONSAFEPATH).
    """
    known = os.environ.get("PYTHONPATH")
    path = f"{CODE}{os.pathsep}{known}" if known else str(CODE)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **more}


class Child:
    """A running child process.

    Args:
        name: for people, for example ``model server``.
        arguments: of ``python -m``: a module and its arguments.
        log: file that takes its standard error and what it prints besides JSON.
        environment: variables added to this process's own.
        on_record: called with each JSON object it prints, on a thread of its own.
        on_exit: called with this child when it has ended, on that thread.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        on_record: Callable[[Record], None] | None = None,
        on_exit: Callable[[Child], None] | None = None,
    ) -> None:
        self.name, self.log = name, log
        self.ready: Record | None = None
        self.result: Record = {}
        self._on_record, self._on_exit = on_record, on_exit
        self._news = threading.Condition()
        self._ended = False
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("w", encoding="utf-8")
        marks = {STOP_WITH_PARENT: "1", PROGRESS_AS_JSON: "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            errors="replace",
            bufsize=1,
            env=code_environment(**marks, **(environment or {})),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"read {name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                record = json_object(line)
                if record is None:
                    self._log.write(line)
                    self._log.flush()
                    continue
                with self._news:
                    if "ready" in record:
                        self.ready = record
                    elif "progress" not in record:
                        self.result = record
                    self._news.notify_all()
                if self._on_record is not None:
                    self._on_record(record)
        self.process.wait()
        with self._news:
            self._ended = True
            self._log.close()
            self._news.notify_all()
        if self._on_exit is not None:
            self._on_exit(self)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self.process.poll()

    def wait_ready(self, timeout_s: float) -> Record:
        """What it said when it was ready.

        Raises:
            ChildError: it ended first, or was not ready in time.
        """
        with self._news:
            self._news.wait_for(lambda: self.ready is not None or self._ended, timeout_s)
            if self.ready is not None:
                return self.ready
        raise ChildError(self, f"was not ready within {timeout_s:.0f} s" if not self._ended else None)

    def wait(self, timeout_s: float | None = None) -> Record:
        """The result, when it has ended well.

        Raises:
            ChildError: it ended with another exit code than 0, or not in time.
        """
        with self._news:
            if not self._news.wait_for(lambda: self._ended, timeout_s):
                raise ChildError(self, f"did not end within {timeout_s:.0f} s")
        if self.exit_code != 0:
            raise ChildError(self)
        return self.result

    def send(self, record: Mapping[str, Any]) -> None:
        """Write one JSON object to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(record) + "\n")
        self.process.stdin.flush()

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ask it to drain and end (SIGTERM), kill it if it does not; returns its exit code."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(10)
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        return self.process.wait()

    def kill(self) -> None:
        """End it and all that it started, whatever they are doing."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        """The line of its log that says best why it ended: its error, or else the last one."""
        try:
            lines = [line.strip() for line in self.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            return ""
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [""])[-1].removeprefix("error: ")


class ChildError(CommandError):
    """A child process ended, or did not get ready; the text is one sentence with its own last words.

    The exit code is 2 where the child's was, because then there is something to mend, else 1.
    """

    def __init__(self, child: Child, what: str | None = None) -> None:
        code = child.exit_code
        if what is None:
            what = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        words = child.last_words()
        said = f": {words}" if words else ""
        super().__init__(f"the {child.name} {what}{said} (its log is {child.log})", 2 if code == 2 else 1)
        self.child = child


def json_object(line: str) -> Record | None:
    """The JSON object on a line of output, None if it is something else."""
    if not line.startswith("{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def check_port_free(port: int, what: str, option: str) -> None:
    """ConfigurationError if something listens on ``port`` of this machine; 0 is always free."""
    from shared_features.errors import ConfigurationError

    if port == 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigurationError(
                f"port {port} of 127.0.0.1, wanted for the {what}, is in use: stop what listens there or give "
                f"another with {option}"
            ) from None


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> bool:
    """Whether ``condition`` became true in time; for conditions that nobody signals."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(every_s)
    return True
