"""A Flink cluster of processes for tests, whose parts can be killed; `deploy.flink.cluster` starts them again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from streaming.flink_rest import FlinkRest, UnreachableError
from tests import processes
from tests.processes import wait_until

FETCH_S = 300
REQUIRED = "SAMERIVER_REQUIRE_FLINK"
"""Where this variable is set, as in `.ci/run`, tests on Flink fail where they would be skipped."""


class FlinkCluster:
    """A job manager, task managers with one slot each, a job server and a worker pool.

    Attributes:
        rest: of the job manager.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self._folder = folder
        command = ["-m", "deploy.flink.cluster", *options, "--any-ports", "--folder", os.fspath(folder)]
        self._process = processes.start(command)
        self._where: dict[str, Any] = json.loads(self._process.wait_for_line('"ready"', FETCH_S))
        self.rest = FlinkRest(self._where["flink_rest"])

    @property
    def options(self) -> list[str]:
        """Of ``sameriver stream``: run on this cluster."""
        return ["--runner", "flink", *(f"--{name}={value}" for name, value in self.places.items())]

    @property
    def places(self) -> dict[str, str]:
        """By option where the parts are."""
        return {name.replace("_", "-"): self._where[name] for name in ("job_endpoint", "flink_rest", "worker_pool")}

    def _parts(self, role: str) -> list[psutil.Process]:
        program = "worker_pool.py" if role == "worker-pool" else MAIN_CLASSES[role]
        children = psutil.Process(self._process.process.pid).children()
        return [child for child in children if any(program in word for word in _command(child))]

    def workers(self) -> list[psutil.Process]:
        """The Python processes that run steps."""
        return [
            worker for pool in self._parts("worker-pool") for forker in pool.children() for worker in forker.children()
        ]

    def kill(self, role: str) -> None:
        """SIGKILL to a part, by its role, the first of several; ``worker`` is a Python process that runs steps."""
        found = self.workers() if role == "worker" else self._parts(role)
        assert found, f"no {role} runs"
        victim = min(found, key=lambda process: process.pid)
        victim.send_signal(signal.SIGKILL)

    def add_task_manager(self) -> None:
        """Start one more task manager, and wait for it."""
        self._process.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: self.rest.slots()[1] > 0, what="the task manager is there")

    def wait_until_runs(self, job: str, timeout_s: float = 120.0) -> None:
        """Until all tasks of a job run."""

        def runs() -> bool:
            with contextlib.suppress(UnreachableError):
                return self.rest.state(job) == "RUNNING"
            return False

        wait_until(runs, timeout_s, f"job {job} runs")

    def logs(self) -> str:
        """The last lines of each part."""
        tails = []
        for path in sorted(self._folder.glob("*.log")):
            lines = path.read_text("utf-8", "replace").splitlines()[-30:]
            tails.append("\n".join([f"== {path.name}", *(line[:300] for line in lines)]))
        return "\n".join(tails)

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self._process.stop()
        self._process.kill()


MAIN_CLASSES = {
    "job-manager": "StandaloneSessionClusterEntrypoint",
    "task-manager": "TaskManagerRunner",
    "job-server": "FlinkJobServerDriver",
}


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


@contextlib.contextmanager
def flink_cluster(folder: Path, options: Sequence[str] = ()) -> Iterator[FlinkCluster]:
    """A cluster; the test is skipped, with the reason, where it cannot be had, or fails if it must be."""
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    said = f"{missing[0]} is not installed" if missing else ""
    if not missing:
        fetched = processes.start(["deploy/flink/local.py", "jars"])
        try:
            said = fetched.tail() if fetched.wait(FETCH_S) != 0 else ""
        finally:
            fetched.kill()
    if said:
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(f"nothing here ran on Flink: {said}")
    cluster = FlinkCluster(folder, options)
    try:
        yield cluster
    finally:
        cluster.close()
