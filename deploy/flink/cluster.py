"""A Flink cluster on this machine, each part a process of its own, and Beam's job server and worker pool beside it.

usage: python -m deploy.flink.cluster [--task-managers 2] [--folder var/flink-cluster] [--any-ports]

It runs until it is ended, and starts again what ends before, as a service manager would. When the cluster is ready one
line of JSON says where it is. SIGUSR1 adds a task manager. Needs Java 17 or newer, and Maven for the jars, once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploy.flink import local

PORTS = (6123, 8081, 8099, 50000)
READY_S = 120.0
POLL_S = 0.2


@dataclass(slots=True)
class Part:
    """One process of the cluster, and how it is started again."""

    name: str
    command: list[str]
    log: IO[bytes]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )


class Cluster:
    """All parts, until `close`.

    Args:
        folder: for logs and checkpoints.
        task_managers: how many, with one slot each.
        ports: of the job manager, its REST API, the job server and the worker pool.
    """

    def __init__(self, folder: Path, task_managers: int, ports: tuple[int, int, int, int]) -> None:
        self.folder, self._parts, self._task_managers = folder, dict[str, Part](), 0
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        manager, self.rest, self.endpoint, self.pool = ports
        self._manager = f"localhost:{manager}"
        checkpoints = (folder / "checkpoints").absolute().as_uri()
        self._add("job-manager", ["--port", f"{manager}", "--rest-port", f"{self.rest}", "--checkpoints", checkpoints])
        for _ in range(task_managers):
            self.add_task_manager()
        self._add("worker-pool", ["--port", f"{self.pool}"])
        self._add("job-server", ["--port", f"{self.endpoint}", "--flink-master", f"localhost:{self.rest}"])

    def add_task_manager(self) -> None:
        """Start one more."""
        self._task_managers += 1
        checkpoints = (self.folder / "checkpoints").absolute().as_uri()
        self._add("task-manager", ["--job-manager", self._manager, "--checkpoints", checkpoints], self._task_managers)

    def _add(self, role: str, options: list[str], number: int = 0) -> None:
        name = f"{role}-{number}" if number else role
        log = (self.folder / f"{name}.log").open("ab")
        program = ["worker_pool.py"] if role == "worker-pool" else ["local.py", role]
        part = Part(name, [sys.executable, os.fspath(local.HERE / program[0]), *program[1:], *options], log)
        part.start()
        with self._lock:
            self._parts[name] = part

    def restart_ended(self) -> None:
        """Start again what has ended."""
        with self._lock:
            parts = list(self._parts.values())
        for part in parts:
            if part.process is not None and part.process.poll() is not None:
                print(f"{part.name} has ended with {part.process.returncode}: it is started again", flush=True)
                part.start()

    def ended(self) -> str | None:
        """The name of a part that has ended, with what it said last."""
        for part in self._parts.values():
            if part.process is not None and part.process.poll() is not None:
                lines = Path(part.log.name).read_text("utf-8", "replace").split("\n")
                said = [line.strip() for line in lines if line.strip() and not line.startswith(("\t", " "))]
                return f"{part.name} has ended with {part.process.returncode}: {said[-1][:300] if said else 'silently'}"
        return None

    def is_ready(self) -> bool:
        """Whether every part answers."""
        try:
            with urllib.request.urlopen(f"http://localhost:{self.rest}/overview", timeout=5) as answer:
                registered = json.loads(answer.read())["taskmanagers"]
        except (OSError, urllib.error.URLError, ValueError):
            return False
        return registered >= self._task_managers and all(_listens(port) for port in (self.endpoint, self.pool))

    def addresses(self) -> dict[str, Any]:
        """Where the parts are, and their processes."""
        pids = {part.name: part.process.pid for part in self._parts.values() if part.process is not None}
        return {
            "ready": True,
            "flink_rest": f"localhost:{self.rest}",
            "job_endpoint": f"localhost:{self.endpoint}",
            "worker_pool": f"localhost:{self.pool}",
            "processes": pids,
        }

    def close(self) -> None:
        """End all parts and what they have started."""
        for part in self._parts.values():
            if part.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(part.process.pid, signal.SIGKILL)
                part.process.wait()
            part.log.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task-managers", type=int, default=2, help="1 or more, with one slot each; default: 2")
    parser.add_argument("--folder", type=Path, default=local.JARS.parent / "flink-cluster", help="logs, checkpoints")
    parser.add_argument("--any-ports", action="store_true", help=f"free ports, not {', '.join(map(str, PORTS))}")
    given = parser.parse_args()
    ports = _free_ports() if given.any_ports else PORTS
    try:
        if given.task_managers < 1:
            raise LookupError(f"--task-managers must be 1 or more, got {given.task_managers}")
        if taken := [port for port in ports if _listens(port)]:
            raise LookupError(f"port {taken[0]} is taken: end what listens there, or give --any-ports")
        local.find_java()
        local.fetch()
        cluster = Cluster(given.folder, given.task_managers, ports)
    except (LookupError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    signal.signal(signal.SIGUSR1, lambda *_: cluster.add_task_manager())
    try:
        waited = 0.0
        while not cluster.is_ready():
            if ended.wait(POLL_S):
                return 0
            waited += POLL_S
            if said := cluster.ended():
                print(f"the cluster does not start: {said} (its log is in {given.folder})", file=sys.stderr)
                return 2
            if waited > READY_S:
                print(f"the cluster is not ready within {READY_S:g} s: look into {given.folder}/*.log", file=sys.stderr)
                return 2
        print(json.dumps(cluster.addresses()), flush=True)
        while not ended.wait(POLL_S):
            cluster.restart_ended()
    finally:
        cluster.close()
    return 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("localhost", port)) == 0


def _free_ports() -> tuple[int, int, int, int]:
    probes = [socket.socket() for _ in range(4)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        first, second, third, fourth = (int(probe.getsockname()[1]) for probe in probes)
        return first, second, third, fourth
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    sys.exit(main())
