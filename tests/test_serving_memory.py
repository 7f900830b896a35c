"""Memory of the model server stays as it is: over some thousands of requests, and in a soak over a million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.processes import Started
from tests.serving_models import put

ROOT = Path(__file__).resolve().parent.parent
PARTS = 3
CLIENTS = 16
# Pools and caches fill in the first part. What comes after it may grow by so much, and by so much a request.
SLACK_BYTES = 8 * 2**20
BYTES_PER_REQUEST = 10


def ask(target: str, count: int) -> None:
    """Predict calls of one row each, from a process of their own."""
    arguments = json.dumps({"target": target, "count": count, "seconds": 0, "clients": CLIENTS, "inputs": 1})
    subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.serving_load", "concurrent", arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("requests", "batching"),
    [
        (3_000, "true"),
        pytest.param(1_000_000, "true", marks=pytest.mark.soak),
        pytest.param(1_000_000, "false", marks=pytest.mark.soak),
    ],
)
def test_memory_is_flat(start_process: Callable[..., Started], tmp_path: Path, requests: int, batching: str) -> None:
    put("half_plus_two", tmp_path, 1)
    server = start_process(
        ["-m", "serving.server", "--port=0", "--model_name=m", f"--model_base_path={tmp_path}",
         f"--enable_batching={batching}"], ready="listening on",
    )  # fmt: skip
    process = psutil.Process(server.process.pid)
    sizes = []
    for _ in range(PARTS):
        ask(server.line.split()[-1], requests // PARTS)
        sizes.append(process.memory_info().rss)
    print(f"{requests} requests, batching {batching}: {[size >> 10 for size in sizes]} KiB")
    assert sizes[-1] - sizes[0] < SLACK_BYTES + BYTES_PER_REQUEST * requests, server.tail()
