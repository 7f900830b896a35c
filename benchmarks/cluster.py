"""`sameriver bench cluster`: the way of an event through a Flink cluster on this machine, and what a kill costs.

A job manager, two task managers, two Python workers, broker, model server and load share the cores. The positions and
the small model are those of `benchmarks.stream`; checkpoints are taken every 5 s, results go out at once unless said.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream import (
    LIVE_PER_S,
    LIVE_S,
    Bench,
    _block_messages,
    _identities,
    _positions,
    _single_messages,
    report_figures,
)
from benchmarks.stream_load import Process
from streaming.flink_known import STATE_FILE
from streaming.flink_rest import FlinkRest
from streaming.topics import OutgoingMessage

CHECKPOINT_MS = 5_000
CALM_S = 30.0

TARGETS: dict[str, tuple[str, float]] = {
    "events_per_s": (">=", 30_000.0),
    "live_p50_ms": ("<=", 500.0),
    "live_p99_ms": ("<=", 1_500.0),
    "recovery_s": ("<=", 30.0),
    "checkpoint_growth": ("<=", 0.0),
    "lost": ("<=", 0),
    "mismatches": ("<=", 0),
}

Progress = Callable[[float, str], None]


def run(
    *, events: int = 300_000, rule: bool = False, outputs: str = "at-once", progress: Progress | None = None
) -> dict[str, Any]:
    """Measure everything.

    Args:
        events: positions sent in blocks of 1,000.
        rule: predict by a rule in place of a small model on a server.
        outputs: of the job: ``at-once``, or ``checkpoint``, for which the figures aimed at are not meant.
        progress: called with the share done and the step at work.
    """
    tell = progress or (lambda _done, _step: None)
    tell(0.0, "making positions")
    counts = [1_000, events, LIVE_PER_S * LIVE_S, 1]
    rows = _positions(sum(counts))
    first, blocks, live, last = (
        rows.slice(end - count, count) for end, count in zip(np.cumsum(counts), counts, strict=True)
    )
    tell(0.1, "cluster")
    with tempfile.TemporaryDirectory() as folder, ClusterBench(Path(folder), rule, outputs) as bench:
        bench.throughput("", _block_messages(first), first.num_rows)  # the first block compiles and connects
        tell(0.2, "blocks")
        result: dict[str, Any] = {"events": events, "model_server": not rule, "outputs": outputs}
        result["checkpoint_ms"] = CHECKPOINT_MS
        result |= bench.throughput("", _block_messages(blocks), events)
        tell(0.5, "calm")
        result |= bench.growth()  # what is not archived yet of the blocks would keep the next events waiting
        tell(0.6, "live")
        result |= bench.live("live", LIVE_PER_S, _single_messages(live, duplicated=False))
        tell(0.7, "kill")
        result["recovery_s"] = bench.restart(_single_messages(last, duplicated=False))
        result["lost"] = len(bench.wanted - bench.receiver.seen())
        bench.stop_job()
        tell(0.9, "verify")
        result["mismatches"] = bench.verify().mismatches
    return result


class ClusterBench(Bench):
    """The same broker, model server and receiver, with the job on a cluster."""

    def __init__(self, folder: Path, rule: bool, outputs: str) -> None:
        self._outputs = outputs
        command = ["-m", "deploy.flink.cluster", "--any-ports", "--folder", os.fspath(folder / "flink")]
        self._cluster = Process(command, '"ready"')
        self._where: dict[str, Any] = json.loads(self._cluster.line)
        try:
            super().__init__(folder, rule=rule)
        except BaseException:
            self._cluster.stop()
            raise

    def __exit__(self, *given: object) -> None:
        super().__exit__(*given)
        self._cluster.stop()

    def job_options(self) -> list[str]:
        places = {name.replace("_", "-"): self._where[name] for name in ("job_endpoint", "flink_rest", "worker_pool")}
        chosen = ["--runner", "flink", "--checkpoint-ms", f"{CHECKPOINT_MS}", "--outputs", self._outputs]
        return [*chosen, *(f"--{name}={value}" for name, value in places.items())]

    def throughput(self, name: str, messages: Sequence[OutgoingMessage], events: int) -> dict[str, Any]:
        before, begin = self.receiver.count(), time.monotonic()
        for at in range(0, len(messages), 100):
            self._publisher.publish(f"{self.app.name}-events", messages[at : at + 100])
        self.receiver.wait_for(before + events)
        seconds = time.monotonic() - begin
        self.wanted |= _identities(events, len(self.wanted))
        return {f"events_per_s{name}": round(events / seconds)}

    def growth(self) -> dict[str, Any]:
        """By how many bytes a minute checkpoints grow while nothing comes but the source goes on asking."""
        time.sleep(2 * CHECKPOINT_MS / 1000)  # what the archive waits for has left the state
        sizes, begin = [self._checkpoint_bytes()], time.monotonic()
        time.sleep(CALM_S)
        sizes.append(self._checkpoint_bytes())
        minutes = (time.monotonic() - begin) / 60
        return {"checkpoint_bytes": sizes[0], "checkpoint_growth": round((sizes[1] - sizes[0]) / minutes)}

    def _checkpoint_bytes(self) -> int:
        job = json.loads((self.archive / STATE_FILE).read_text("utf-8"))["job"]
        return int(FlinkRest(self._where["flink_rest"]).checkpoints(job)["latest"]["completed"]["state_size"])

    def restart(self, messages: Sequence[OutgoingMessage]) -> float:
        """Kill a task manager with -9; seconds until the prediction of an event that was published right then."""
        begin = time.monotonic()
        os.kill(self._where["processes"]["task-manager-1"], signal.SIGKILL)
        self._publisher.publish(f"{self.app.name}-events", messages)
        self.wanted |= _identities(len(messages), len(self.wanted))
        self.receiver.wait_for(len(self.wanted))
        return round(time.monotonic() - begin, 2)


def report(result: dict[str, Any]) -> None:
    """Print the figures beside what is aimed at."""
    report_figures(result, TARGETS)
