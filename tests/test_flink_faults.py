"""kill -9 of worker processes and task managers while events flow through a job on a Flink cluster."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from batch.verify import verify
from tests.faults.jobs import Jobs
from tests.processes import Started, wait_until
from tests.shop.app import app
from tests.test_flink import has_jars, has_predicted_all
from tests.test_streaming import Bench, outgoing
from tests.test_verify import sales

Start = Callable[..., Started]

KILLS = 6
LOCAL = "deploy/flink/local.py"
ROWS = 1500
"""Events published around a kill."""

COME_BACK_S = 300


class Cluster:
    """A job manager, two task managers and a job server as processes of their own, and one worker pool.

    Args:
        start: starts processes.
        ports: two free ones.
    """

    def __init__(self, start: Start, ports: tuple[int, int]) -> None:
        self._start, (self._port, rest) = start, ports
        start(
            [LOCAL, "job-manager", "--port", f"{self._port}", "--rest-port", f"{rest}"], ready="Rest endpoint listening"
        )
        self.task_managers = [self._task_manager() for _ in range(2)]
        master = ["--flink-master", f"localhost:{rest}"]
        server = start([LOCAL, "job-server", "--port", "0", *master], ready="Job server now running")
        self.job_server = server.wait_for_line("JobService started on").rpartition(" ")[2]
        self._pool = start([LOCAL, "worker-pool", "--port", "0"], ready="worker pool on")
        self.worker_pool = self._pool.line.rpartition(" ")[2]

    def _task_manager(self) -> Started:
        command = [LOCAL, "task-manager", "--job-manager", f"localhost:{self._port}"]
        return self._start(command, ready="Successful registration at resource manager", timeout_s=120)

    def kill_worker(self) -> None:
        """SIGKILL to the processes that run the job's steps."""
        workers = psutil.Process(self._pool.process.pid).children(recursive=True)
        assert workers
        for worker in workers:
            worker.send_signal(signal.SIGKILL)

    def kill_task_manager(self) -> None:
        """SIGKILL to the task manager that has the job, and a new one in its place."""
        (busy,) = (one for one in self.task_managers if any("Deliver" in line for line in one.lines))
        busy.kill()
        self.task_managers.remove(busy)
        self.task_managers.append(self._task_manager())


@pytest.mark.soak
def test_kills_lose_nothing_and_state_stays_exact(
    start_process: Start, warm_jobs: Jobs, free_port: Callable[[], int], tmp_path: Path
) -> None:
    has_jars()
    cluster = Cluster(start_process, (free_port(), free_port()))
    bench, history = Bench(start_process, warm_jobs, tmp_path), sales(KILLS * ROWS)
    messages = outgoing(history)
    job = bench.stream(
        *("--runner", "flink", "--job-endpoint", cluster.job_server, "--worker-pool", cluster.worker_pool)
    )
    archived = 0
    for kill in range(KILLS):
        part = messages[kill * ROWS : (kill + 1) * ROWS]
        bench.publish(part[: ROWS // 3])
        wait_until(partial(bench.has_archived_more_than, archived), COME_BACK_S, f"progress after {kill} kills")
        bench.publish(part[ROWS // 3 :])
        (cluster.kill_task_manager if kill % 2 else cluster.kill_worker)()
        archived = bench.archived_rows()
    wait_until(partial(has_predicted_all, bench, history), COME_BACK_S, "every sale is predicted")
    job.drain()
    report = verify(app, bench.archive)
    assert (report.events, report.predictions, report.mismatches) == (history.num_rows, history.num_rows * 3 // 4, 0)
    versions: dict[str, set[bytes]] = {}
    for message in bench.take("predictions"):
        versions.setdefault(message.attributes["prediction_id"], set()).add(message.data)
    assert {len(one) for one in versions.values()} == {1}
    bench.close()
