"""Streaming jobs as processes for fault tests: started warm, killed, stopped in their tracks, started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE_S, REPOSITORY, Started, wait_until

APP = str(REPOSITORY / "tests" / "faults" / "app.py")


class Job:
    """One life of a job, or of any other command.

    Attributes:
        pid: of its process.
        log: file with all it has said.
    """

    def __init__(self, jobs: Jobs, pid: int, log: Path) -> None:
        self._jobs, self.pid, self.log = jobs, pid, log

    @property
    def code(self) -> int | None:
        """Its exit code once it has ended, negative for a signal."""
        return self._jobs.ends().get(self.pid)

    def records(self) -> list[dict[str, Any]]:
        """The JSON objects it has printed."""
        lines = self.log.read_text("utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}\n")]

    @property
    def ready(self) -> dict[str, Any] | None:
        """What it said when it was ready."""
        return next((one for one in self.records() if "ready" in one), None)

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """What it said when it was ready; AssertionError if it has ended, or is not in time."""
        wait_until(lambda: self.ready or self.code is not None, timeout_s, "the job is ready")
        assert self.ready is not None, self.log.read_text("utf-8")
        return self.ready

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit code."""
        wait_until(lambda: self.code is not None, timeout_s, f"process {self.pid} has ended")
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and its end."""
        self.send(signal.SIGKILL)
        self.wait()

    def drain(self, number: int = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Ask it to drain; the totals that it says at its end."""
        self.send(number)
        assert self.wait(timeout_s) == 0, self.log.read_text("utf-8")
        return self.records()[-1]

    def memory_bytes(self) -> int:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        """File descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Jobs:
    """The process that `tests.faults.warm` is, and what it has started.

    Args:
        folder: for logs.
        apps: to compile for.
    """

    def __init__(self, folder: Path, *apps: str) -> None:
        self._folder, self._jobs = folder, list[Job]()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm", *apps],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            cwd=REPOSITORY,
            start_new_session=True,
        )
        self._warm = Started(process, "warm jobs")
        self._warm.wait_for_line('"ready"')

    def _told(self, what: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self._warm.lines) if line.startswith('{"' + what)]

    def ends(self) -> dict[int, int]:
        """Exit codes of what has ended."""
        return {one["ended"]: one["code"] for one in self._told("ended")}

    def start(self, arguments: Sequence[str], limits: Mapping[str, int] | None = None) -> Job:
        """Start ``sameriver <arguments>``; `Job.wait_ready` waits for it.

        Args:
            arguments: of the command.
            limits: resource limits by name, such as ``RLIMIT_NOFILE``.
        """
        number = len(self._jobs)
        log = self._folder / f"job-{number}.log"
        log.touch()
        order = {"arguments": list(arguments), "log": str(log), "limits": dict(limits or {})}
        stdin = self._warm.process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        wait_until(lambda: len(self._told("pid")) > number, what="the job was started")
        self._jobs.append(Job(self, self._told("pid")[number]["pid"], log))
        return self._jobs[-1]

    def close(self) -> None:
        """Kill what runs."""
        for job in self._jobs:
            job.send(signal.SIGKILL)
        assert self._warm.process.stdin is not None
        self._warm.process.stdin.close()
        self._warm.wait()
