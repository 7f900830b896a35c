"""The streaming job on Flink: the same graph, the same predictions, bit for bit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from batch.verify import verify
from tests import processes
from tests.faults.jobs import Jobs
from tests.processes import Started, wait_until
from tests.shop.app import app
from tests.test_streaming import Bench, outgoing, sale_ids
from tests.test_verify import sales

Start = Callable[..., Started]

FETCH_S = 300


def has_jars() -> None:
    """Skip the test, and say why, where Java, Maven or Flink's jars are not to be had."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: nothing here ran on Flink")
    fetched = processes.start(["deploy/flink/local.py", "jars"])
    try:
        if fetched.wait(FETCH_S) != 0:
            pytest.skip(f"nothing here ran on Flink: {fetched.tail()}")
    finally:
        fetched.kill()


@pytest.fixture(scope="module")
def job_server() -> Iterator[str]:
    """``host:port`` of Beam's job server with a Flink cluster inside."""
    has_jars()
    server = processes.start(["deploy/flink/local.py", "job-server", "--port", "0"], ready="Job server now running")
    try:
        yield server.wait_for_line("JobService started on").rpartition(" ")[2]
    finally:
        server.kill()


def predictions(bench: Bench) -> dict[str, bytes]:
    """Predictions by their id, every bit of them except the time at which the broker took the event."""
    return {
        message.attributes["prediction_id"]: re.sub(rb'"publish_time":\d+,', b"", message.data)
        for message in bench.take("predictions")
    }


def has_predicted_all(bench: Bench, history: pa.RecordBatch) -> bool:
    return bench.ids() == sale_ids(history)


@pytest.mark.timeout(FETCH_S + 180)
def test_the_job_on_flink_predicts_the_same_bits(
    job_server: str, start_process: Start, warm_jobs: Jobs, tmp_path: Path
) -> None:
    history = sales(600)
    there, here = (Bench(start_process, warm_jobs, tmp_path / name) for name in ("flink", "here"))
    there.publish(outgoing(history.slice(0, 300)))
    job = there.stream("--runner", "flink", "--job-endpoint", job_server)
    there.publish(outgoing(history.slice(300)))

    here.publish(outgoing(history))
    in_process = here.stream()
    for bench in (here, there):
        wait_until(partial(has_predicted_all, bench, history), 90, "every sale is predicted")
    in_process.drain()
    totals = job.drain()
    assert (totals["received"], totals["outcomes"]) == (600, {"predicted": 450, "folded": 150})
    assert predictions(there) == predictions(here)
    assert len(predictions(there)) == len(there.received["predictions"]) == 450
    report = verify(app, there.archive)
    assert (report.events, report.predictions, report.mismatches) == (600, 450, 0)
    again = there.stream()  # what the job on Flink acknowledged does not come again, and its archive goes on here
    assert again.drain()["received"] == 0
    for bench in (here, there):
        bench.close()
