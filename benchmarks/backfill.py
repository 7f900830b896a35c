"""`sameriver bench backfill`: a day of positions from Parquet to features in Parquet, beside what its parts cost alone.

The job reads, checks, removes duplicates, shuffles by key, folds and writes. It is measured against the kernel's own
time and the time that pyarrow takes to read and to write the same files, one after the other; every row of both
results is compared. Then twice the rows, a second day; and `verify` over an archive of such rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.backfill_tasks import Task, command
from benchmarks.kernel import ROOT, machine
from benchmarks.positions import ROWS
from shared_features.errors import ConfigurationError

VERIFIED_ROWS = 1_000_000
FEWEST_ROWS = 10_000

TARGETS: dict[str, tuple[str, float]] = {
    "ratio_kernel_plus_io": ("<=", 1.5),
    "peak_rss_mb": ("<=", 3000.0),
    "growth_ratio": ("<=", 2.2),
    "verify_rows_per_min": (">=", 1_000_000.0),
}
"""What is aimed at, by the name in the result. A target that is missed is told and is no failure."""

Progress = Callable[[float, str], None]


def run(*, rows: int = ROWS, progress: Progress | None = None) -> dict[str, Any]:
    """Measure everything; about 5 minutes and 6 GB of disk for all ``rows`` on 2 cores.

    Args:
        rows: positions of a day; the targets are meant for all.
        progress: called with the share done and the step at work.

    Raises:
        ConfigurationError: ``rows`` is too few, or a process failed.
    """
    if rows < FEWEST_ROWS:
        raise ConfigurationError(f"bench backfill got {rows:,} rows, wanted {FEWEST_ROWS:,} or more: give more --rows")
    say = progress or _silent
    begin, where = time.monotonic(), machine()
    with tempfile.TemporaryDirectory(prefix="sameriver-bench-") as name:
        folder = Path(name)
        day, days = str(folder / "day.parquet"), str(folder / "days.parquet")
        say(0.0, f"generating {rows:,} and {2 * rows:,} positions")
        _run(Task("generate", day, rows=rows))
        _run(Task("generate", days, rows=rows, days=2))
        say(0.2, "kernel, reading and writing by themselves")
        plain = _run(Task("plain", day, str(folder / "plain" / "rows.parquet")))
        say(0.4, f"backfill of {rows:,} rows")
        one = _run(Task("backfill", day, str(folder / "one")))
        say(0.55, f"backfill of {2 * rows:,} rows")
        two = _run(Task("backfill", days, str(folder / "two")))
        say(0.9, "verify")
        verified = _run(Task("verify", day, str(folder / "archive"), rows=min(rows, VERIFIED_ROWS)))
    return {
        **_result(plain, one, two, verified),
        "machine": where,
        "seconds": round(time.monotonic() - begin, 1),
    }


def _result(
    plain: dict[str, Any], one: dict[str, Any], two: dict[str, Any], verified: dict[str, Any]
) -> dict[str, Any]:
    """The figures, by the names that ``--json`` promises."""
    parts = {name: round(plain[name]["seconds"], 3) for name in ("read", "kernel", "write")}
    figures: dict[str, Any] = {
        "rows_per_s": round(one["rows"] / one["seconds"]),
        "ratio_kernel_plus_io": round(one["seconds"] / sum(parts.values()), 3),
        "peak_rss_mb": round(max(one["peak_rss_mb"], two["peak_rss_mb"])),
        "growth_ratio": round(two["seconds"] / one["seconds"], 3),
        "verify_rows_per_min": round(verified["rows"] / verified["seconds"] * 60),
    }
    met = {
        name: (figures[name] >= aim) if side == ">=" else (figures[name] <= aim)
        for name, (side, aim) in TARGETS.items()
    }
    return figures | {
        "rows": one["rows"],
        "results_agree": plain["checksum"] == one["checksum"] and not verified["mismatches"],
        "rows_added_again": one["rows_added_again"] + two["rows_added_again"],
        "targets": {name: {"target": f"{side} {aim:,.1f}", "met": met[name]} for name, (side, aim) in TARGETS.items()},
        "parts_s": parts,
        "backfill_s": {"one": round(one["seconds"], 3), "two": round(two["seconds"], 3)},
        "backfill_cpu_s": {"one": round(one["cpu_seconds"], 3), "two": round(two["cpu_seconds"], 3)},
        "seconds_again": round(one["seconds_again"], 3),
        "peak_rss_mb_each": {"plain": round(plain["peak_rss_mb"]), "one": round(one["peak_rss_mb"])}
        | {"two": round(two["peak_rss_mb"]), "verify": round(verified["peak_rss_mb"])},
    }


def _run(task: Task) -> dict[str, Any]:
    """Do a task in a process of its own; what it printed."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command(task), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigurationError(
            f"bench backfill: {task.task} ended with {done.returncode}, wanted 0: if memory ran out (-9), give fewer "
            "--rows"
        )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def report(result: dict[str, Any]) -> None:
    """Print the result for people."""
    from rich.console import Console
    from rich.table import Table

    shown = {
        "rows_per_s": "rows a second, from Parquet to Parquet",
        "ratio_kernel_plus_io": "time / (kernel + reading + writing)",
        "peak_rss_mb": "peak memory, MB",
        "growth_ratio": "time for twice the rows / for the rows",
        "verify_rows_per_min": "rows that verify checks in a minute",
    }
    table = Table(f"{result['rows']:,} positions, mean and deviation over six windows", "measured", "target", "")
    for name, what in shown.items():
        target = result["targets"].get(name)
        verdict = "" if target is None else "[green]met[/]" if target["met"] else "[red]missed[/]"
        table.add_row(what, f"{result[name]:,}", "" if target is None else target["target"], verdict)
    console = Console()
    console.print(table)
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result["parts_s"].items())
    console.print(f"By themselves: {parts}; the job: {result['backfill_s']['one']:.1f} s.")
    verdict = "are the same, bit for bit" if result["results_agree"] else "[red]differ[/]"
    console.print(f"All rows of both {verdict}; a second run added {result['rows_added_again']} rows.")


def _silent(done: float, step: str) -> None:
    """Progress that nobody asked for."""
