"""A simulated day of ships through `sameriver backfill`, both models predicting; then `sameriver verify` of it.

    python -m benchmarks.vessels_backfill --models var/models/vessels --vessels 60000 --folder /tmp/day

Each step is a process of its own, so that its peak memory is its own. The folder is made, and removed at the end; for
60,000 vessels it takes some 12 GB.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import click

LOOK_EVERY_S = 2.0


def command(*arguments: str, folder: Path) -> dict[str, Any]:
    """Run a command of `sameriver`; what it prints as JSON, and ``cpu_s``, ``wall_s``, ``peak_mb`` and ``disk_mb``.

    Raises:
        SystemExit: it failed.
    """
    out, largest, done = folder / "told.json", 0, threading.Event()

    def look() -> None:
        nonlocal largest
        while not done.wait(LOOK_EVERY_S):
            largest = max(largest, size_of(folder))

    looking = threading.Thread(target=look)
    begun = time.monotonic()
    with out.open("wb") as told:
        line = [sys.executable, "-P", "-m", "cli", *arguments, "--json"]
        child = os.posix_spawn(line[0], line, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, told.fileno(), 1)])
        looking.start()
        _, status, used = os.wait4(child, 0)
    done.set()
    looking.join()
    if status:
        raise SystemExit(f"sameriver {arguments[0]} ended with {os.waitstatus_to_exitcode(status)}, wanted 0")
    found: dict[str, Any] = json.loads(out.read_text().splitlines()[-1])
    return found | {
        "wall_s": round(time.monotonic() - begun, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "disk_mb": round(max(largest, size_of(folder)) / 1e6),
    }


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; those that go away meanwhile are left out."""
    found = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(where, name)).st_size
            except FileNotFoundError:
                continue
    return found


@click.command()
@click.option("--models", type=click.Path(path_type=Path), default=Path("var/models/vessels"), show_default=True)
@click.option("--vessels", default=60_000, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("var/vessels_backfill"), show_default=True)
def main(models: Path, vessels: int, folder: Path) -> None:
    """Print the figures of each step, the last line as JSON."""
    folder.mkdir(parents=True)
    try:
        world, out = str(folder / "world"), str(folder / "out")
        settings = ["--with", f"vessels={vessels}", "--with", "hours=24", "--with", "rated=0"]
        made = command("data", "vessels", *settings, "--out", world, folder=folder)
        asked = ["--models", str(models.resolve())]
        filled = command("backfill", "--app", "vessels", "--source", world, "--out", out, *asked, folder=folder)
        checked = command("verify", "--app", "vessels", "--backfill", out, folder=folder)
    finally:
        shutil.rmtree(folder)
    steps = {"data": made, "backfill": filled, "verify": checked}
    figures = ("wall_s", "cpu_s", "peak_mb", "disk_mb")
    for name, step in steps.items():
        click.echo(f"{name:10}" + "  ".join(f"{what} {step[what]:,}" for what in figures))
    report = {name: {what: step[what] for what in figures} for name, step in steps.items()}
    report["result"] = {"simulated": True, "rows": filled["rows"], "verified": checked["reactions"]}
    report["result"]["mismatches"] = checked["mismatches"]
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
