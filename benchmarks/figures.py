"""Every figure that README quotes: one run of the demo from nothing, then the evaluation of the model it made.

python benchmarks/figures.py             prints the table, about 4 minutes on 2 cores
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


def table(demo: dict[str, Any], report: dict[str, Any]) -> str:
    """The figures as README shows them."""
    models = {model["name"]: model for model in report["models"]}
    ours, one = models["wide_and_deep"], models["departure_delay alone"]
    boosted = models["HistGradientBoosting"]
    gain = next(d for d in report["differences"] if d["against"] == "departure_delay alone")
    rows = [
        ("latency at 255 events/s, p50 / p99", f"{demo['p50_ms']:.0f} ms / {demo['p99_ms']:.0f} ms", "demo"),
        ("throughput, burst of single-event messages", f"{demo['events_per_s']:,.0f} events/s", "demo"),
        ("predictions lost", f"{demo['lost']} of {demo['departures']:,}", "demo"),
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
    measured = table(demo, report)
    print(measured)
    if options.write:
        text = README.read_text("utf-8")
        new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{measured}\n{END}", text, flags=re.DOTALL)
        README.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
