"""What a change does to the model: train on a sample, and compare with what another commit makes of the same.

    python -m benchmarks.model_check --out head.json                       # about two minutes on 2 cores
    python -m benchmarks.model_check --out head.json --against base.json   # exit code 1 if it is worse

The sample is two months of the flights, trained and judged by `sameriver retrain` on the last six weeks of them. Seeds
are fixed, so that on one machine only the change makes a difference. `.github/workflows/model.yml` does it for each
pull request, with the commit that it goes onto.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from apps.flights.history import write_history

MONTHS = ("2013-01", "2013-02")
RECENT = "42d"
WORST = {"auc": -0.005, "average_precision": -0.01, "log_loss": 0.01, "brier": 0.005, "calibration_error": 0.01}
"""How far a figure may change for the worse; its sign says which way that is."""


def measure(work: Path) -> dict[str, Any]:
    """Train and judge in a folder; the figures on the sample's test period, and what they were made of."""
    write_history(work / "real")
    sample = work / "history"
    sample.mkdir()
    for month in MONTHS:
        shutil.copy(work / "real" / f"{month}.parquet", sample)
    command = [sys.executable, "-m", "cli", "retrain", "--app", "flights", "--quick", "--recent", RECENT, "--json"]
    for option, folder in (("history", sample), ("rows", "rows"), ("models", "models"), ("reports", "reports")):
        command += [f"--{option}", str(work / folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):  # 1: a gate of the app is broken; the sample is small, and compared below
        raise click.ClickException("the sample could not be trained on: its error stands above")
    found = json.loads(done.stdout.splitlines()[-1])
    report = work / "reports" / found["model"] / str(found["version"]) / "evaluation.json"
    said = json.loads(report.read_text("utf-8"))
    kpis = {name: one["value"] for name, one in said["kpis"].items() if one["rows"]}
    return {"figures": said["figures"], "kpis": kpis, "fingerprint": said["fingerprint"]}


def compare(head: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A table in Markdown, and the figures that are worse than they may be."""
    broken = []
    lines = ["| figure | before | after | change | may be |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, worst in WORST.items():
        before, after = base["figures"][name], head["figures"][name]
        change = after - before
        if (change < worst) if worst < 0 else (change > worst):
            broken.append(name)
        mark = " ✗" if name in broken else ""
        lines.append(f"| {name} | {before:.4f} | {after:.4f} | {change:+.4f}{mark} | {worst:+g} |")
    for name, after in head["kpis"].items():
        before = base["kpis"].get(name)
        told = "" if before is None else f"{before:.4f}"
        lines.append(f"| KPI {name} | {told} | {after:.4f} | | |")
    if head["fingerprint"] != base["fingerprint"]:
        lines.append("\nThe features are others: what is live must be trained again before it can go on.")
    return "\n".join(lines), broken


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File for the figures.")
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Figures to compare with.")
def main(out: Path, against: Path | None) -> None:
    """Measure, and compare."""
    with tempfile.TemporaryDirectory(prefix="sameriver-") as folder:
        found = measure(Path(folder))
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if against is None:
        click.echo(json.dumps(found["figures"]))
        return
    table, broken = compare(found, json.loads(against.read_text("utf-8")))
    click.echo(table)
    if broken:
        raise click.ClickException(f"{', '.join(broken)} got worse by more than may be: mend it, or say why it must be")


if __name__ == "__main__":
    main()
