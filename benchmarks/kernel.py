"""`sameriver bench kernel`: the feature kernel by itself, against Polars and DuckDB, in one run.

Medians of repetitions that take turns. Everyone computes the case of `benchmarks.positions` from the same rows, in
a process of its own, with two threads; reading the rows is not timed for anyone; the results are compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contenders import THREADS, Task, command
from benchmarks.positions import ROWS
from shared_features.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-6
_SMALL_WEIGHT = 8
FEWEST_ROWS, FEWEST_REPEATED = 10_000, 1_000_000

# Who runs when, so that a machine that grows slower or faster does so for all; DuckDB, the slowest, runs twice.
TURNS = ("polars", "sameriver", "duckdb", "polars", "sameriver", "duckdb", "polars", "sameriver")
ONCE = ("polars", "duckdb", "sameriver")

TARGETS: dict[str, tuple[str, float]] = {
    "ratio_polars": (">=", 3.0),
    "ratio_duckdb": (">=", 10.0),
    "peak_rss_mb": ("<=", 3000.0),
    "us_per_event_live": ("<=", 150.0),
    "rows_per_s_blocks_of_1000": (">=", 1_000_000.0),
    "growth_ratio": ("<=", 11.0),
    "hot_key_ratio": ("<=", 2.0),
    "late_ratio": ("<=", 2.0),
}
"""What is aimed at, by the name in the result. A target that is missed is told and is no failure."""

Progress = Callable[[float, str], None]


def run(*, rows: int = ROWS, progress: Progress | None = None) -> dict[str, Any]:
    """Measure everything; about 6 minutes for all ``rows`` on 2 cores.

    Args:
        rows: positions in the day; fewer make it shorter, and the targets are meant for all. Below a million,
            everything runs once.
        progress: called with the share done and the step at work.

    Raises:
        ConfigurationError: Polars or DuckDB is missing, ``rows`` is too few, or a process failed.
    """
    missing = [name for name in ("polars", "duckdb") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"bench kernel compares with Polars and DuckDB, and {' and '.join(missing)} cannot be imported: "
            "pip install polars duckdb"
        )
    if rows < FEWEST_ROWS:
        raise ConfigurationError(f"bench kernel got {rows:,} rows, wanted {FEWEST_ROWS:,} or more: give more --rows")
    begin, where = time.monotonic(), machine()
    with tempfile.TemporaryDirectory(prefix="sameriver-bench-") as folder:
        whole, parts = _measure(Path(folder), rows, progress)
    return {
        **_result(rows, whole, parts),
        "rows": rows,
        "machine": where,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _measure(
    folder: Path, rows: int, progress: Progress | None
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """All processes, one after the other: the runs of each contender, and what `smaller` found."""
    file, every = folder / "positions.arrow", max(1, rows // 20_000)
    turns, repetitions = (TURNS, 3) if rows >= FEWEST_REPEATED else (ONCE, 1)
    weights = {"sameriver": 2, "polars": 2, "duckdb": 4}
    whole = 1 + sum(weights[turn] for turn in turns) + _SMALL_WEIGHT
    say = progress or _silent
    say(0.0, f"generating {rows:,} positions")
    _run(Task("generate", str(file), rows))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    done = 1
    for i, turn in enumerate(turns):
        last = i == len(turns) - 1
        say(done / whole, f"{turn}, run {len(runs[turn]) + 1}{', then shorter cases and each aggregate' * last}")
        sample = "" if runs[turn] else str(folder / f"{turn}.npy")
        runs[turn].append(
            _run(Task(turn, str(file), rows, sample, every, live=turn == "sameriver", small=repetitions * last))
        )
        done += weights[turn]
    rest: dict[str, Any] = runs["sameriver"][-1]["small"]
    ours = np.load(folder / "sameriver.npy")
    rest["compared"] = ours.shape[0]
    rest["differences"] = {name: difference(ours, np.load(folder / f"{name}.npy")) for name in ("polars", "duckdb")}
    return runs, rest


def _silent(done: float, step: str) -> None:
    """Progress that nobody asked for."""


def _run(task: Task) -> dict[str, Any]:
    """Do a task in a process of its own; what it printed."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command(task), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigurationError(
            f"bench kernel: {task.task} over {task.rows:,} rows ended with {done.returncode}, wanted 0: if memory ran "
            "out (-9; all rows want 6 GB), give fewer --rows"
        )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def difference(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """The largest difference of any feature of any row; None if one has a value where the other has none."""
    if ours.shape != theirs.shape or bool((np.isnan(ours) != np.isnan(theirs)).any()):
        return None
    return float(np.nanmax(np.abs(ours - theirs)))


def _result(rows: int, runs: dict[str, list[dict[str, Any]]], rest: dict[str, Any]) -> dict[str, Any]:
    """The figures, by the names that ``--json`` promises."""
    seconds = {name: median(one["seconds"] for one in taken) for name, taken in runs.items()}
    memory = {name: round(max(one["peak_rss_mb"] for one in taken)) for name, taken in runs.items()}
    live = {name: median(one[name] for one in runs["sameriver"]) for name in _LIVE}
    small, tenth = rest["seconds"], rest["rows"]
    figures: dict[str, Any] = {
        "rows_per_s": round(rows / seconds["sameriver"]),
        "rows_per_s_polars": round(rows / seconds["polars"]),
        "rows_per_s_duckdb": round(rows / seconds["duckdb"]),
        "ratio_polars": round(seconds["polars"] / seconds["sameriver"], 2),
        "ratio_duckdb": round(seconds["duckdb"] / seconds["sameriver"], 2),
        "peak_rss_mb": memory["sameriver"],
        "peak_rss_mb_polars": memory["polars"],
        "peak_rss_mb_duckdb": memory["duckdb"],
        **{name: round(value, 1) for name, value in live.items()},
        "growth_ratio": round(seconds["sameriver"] / small["mixed"] * tenth * 10 / rows, 2),
        "hot_key_ratio": round(small["hot"] / small["uniform"], 2),
        "late_ratio": round(small["late"] / small["mixed"], 2),
        "rows_per_s_tenth": round(tenth / small["mixed"]),
        "rows_per_s_measure_speed": round(tenth / small["measure_speed"]),
    }
    met = {
        name: (figures[name] >= aim) if side == ">=" else (figures[name] <= aim)
        for name, (side, aim) in TARGETS.items()
    }
    differences = rest["differences"]
    return figures | {
        "results_agree": all(found is not None and found <= TOLERANCE for found in differences.values()),
        "largest_difference": differences,
        "rows_compared": rest["compared"],
        "targets": {name: {"target": f"{side} {aim:,.0f}", "met": met[name]} for name, (side, aim) in TARGETS.items()},
        "aggregates": rest["aggregates"],
        "cpu_s": {name: round(median(one["cpu_seconds"] for one in taken), 3) for name, taken in runs.items()},
        "runs_s": {name: [round(one["seconds"], 3) for one in taken] for name, taken in runs.items()},
    }


_LIVE = ("us_per_event_live", "us_per_event_live_p99", "rows_per_s_blocks_of_1000", "events_live", "keys_live")


def machine() -> dict[str, Any]:
    """Where and with what it is measured, and what else the machine does (processes that run, over a minute)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    packages = ("numpy", "numba", "pyarrow", "polars", "duckdb")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": THREADS,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def report(result: dict[str, Any]) -> None:
    """Print the result for people."""
    from benchmarks.kernel_report import show

    show(result)
