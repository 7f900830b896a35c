"""Several workers on one machine train a model; one that ends is started again, with the others.

    python -m training.several --workers 2 --rows var/training/flights --models var/models --json

All other arguments are those of `training.train`, which each worker runs. What the first one prints is printed. They go
on from the last epoch that was finished, so what a killed worker costs is less than an epoch and the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.progress import Progress, end_on_sigterm
from training.together import PLACE

TRIES = 5
"""So many times in a row all workers are started again without one epoch more."""

LOOK_S = 0.05
EXPECTED = 2


def start(module: str, arguments: Sequence[str], workers: int, folder: str) -> list[subprocess.Popen[bytes]]:
    """Start all workers.

    Args:
        module: that each runs.
        arguments: of it.
        workers: how many; each takes its share of the cores.
        folder: for their socket.
    """
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    shared = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"), threads)
    found = []
    for rank in range(workers):
        told = json.dumps({"rank": rank, "workers": workers, "socket": str(Path(folder, "workers"))})
        found.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                stdin=subprocess.PIPE,  # ends when this process ends, and the workers with it
                stdout=None if rank == 0 else subprocess.DEVNULL,
                env={**os.environ, **shared, PLACE: told},
            )
        )
    return found


def first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Rank and exit code of the first worker that is seen to have failed; None when all have done their work."""
    while True:
        codes = [process.poll() for process in processes]
        for rank, code in enumerate(codes):
            if code:
                return rank, code
        if None not in codes:
            return None
        time.sleep(LOOK_S)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill what runs: there is nothing to save between two checkpoints."""
    for process in processes:
        process.kill()
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def checkpoints(models: Path) -> dict[str, int]:
    """Checkpoints and the time of each, to see whether there was an epoch more."""
    return {str(path): path.stat().st_mtime_ns for path in models.glob("*/.checkpoint-*.npz")}


def main(arguments: Sequence[str] | None = None, module: str = "training.train") -> int:
    """Command line; the exit code is that of the training."""
    parser = argparse.ArgumentParser(prog="python -m training.several", description="Train with several workers.")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    given, rest = parser.parse_known_args(arguments)
    rest += ["--models", str(given.models)]
    tries, before = 0, checkpoints(given.models)
    while True:
        with tempfile.TemporaryDirectory(prefix="sameriver-") as folder:  # of mode 0700
            processes = start(module, rest, given.workers, folder)
            try:
                failed = first_failure(processes)
            finally:
                end(processes)
        if failed is None:
            return 0
        rank, code = failed
        now = checkpoints(given.models)
        tries, before = (tries + 1 if now == before else 1), now
        if code == EXPECTED or tries > TRIES:
            return code if code > 0 else 1
        said = f"worker {rank + 1} of {given.workers} ended with {code}: all start again from the last epoch"
        if "--json" in rest:
            print(json.dumps({"progress": asdict(Progress("train", 0.0, said))}), flush=True)
        else:
            print(said, file=sys.stderr, flush=True)


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
