"""kill -9 of every part in turn while events flow through a job on a Flink cluster; and a third task manager."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from streaming.flink_known import STATE_FILE
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
CALM_S, SAMPLE_S = 600, 20
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
        models.process.kill()


@pytest.mark.soak
def test_checkpoints_do_not_grow_in_ten_calm_minutes(
    start_process: Start, warm_jobs: Jobs, free_port: Callable[[], int], tmp_path: Path
) -> None:
    """The source goes on asking, checkpoints are taken and finalizers called: nothing of that stays in the state."""
    broker = Broker(start_process, tmp_path / "broker", free_port())
    with flink_cluster(tmp_path / "cluster") as cluster:
        rig = Rig(warm_jobs, broker.address, tmp_path)
        job = rig.start_job(*cluster.options, f"--checkpoint-ms={CHECKPOINT_MS}", wait=False)
        job.wait_ready(COME_BACK_S)
        rig.publish(20_000)
        wait_until(lambda: rig.archived() == len(rig.published), COME_BACK_S, "all events are archived")
        number = json.loads((rig.archive / STATE_FILE).read_text("utf-8"))["job"]

        def checkpoint() -> tuple[int, int]:
            found = cluster.rest.checkpoints(number)["latest"]["completed"]
            return found["id"], found["state_size"]

        first = checkpoint()[0]
        wait_until(lambda: checkpoint()[0] > first + 3, COME_BACK_S, "what was archived has left the state")
        begin, sizes = time.monotonic(), dict([checkpoint()])
        while time.monotonic() - begin < CALM_S:
            time.sleep(SAMPLE_S)
            sizes.update([checkpoint()])
        assert len(sizes) > CALM_S / SAMPLE_S / 2
        assert max(sizes.values()) - min(sizes.values()) < 1_000, sizes
        print(f"checkpoints of {min(sizes.values()):,} to {max(sizes.values()):,} bytes in {CALM_S} s")
        assert job.drain(timeout_s=COME_BACK_S)["received"] == len(rig.published)
        rig.close()
