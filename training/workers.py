"""Processes that run trials side by side, one trial at a time each: TensorFlow's state is a process's own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared_features import errors
from training.rows import TrainingRows


class TrialWorkers(ThreadPoolExecutor):
    """Runs `training.trial.run_trial` in processes, whatever function it is given.

    Args:
        rows, kind, seed, quick: of all trials.
        workers: how many; each takes its share of the cores.
    """

    def __init__(self, rows: TrainingRows, kind: str, seed: int, quick: bool, workers: int) -> None:
        super().__init__(workers)
        command = [sys.executable, "-P", "-m", "training.trial", "--rows", str(rows.folder), "--kind", kind]
        command += ["--seed", str(seed), *(["--quick"] if quick else [])]
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        shared = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads, "OMP_NUM_THREADS": threads}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **shared}}
        self._processes = [subprocess.Popen(command, **pipes) for _ in range(workers)]  # type: ignore[call-overload]
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """As for `run_trial`; only the options count, the rest was given at the start."""
        del function, named
        return super().submit(self._ask, arguments[2])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, also in the middle of a trial."""
        for process in self._processes:
            process.terminate()
            with process:  # closes its pipes and waits
                pass
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _ask(self, options: dict[str, Any]) -> dict[str, Any]:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"options": options}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process that tries options ended with exit code {process.wait()}")
        self._idle.put(process)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["kind"], errors.SameriverError)(answer["error"])
        return answer
