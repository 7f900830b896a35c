"""The streaming job on a Flink cluster of processes: a kill, a savepoint, held outputs; the same bits as in process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from batch.verify import verify
from streaming.archive import read_commits
from tests import histories
from tests.faults.jobs import Job, Jobs
from tests.flink_cluster import FETCH_S, FlinkCluster, flink_cluster
from tests.processes import REPOSITORY, Started, wait_until
from tests.shop.app import app
from tests.test_streaming import Bench, outgoing, sale_ids
from tests.test_verify import sales

Start = Callable[..., Started]

DOCUMENT = REPOSITORY / "docs" / "flink.md"
COME_BACK_S = 300
ROWS = 800


def documented() -> tuple[list[str], list[str]]:
    """From docs/flink.md, the options of the cluster and of the job on it."""
    found = re.search(r"<!-- run by tests/test_flink.py -->\n```sh\n(.*)\n(.*)\n```", DOCUMENT.read_text("utf-8"))
    assert found is not None
    started, submitted = (line.split() for line in found.groups())
    assert started[:3] == [".venv/bin/python", "-m", "deploy.flink.cluster"]
    assert submitted[:2] == [".venv/bin/sameriver", "stream"]
    return started[3:], submitted[2:]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with flink_cluster(tmp_path_factory.mktemp("cluster"), documented()[0]) as cluster:
        yield cluster


def newest_revisions(bench: Bench) -> dict[str, dict[str, Any]]:
    """By event the prediction of the highest revision."""
    newest: dict[str, tuple[int, bytes]] = {}
    for message in bench.take("predictions"):
        told = int(message.attributes.get("revision", 0)), message.data
        of = message.attributes["event_id"]
        newest[of] = max(newest.get(of, told), told)
    return {of: json.loads(data) for of, (_, data) in newest.items()}


def archived_predictions(archive: Path) -> dict[str, float]:
    return {
        row["event_id"]: row["prediction.big_sale.probability"]
        for commit in read_commits(archive)
        for row in commit.block.to_pylist()
        if row["outcome"] == "predicted"
    }


def metrics(job: Job) -> set[str]:
    """The lines of what the job tells Prometheus."""
    return set(httpx.get(f"{job.wait_ready()['monitoring']}/metrics", timeout=120).text.splitlines())


@pytest.mark.timeout(FETCH_S + 3 * COME_BACK_S)
def test_a_kill_a_savepoint_and_held_outputs(
    cluster: FlinkCluster, start_process: Start, warm_jobs: Jobs, tmp_path: Path
) -> None:
    bench, history = Bench(start_process, warm_jobs, tmp_path), sales(ROWS + 200)
    messages = outgoing(history)
    parts = [messages[:400], messages[400:ROWS], messages[ROWS:]]

    def progress(job: Job, before: int) -> int:
        wait_until(partial(bench.has_archived_more_than, before), COME_BACK_S, "rows are archived")
        assert job.code is None, job.log.read_text("utf-8")
        return bench.archived_rows()

    bench.publish(parts[0])
    job = bench.stream(*documented()[1], *cluster.options, "--checkpoint-ms=500")
    archived = progress(job, 0)
    bench.publish(parts[1][:200])
    cluster.kill("task-manager")  # tests/test_flink_faults.py kills every other part
    bench.publish(parts[1][200:])
    progress(job, archived)
    first = history.slice(0, ROWS)
    wait_until(lambda: bench.ids() == sale_ids(first), COME_BACK_S, "every sale is predicted")
    counted = f'sameriver_events_total{{end="predicted"}} {ROWS * 3 // 4}.0'
    wait_until(lambda: {counted, "sameriver_ready 1.0"} <= metrics(job), COME_BACK_S, "the metrics count every sale")
    assert "sameriver_flink_restores_total 0.0" not in metrics(job)
    totals = job.drain(timeout_s=COME_BACK_S)
    assert totals["outcomes"] == {"predicted": ROWS * 3 // 4, "folded": ROWS // 4}
    revisions = newest_revisions(bench)
    assert {of: one["outputs"]["probability"] for of, one in revisions.items()} == archived_predictions(bench.archive)

    again = bench.stream(*cluster.options, "--checkpoint-ms=500", "--outputs=checkpoint")  # from the savepoint
    bench.publish(parts[2])
    wait_until(lambda: bench.ids() == sale_ids(history), COME_BACK_S, "every sale is predicted")
    assert again.drain(timeout_s=COME_BACK_S)["received"] == 200
    report = verify(app, bench.archive)
    assert (report.events, report.predictions, report.mismatches) == (ROWS + 200, (ROWS + 200) * 3 // 4, 0)
    bench.close()


def rows_of(out: Path) -> bytes | list[dict[str, Any]]:
    """What a batch job wrote: a file's bytes, or the rows of a folder's tables."""
    if out.is_file():
        return out.read_bytes()
    tables = [pq.read_table(path, partitioning=None) for path in sorted(out.rglob("*.parquet"))]
    rows: list[dict[str, Any]] = [row for table in tables for row in table.to_pylist()]
    assert rows
    return sorted(rows, key=repr)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("command", "source", "more"),
    [
        ("traindata", "--history", []),
        ("backfill", "--source", []),
        ("snapshot", "--source", ["--at=2023-11-14T22:20:00", "--collect"]),
    ],
)
def test_batch_jobs_on_the_cluster_write_what_they_write_in_process(
    cluster: FlinkCluster, warm_jobs: Jobs, tmp_path: Path, command: str, source: str, more: list[str]
) -> None:
    history = histories.write(tmp_path / "history", sales(ROWS), row_group_rows=200)
    places = [f"--beam=--job_endpoint={cluster.places['job-endpoint']}"]
    places += [f"--beam=--environment_config={cluster.places['worker-pool']}"]
    written = []
    for name, runner in (("here", []), ("there", ["--runner=flink", *places])):
        out = tmp_path / f"{name}.out"
        given = [command, "--app=tests/shop", f"{source}={history}", f"--out={out}", *more, *runner, "--json"]
        job = warm_jobs.start(given)
        assert job.wait(2 * COME_BACK_S) == 0, job.log.read_text("utf-8")
        written.append(rows_of(out))
    assert written[0] == written[1]
