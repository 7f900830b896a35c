"""`sameriver bench serving`: what it promises to measure, and what it says of it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.serving_load import concurrent
from tests.processes import REPOSITORY, Started
from tests.serving_models import put

PROMISED = [
    "ratio_in_process",
    "p50_extra_ms",
    "rest_p99_ms",
    "batching_gain",
    "reload_p99_ratio",
    "start_s",
    "rss_growth_bytes_per_request",
]
GATEWAY = ["gateway_p50_ms", "gateway_p99_ms", "gateway_qps"]


def test_targets_that_are_missed_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"cores": 2, "ratio_in_process": 0.74, "batching_gain": 3.0, "start_s": 15.5, "rows_per_s": 1234.5}
    result = serving.finished(figures)
    assert result["missed"] == ["ratio_in_process", "start_s"]
    assert result["targets"] == {"ratio_in_process": ">= 0.75", "start_s": "<= 15", "batching_gain": ">= 3"}
    serving.report(result)
    said = {words[0]: words[1:] for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert said["ratio_in_process"][-1] == said["start_s"][-1] == "missed"
    assert said["batching_gain"] == ["3", ">=", "3", "met"]
    assert said["rows_per_s"] == ["1,234.5"]


def test_its_clients_count_and_time_what_is_answered(start_process: Callable[..., Started], tmp_path: Path) -> None:
    put("half_plus_two", tmp_path, 1)
    server = start_process(
        ["-m", "serving.server", "--port=0", "--model_name=m", f"--model_base_path={tmp_path}"], ready="listening on"
    )
    target = server.line.split()[-1]
    assert concurrent(target, 0, clients=3, count=20, inputs=1)["count"] >= 20
    found = concurrent(target, 1.0, clients=3, inputs=1)
    assert found["per_s"] == found["count"] / 1.0 > 0
    assert found["p99_ms"] >= found["p50_ms"] > 0


@pytest.mark.soak
@pytest.mark.tensorflow
def test_a_short_run_measures_everything() -> None:
    command = [sys.executable, "-m", "cli", "bench", "serving", "--seconds", "0.3", "--rounds", "1", "--json"]
    done = subprocess.run([*command, "--requests", "400"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in PROMISED + GATEWAY[:2] if not math.isfinite(result[name])] == []
    assert set(result["gateway_qps"]) == {"1", "64", "256"}
    assert set(result["targets"]) == set(serving.TARGETS)
