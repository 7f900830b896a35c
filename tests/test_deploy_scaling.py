"""The scaling plan: its command runs, its document has its tables, its simulation agrees with the formulas."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import scaling, scaling_plan
from benchmarks.scaling_plan import CASES, Measured, Prices
from tests import repository

PAGE = repository.text(Path("docs/scaling.md"))


def test_the_command_runs_and_the_document_has_its_tables() -> None:
    command = [sys.executable, "-m", "benchmarks.scaling", "--markdown"]
    done = subprocess.run(command, cwd=repository.ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for table in done.stdout.strip().split("\n\n"):
        assert table in PAGE
    for line in re.findall(r"^python -m .*$", PAGE, re.MULTILINE):
        assert set(line.split()[3:]) <= {"--markdown", "--json"}


def test_what_goes_in_is_said() -> None:
    measured, prices = Measured(), Prices()
    values = [
        f"{measured.job_us} µs", f"{measured.models_us} µs", f"{measured.broker_us} µs", f"{measured.fold_us} µs",
        f"{measured.flink_us:.1f} µs", f"{measured.single_us:.1f} µs", f"{measured.writer_us / 2} µs",
        f"{measured.piece_us:.0f} µs", f"{measured.state_bytes:.0f} bytes", f"{measured.identity_bytes:.0f} bytes",
        f"{measured.archive_bytes:.0f} bytes", f"{measured.gateway_per_s:,.0f}", f"{measured.log_bytes:.0f} in the log",
        f"{measured.compaction_us:.1f} µs",
        f"${prices.pubsub_tib:.0f} per TiB", f"${prices.core_hour} an hour", f"${prices.bigquery_write_gb} per GB",
    ]  # fmt: skip
    assert [value for value in values if value not in PAGE] == []


def test_the_simulation_agrees_with_the_formula() -> None:
    """Pollaczek and Khinchine's mean wait, for times of service that are all the same."""
    random = np.random.default_rng(7)
    for load in (0.3, 0.6, 0.8):
        found = scaling.queue(load, 0.0026, 400_000, random)
        assert found["mean_ms"] == pytest.approx(found["formula_ms"], rel=0.05)


def test_each_limit_is_met_by_what_it_is_about() -> None:
    measured, case = Measured(), CASES["1 billion"]

    def first(**changed: Any) -> str:
        found = scaling_plan.limits(replace(case, **changed), measured)
        return next(limit.name for limit in found if "gateway" not in limit.name)

    assert first(jobs=64, hot_share=1.0) == "the busiest key's core"
    assert first(window_days=30.0) == "memory of a job"
    assert first(horizon_days=7.0, window_days=0.1) == "restart of a job"
    assert first(block_events=1) == "pieces of blocks"
    assert first(window_days=0.001, horizon_days=0.001, event_bytes=2_000.0) == "a stream of Pub/Sub, 10 MB/s"
    assert first(window_days=0.001, horizon_days=0.001) == "cores of a job"


def test_a_hot_key_shows_in_the_queue_of_its_shard() -> None:
    measured, random = Measured(), np.random.default_rng(7)
    case = replace(CASES["100 billion"], jobs=8)
    even = scaling.hot_shard(replace(case, hot_share=0.0), measured, 5.0, random)
    hot = scaling.hot_shard(replace(case, hot_share=0.1), measured, 5.0, random)
    assert hot["load_of_the_busiest"] > 0.85 > 2 * even["load_of_the_busiest"]
    assert hot["busiest_p99_ms"] > 5 * even["busiest_p99_ms"]
    assert hot["others_p99_ms"] <= even["others_p99_ms"]


def test_everything_is_there_for_machines() -> None:
    found = json.loads(json.dumps(scaling.plan(number=1_000)))
    assert set(found["cases"]) == set(CASES)
    assert found["cases"]["22 million"]["cores"] == 2
