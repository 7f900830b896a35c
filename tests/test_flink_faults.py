"""kill -9 of every part in turn while events flow through a job on a Flink cluster; and a third task manager."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.faults import served
from tests.faults.jobs import Jobs
from tests.faults.model_server import FILE, ModelServer, put
from tests.faults.rig import Rig
from tests.flink_cluster import flink_cluster
from tests.processes import Started, wait_until

Start = Callable[..., Started]

EVENTS = 200_000
ROUNDS = ("task-manager", "broker", "worker", "job-manager", "model server") * 2
CHECKPOINT_MS = 2_000
COME_BACK_S = 300
IN_FLIGHT = 2_000
"""Published right before each kill, so that some are under way when it comes."""


class Broker:
    """A broker that keeps its messages and its port when it is killed."""

    def __init__(self, start: Start, folder: Path, port: int) -> None:
        self._command = ["-m", "streaming.broker", "--port", f"{port}", "--data-dir", str(folder)]
        self._start, self.address = start, f"127.0.0.1:{port}"
        self._process = start(self._command, ready="listening on")

    def kill_and_start(self) -> None:
        self._process.kill()
        self._process = self._start(self._command, ready="listening on")


def has_archived_more(rig: Rig, rows: int) -> bool:
    return rig.archived() > rows


@pytest.mark.soak
def test_ten_kills_lose_nothing_and_state_stays_exact(
    start_process: Start, warm_jobs: Jobs, free_port: Callable[[], int], tmp_path: Path
) -> None:
    put(tmp_path / "models" / "half", 1)
    models = ModelServer(tmp_path / "models" / "half")
    broker = Broker(start_process, tmp_path / "broker", free_port())
    with flink_cluster(tmp_path / "cluster") as cluster:
        rig = Rig(warm_jobs, broker.address, tmp_path, app=served.app, file=FILE)
        job = rig.start_job(
            *cluster.options, f"--checkpoint-ms={CHECKPOINT_MS}", "--model-server", models.target, wait=False
        )
        job.wait_ready(COME_BACK_S)
        each = EVENTS // (len(ROUNDS) + 1)
        for kill, part in enumerate(ROUNDS):
            before = rig.archived()
            rig.publish(each - IN_FLIGHT)
            wait_until(partial(has_archived_more, rig, before), COME_BACK_S, f"progress after {kill} kills")
            more = threading.Thread(target=rig.publish, args=(IN_FLIGHT,))
            more.start()
            assert len(rig.published) > rig.archived()
            if part == "broker":
                broker.kill_and_start()
            elif part == "model server":
                models.kill_and_start()
            else:
                cluster.kill(part)
            more.join()
        rig.publish(EVENTS - len(rig.published))
        cluster.add_task_manager()
        wait_until(lambda: rig.archived() == EVENTS, COME_BACK_S, "all events are archived")
        rig.wait_predicted(COME_BACK_S)
        totals = job.drain(timeout_s=COME_BACK_S)
        assert totals["outcomes"] == {"predicted": EVENTS}
        assert rig.predictions.by_event.keys() == set(rig.published)
        assert rig.verified()["mismatches"] == 0

        again = rig.start_job(*cluster.options, "--parallelism=3", "--model-server", models.target, wait=False)
        again.wait_ready(COME_BACK_S)
        rig.publish(1_000)
        rig.wait_predicted(COME_BACK_S)
        again.drain(timeout_s=COME_BACK_S)
        report = rig.verified()
        assert (report["events"], report["mismatches"]) == (EVENTS + 1_000, 0)
        rig.close()
