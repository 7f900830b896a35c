"""The demo from nothing: real processes, figures from official clients, and the promises it must show."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from apps.flights.app import app
from batch.skew import training_rows
from batch.verify import same_bits
from commands.replay import read_history, warm_up_us
from shared_features.plan import make_plan
from streaming.archive import read_commits
from streaming.messages import prediction_ids
from tests import processes
from tests.processes import REPOSITORY, Started
from tests.test_readme import README, block, start_up

DEMO_S = 1_500
"""On a machine with better things to do; alone it is a minute."""

pytestmark = pytest.mark.timeout(DEMO_S)  # the first of them runs the demo

WANTED = (
    "events predictions dead_letters duplicates late lost events_per_s p50_ms p99_ms auc mismatches training_mismatches"
)


@dataclass(frozen=True)
class QuickDemo:
    """What `sameriver demo --quick` printed and left.

    Attributes:
        folder: where it ran; it holds ``var``.
        lines: standard output and standard error.
        result: the last line.
    """

    folder: Path
    lines: list[str]
    result: dict[str, Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> QuickDemo:
    """Run from nothing, once for all that look at what it leaves."""
    folder = tmp_path_factory.mktemp("demo")
    command: list[str | Path] = ["-m", "cli", "demo", "--quick", "--json", "--picture", folder / "demo.svg"]
    process = processes.start(command, cwd=folder, env={"PUBSUB_EMULATOR_HOST": None})
    try:
        assert process.wait(DEMO_S) == 0, process.tail()
    finally:
        process.kill()
    return QuickDemo(folder, process.lines, json.loads(process.lines[-1]))


def test_nothing_is_lost_and_nothing_differs(demo: QuickDemo) -> None:
    result = demo.result
    assert set(WANTED.split()) <= set(result)
    assert (result["lost"], result["mismatches"], result["training_mismatches"], result["dead_letters"]) == (0, 0, 0, 0)
    assert result["predictions"] == result["to_predict"] > 3_000
    assert result["not_acknowledged"] == 0


def test_the_job_was_killed_with_work_in_flight(demo: QuickDemo) -> None:
    """Its log of the first life ends without a word, and the second came back from the archive."""
    result = demo.result
    assert result["restarts"] == 1
    assert result["in_flight_at_kill"] > 0
    assert result["outage_s"] > 0
    (logs,) = (demo.folder / "var" / "demo").glob("run-*/logs")
    assert sorted(path.name for path in logs.glob("streaming-job*")) == ["streaming-job-2.log", "streaming-job.log"]
    assert result["job"]["received"] < result["events"]  # what the second life counted


def test_late_and_repeated_events_are_there_as_asked_for(demo: QuickDemo) -> None:
    result = demo.result
    measured = result["events"] - result["sent_twice"] - result["warm_up_events"]
    assert result["late"] == round(0.05 * measured)
    assert result["sent_twice"] == round(0.01 * measured)
    assert result["duplicates"] >= result["sent_twice"]  # more, if the kill came between commit and acknowledgement
    assert result["verify"]["training_compared"] > 1_000


def test_the_account_of_the_archive_is_the_same(demo: QuickDemo) -> None:
    """received = predicted + folded + duplicates + dead letters (contract C6), by commit records alone."""
    (run,) = (demo.folder / "var" / "demo").glob("run-*")
    received = duplicates = rows = 0
    outcomes: dict[str, int] = {}
    for commit in read_commits(run / "archive"):
        received += commit.counts["received"]
        duplicates += commit.counts["duplicates"]
        rows += commit.block.num_rows
        for outcome, count in commit.counts["outcomes"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + count
    assert received == rows + duplicates
    come_again = received - demo.result["events"]
    assert come_again == duplicates - demo.result["sent_twice"] >= 0
    assert sum(outcomes.values()) == rows
    assert outcomes["predicted"] == demo.result["predictions"]


def test_figures_are_sane(demo: QuickDemo) -> None:
    result = demo.result
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert result["events_per_s"] > 0
    assert 0.85 < result["auc"] < 1
    assert 0.85 < result["auc_live"] < 1
    assert result["outcomes_known"] > 1_000


def test_it_says_what_it_does(demo: QuickDemo) -> None:
    text = "\n".join(demo.lines)
    for word in ("328,521 departed", "test AUC", "features compared bit for bit", "to the last bit"):
        assert word in text


def test_the_picture_is_a_frame_of_it(demo: QuickDemo) -> None:
    picture = (demo.folder / "demo.svg").read_text()
    assert picture.startswith("<svg")
    for word in ("sameriver&#160;demo", "latency&#160;p99", "✓"):
        assert word in picture


def test_verify_runs_again_on_what_the_demo_left_and_finds_damage(demo: QuickDemo, tmp_path: Path) -> None:
    """The archive is all it needs; other definitions in the archive's name are refused, exit code 2."""
    (run,) = (demo.folder / "var" / "demo").glob("run-*")
    command = [sys.executable, "-P", "-m", "cli", "verify", "--archive", str(run / "archive"), "--json"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["mismatches"] == 0
    assert report["features"] == demo.result["verify"]["features"]


def test_why_shows_what_made_a_prediction_of_the_demo(demo: QuickDemo, tmp_path: Path) -> None:
    """Of the last reaction: features to the bit, and the very version of the model, loaded again, within 1e-6."""
    (run,) = (demo.folder / "var" / "demo").glob("run-*")
    blocks = [commit.block for commit in read_commits(run / "archive") if commit.block.num_rows]
    fired = [block.filter(block.column("reaction.rebook")) for block in blocks]
    row = [block for block in fired if block.num_rows][-1].slice(0, 1)
    version = row.column("version.wide_and_deep")[0].as_py()
    fingerprint = app.fingerprint
    (prediction_id,) = prediction_ids(
        row, app=app.name, fingerprint=fingerprint, model="wide_and_deep", model_version=version
    ).to_pylist()
    command = [sys.executable, "-P", "-m", "cli", "why", prediction_id, "--archive", str(run / "archive"), "--json"]
    command += ["--models", str(demo.folder / "var" / "models" / "flights")]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    (prediction,) = told["predictions"]
    assert (told["same"], prediction["same"], prediction["version"]) == (True, True, version)
    assert prediction["outputs"][0]["again"] > 0.8
    assert told["reactions"] == ["rebook"]
    assert set(prediction["tensors"]) == set(app.features)
    assert prediction["tensors"]["carrier"]["values"] == [row.column("departed.carrier")[0].as_py()]
    (contributions,) = prediction["contributions"]["outputs"]
    summed = contributions["base"] + sum(one["contribution"] for one in contributions["features"])
    assert summed == pytest.approx(contributions["prediction"], abs=1e-9)
    assert contributions["prediction"] == pytest.approx(prediction["outputs"][0]["served"], abs=1e-6)
    assert (contributions["rows"], contributions["features"][0]["feature"]) == (256, "departure_delay")
    delays = next(one for one in told["windows"] if "origin_delay_mean_1h" in one["features"])
    served = {one["feature"]: one["served"] for one in told["features"]}
    assert len(delays["events"]) == served["origin_departures_1h"] > 0


def test_the_model_of_the_demo_is_judged_beside_baselines_and_the_rule(demo: QuickDemo, tmp_path: Path) -> None:
    """On one month for training and one for testing: the whole year takes the baselines half a minute."""
    rows, ours = demo.folder / "var" / "training" / "flights", tmp_path / "rows"
    for name in ("train/2013-06.parquet", "validate/2013-10.parquet", "test/2013-11.parquet"):
        (ours / name).parent.mkdir(parents=True)
        shutil.copy(rows / name, ours / name)
    command = [sys.executable, "-P", "-m", "cli", "evaluate", "--rows", str(ours), "--json"]
    command += ["--resamples", "20", "--importance-rows", "200"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=demo.folder, env=environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    auc = {model["name"]: model["auc"] for model in report["models"]}
    assert set(auc) == {"wide_and_deep", "departure_delay alone", "HistGradientBoosting", "late_at_departure"}
    assert auc["wide_and_deep"] > auc["departure_delay alone"] > auc["late_at_departure"]
    assert [Path(file).suffix for file in report["files"]] == [".json", ".png", ".html"]
    assert all((demo.folder / file).is_file() for file in report["files"])


def test_what_verify_compares_with_are_the_rows_that_the_model_was_trained_by(demo: QuickDemo) -> None:
    """`verify` folds a stretch of history; `traindata` folded the year. The rows are the same to the bit."""
    var = demo.folder / "var"
    since_us, until_us = (int(datetime(2013, 11, day, tzinfo=UTC).timestamp()) * 1_000_000 for day in (1, 4))
    block = read_history(app, var / "history" / "flights", since_us - 2 * warm_up_us(app), until_us)
    stretch = training_rows(make_plan(app), block, since_us).features
    row_of = {event_id: row for row, event_id in enumerate(stretch.column("event_id").to_pylist())}
    year = pq.read_table(var / "training" / "flights" / "test" / "2013-11.parquet").combine_chunks()
    mine = pc.less(year["event_time"].cast(pa.int64()), until_us)
    year = year.filter(mine).combine_chunks()
    rows = pa.array([row_of[event_id] for event_id in year["event_id"].to_pylist()])
    assert len(rows) > 2_000
    for name in app.features:
        ours = stretch.column(f"feature.{name}").take(rows)
        assert same_bits(year[name].combine_chunks(), ours).all(), name


def test_retraining_finds_what_the_demo_has_made(demo: QuickDemo, tmp_path: Path) -> None:
    """Data is checked, rows and model are found by what they were made of, and the version that predicts stays."""
    models = tmp_path / "models"
    shutil.copytree(demo.folder / "var" / "models" / "flights", models)
    command = [sys.executable, "-m", "cli", "retrain", "--app", "flights", "--quick", "--json"]
    command += ["--models", str(models), "--reports", str(tmp_path / "reports")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=demo.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    steps = {step["step"]: step["outcome"] for step in result["steps"]}
    assert steps == {
        "data": "done",
        "traindata": "found",
        "champion": "done",
        "train": "found",
        "promote": "found",
    }
    assert (result["promoted"], result["version"], result["champion"], result["gate"]) == (True, 1, 1, None)
    state = json.loads((models / "wide_and_deep" / "promotion.json").read_text())["present"]
    assert (state["champion"], state["stage"], state["candidate"]) == (1, "full", None)


def test_the_publisher_and_the_consumer_of_the_readme_meet(
    demo: QuickDemo, start_process: Callable[..., Started], tmp_path: Path
) -> None:
    """As second and third processes, with Google's own client, against `sameriver up --app flights`."""
    models = demo.folder / "var" / "models" / "flights"
    process, ready, environment = start_up(start_process, tmp_path, "--app", "flights", "--models", str(models))
    assert ready["model_server"].startswith("127.0.0.1:")
    for name in ("flights-events", "flights-predictions", "flights-reaction-rebook", "flights-dead-letters"):
        assert name in README
        assert name in ready["topics"].values()
    for name, word in (("consumer", "def show"), ("publisher", "departed_at")):
        code = block("python", word)
        assert len([line for line in code.splitlines() if line.strip()]) <= 15
        (tmp_path / f"{name}.py").write_text(code)
    consumer = start_process([str(tmp_path / "consumer.py")], ready="waiting", env=environment)
    assert start_process([str(tmp_path / "publisher.py")], env=environment).wait() == 0
    event_id, probability = consumer.wait_for_line("UA1-EWR-today-departed").split()
    assert event_id == "UA1-EWR-today-departed"
    assert 0.5 < float(probability) < 1  # it left 40 minutes late
    os.kill(process.process.pid, signal.SIGINT)
    assert process.wait() == 0
