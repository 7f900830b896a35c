"""How much faster several workers train one model here: `python benchmarks/training_workers.py`, after a demo.

The time is from the first line about an epoch to the last, without starting and exporting; processor time is all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(rows: Path, workers: int | None) -> tuple[float, float, float]:
    """Seconds of two epochs of 80,000 rows, processor seconds in all, validation AUC; None: `training.train` alone."""
    before_s = processor_s()
    module = ["training.train"] if workers is None else ["training.several", "--workers", str(workers)]
    with tempfile.TemporaryDirectory() as models:
        command = [sys.executable, "-m", *module, "--rows", str(rows), "--models", models, "--quick", "--json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        lines: list[tuple[float, dict[str, object]]] = []
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            lines += [(time.monotonic(), json.loads(line)) for line in process.stdout]
    told = [
        at_s
        for at_s, line in lines
        if "progress" in line and str(line["progress"]["detail"]).startswith("epoch ")  # type: ignore[index]
    ]
    return told[-1] - told[0], processor_s() - before_s, float(lines[-1][1]["metrics"]["validate"]["auc"])  # type: ignore[index]


def processor_s() -> float:
    """Of processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description="Time trainings by one and by several workers.")
    parser.add_argument("--rows", type=Path, default=Path("var/training/flights"))
    rows = parser.parse_args().rows
    print(f"{os.cpu_count()} cores")
    for name, workers in (("one process, all cores", None), ("one worker", 1), ("two workers, half the cores each", 2)):
        seconds, busy_s, auc = measure(rows, workers)
        print(f"{name}: {seconds:.1f} s, {busy_s:.0f} s of processor time, validation AUC {auc:.4f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
