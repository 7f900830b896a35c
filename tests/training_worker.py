"""A worker of a training in miniature, without TensorFlow: gradient descent on a line, with a checkpoint a step.

It takes the arguments that `training.several` passes on, and `--log FILE` for its process id and where it began. In
its first life the second worker stops half-way, and waits to be killed.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

import numpy as np

from training.together import LOST, OneMachine, WorkerLostError, together

STEPS = 40


def descend(add_up: object = None, rank: int = 0, workers: int = 1, held: Path | None = None) -> float:
    """The slope that is learned from 1,000 points; goes on from the checkpoint, if any."""
    x = np.random.default_rng(1).normal(size=1_000).astype(np.float32)[rank::workers]
    first, slope = 0, np.float32(0)
    if held is not None and held.exists():
        with np.load(held) as found:
            first, slope = int(found["step"]), found["slope"]
    for step in range(first, STEPS):
        if first == 0 and rank == 1 and step == STEPS // 2:
            threading.Event().wait()
        gradient = np.array([np.sum((slope * x - 3 * x) * x), len(x)], np.float32)
        if callable(add_up):
            gradient = add_up(gradient)
        slope = np.float32(slope - 0.1 * gradient[0] / gradient[1])
        if held is not None and rank == 0:
            beside = held.with_name("beside.npz")
            np.savez(beside, step=step + 1, slope=slope)
            os.replace(beside, held)
    return float(slope)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    workers = together()
    assert isinstance(workers, OneMachine)
    held = given.models / "line" / ".checkpoint-x.npz"
    with given.log.open("a") as log:
        log.write(f"{workers.rank} {os.getpid()} {held.exists()}\n")
    try:
        slope = descend(workers._add_up, workers.rank, workers.workers, held)
    except WorkerLostError:
        return LOST
    if workers.rank == 0:
        print(slope)
    return 0


if __name__ == "__main__":
    sys.exit(main())
