"""Every figure that README quotes: the demo from nothing, the evaluation of the model it made, the benchmarks.

python benchmarks/figures.py             prints the table, about 10 minutes on 2 cores
python benchmarks/figures.py --write     also puts it into README.md, between its two marks
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def run(folder: Path, *command: str) -> dict[str, Any]:
    """Run a `sameriver` command in ``folder``; the JSON object in its last line."""
    print("$ sameriver", *command, file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", *command, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def kernel_rows(kernel: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The figures of `sameriver bench kernel`."""
    rows = f"{kernel['rows'] / 1e6:.0f} million positions"
    polars, duckdb = kernel["rows_per_s_polars"], kernel["rows_per_s_duckdb"]
    figures = [
        (f"feature kernel, {rows}, 12 features", f"{kernel['rows_per_s'] / 1e6:.2f} million/s"),
        ("the same with Polars / DuckDB", f"{polars / 1e6:.2f} / {duckdb / 1e6:.2f} million/s"),
        ("peak memory: kernel / Polars / DuckDB", " / ".join(_gigabytes(kernel, who) for who in _WHO) + " GB"),
        ("features of one event, a day of state", f"{kernel['us_per_event_live']:.0f} µs"),
        ("features in blocks of 1,000", f"{kernel['rows_per_s_blocks_of_1000'] / 1e6:.2f} million/s"),
        ("ten times the rows take", f"{kernel['growth_ratio']:.1f} times as long"),
        ("with a tenth of all rows in one key", f"{kernel['hot_key_ratio']:.2f} times as long"),
        ("with 10 % of rows up to an hour late", f"{kernel['late_ratio']:.2f} times as long"),
    ]
    return [(what, figure, "bench kernel") for what, figure in figures]


_WHO = ("", "_polars", "_duckdb")


def _gigabytes(kernel: dict[str, Any], who: str) -> str:
    return f"{kernel[f'peak_rss_mb{who}'] / 1e3:.1f}"


def table(demo: dict[str, Any], report: dict[str, Any], kernel: dict[str, Any]) -> str:
    """The figures as README shows them."""
    models = {model["name"]: model for model in report["models"]}
    ours, one = models["wide_and_deep"], models["departure_delay alone"]
    boosted = models["HistGradientBoosting"]
    gain = next(d for d in report["differences"] if d["against"] == "departure_delay alone")
    rows = [
        ("latency at 255 events/s, p50 / p99", f"{demo['p50_ms']:.0f} ms / {demo['p99_ms']:.0f} ms", "demo"),
        ("throughput, burst of single-event messages", f"{demo['events_per_s']:,.0f} events/s", "demo"),
        ("predictions lost", f"{demo['lost']} of {demo['to_predict']:,}", "demo"),
        ("features that differ from batch", f"{demo['mismatches']} of {demo['verify']['features']:,}", "demo"),
        (
            "rows that differ from training, but for late events",
            f"{demo['training_mismatches']} of {demo['verify']['training_compared']:,}",
            "demo",
        ),
        ("from nothing to the end of the demo", f"{demo['seconds']:.0f} s", "demo"),
        ("AUC, November and December: wide & deep", f"{ours['auc']:.4f}", "evaluate"),
        ("AUC of the departure delay alone", f"{one['auc']:.4f}", "evaluate"),
        (
            "what the model gains on it, 95 % interval",
            f"+{gain['auc']:.4f} ({gain['low']:.4f} to {gain['high']:.4f})",
            "evaluate",
        ),
        ("AUC of scikit-learn's HistGradientBoosting, same features", f"{boosted['auc']:.4f}", "evaluate"),
        ("calibration error of wide & deep, 20 bins", f"{ours['calibration_error']:.4f}", "evaluate"),
        *kernel_rows(kernel),
    ]
    lines = ["| | | command |", "| --- | ---: | --- |"]
    return "\n".join(lines + [f"| {what} | {figure} | `sameriver {command}` |" for what, figure, command in rows])


def main() -> None:
    """Measure, print, and write if asked to."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="put the table into README.md")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="sameriver-figures-") as folder:
        demo = run(Path(folder), "demo")
        report = run(Path(folder), "evaluate")
        kernel = run(Path(folder), "bench", "kernel")
    measured = table(demo, report, kernel)
    print(measured)
    if options.write:
        text = README.read_text("utf-8")
        new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{measured}\n{END}", text, flags=re.DOTALL)
        README.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
