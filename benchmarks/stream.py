"""`sameriver bench stream`: the whole way of an event, broker, job and load generator on the same cores.

Vessels' positions at their real intervals, 5 % late and 1 % sent twice; deduplication on, the archive durable before
anything is acknowledged, and verified afterwards. A small model on the model server predicts, or a rule.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pyarrow as pa

from batch.verify import VerifyReport, verify
from benchmarks.positions import ROWS, Positions, blocks
from benchmarks.stream_load import BROKER, JOB, NULL_LOOP, ROOT, SERVE, EventReceiver, Process, Receiver, job_status
from benchmarks.stream_per_element import per_element_rate
from serving.client import ModelClient
from shared_features import load_app
from shared_features.encode import rows_to_messages
from streaming.event_blocks import block_message
from streaming.job import create_topics, predictor
from streaming.topics import Endpoint, OutgoingMessage, Publisher, create_subscription, create_topic

APP = Path(__file__).resolve().parent / "vessels"
RULE = APP / "rule.py"
BLOCK = 1_000
LATE_SHARE, DUPLICATE_SHARE = 0.05, 0.01
LIVE_PER_S, BUSY_PER_S, LIVE_S = 255, 694, 8
PUBLISHING = 8
SAMPLE_S = 1.0

TARGETS: dict[str, tuple[str, float]] = {
    "events_per_s": (">=", 100_000.0),
    "events_per_s_single": (">=", 20_000.0),
    "ratio_null_loop": (">=", 0.5),
    "live_p50_ms": ("<=", 10.0),
    "live_p99_ms": ("<=", 50.0),
    "busy_p50_ms": ("<=", 10.0),
    "busy_p99_ms": ("<=", 50.0),
    "restart_s": ("<=", 30.0),
    "rss_slope_mb_per_min": ("<=", 1.0),
    "lost": ("<=", 0),
    "mismatches": ("<=", 0),
}
"""What is aimed at, with all 22 million events; a target that is missed is told and is no failure."""

Progress = Callable[[float, str], None]


def run(*, events: int = 1_000_000, rule: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Measure everything.

    Args:
        events: positions sent in blocks of 1,000; a tenth as many, at most 100,000, are sent one by one.
        rule: predict by a rule in place of a small model on a server.
        progress: called with the share done and the step at work.
    """
    tell = progress or (lambda _done, _step: None)
    singles, live = min(100_000, max(1_000, events // 10)), (LIVE_PER_S * LIVE_S, BUSY_PER_S * LIVE_S)
    tell(0.0, "making positions")
    counts = [events, singles, *live, 1]
    rows = _positions(sum(counts))
    parts = [rows.slice(end - count, count) for end, count in zip(np.cumsum(counts), counts, strict=True)]
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder), rule=rule) as bench:
        tell(0.1, "blocks")
        result: dict[str, Any] = {"events": events, "events_single": singles, "model_server": not rule}
        result["prediction_blocks"] = True
        result |= bench.throughput("", _block_messages(parts[0]), events)
        tell(0.5, "single events")
        result |= bench.throughput("_single", _single_messages(parts[1]), singles)
        tell(0.65, "live")
        result |= bench.live("live", LIVE_PER_S, _single_messages(parts[2], duplicated=False))
        result |= bench.live("busy", BUSY_PER_S, _single_messages(parts[3], duplicated=False))
        tell(0.75, "restart")
        result["restart_s"] = bench.restart(_single_messages(parts[4], duplicated=False))
        result["lost"] = len(bench.wanted - bench.receiver.seen())
        bench.stop_job()
        tell(0.8, "null loop")
        for name, messages, count in (
            ("", _block_messages(parts[0]), events),
            ("_single", _single_messages(parts[1]), singles),
        ):
            rate = bench.null_loop(messages) * count / len(messages)
            result[f"null_loop_events_per_s{name}"] = round(rate)
            result[f"ratio_null_loop{name}"] = round(result[f"events_per_s{name}"] / rate, 4)
        tell(0.9, "verify")
        report = bench.verify()
        result |= {"mismatches": report.mismatches, "predictions_unchecked": report.predictions_unchecked}
    tell(0.95, "per element")
    rate = per_element_rate(rows.slice(0, 2_000))
    result["per_element_events_per_s"] = round(rate, 1)
    result["ratio_per_element"] = round(result["events_per_s"] / rate, 1)
    return result


class Bench:
    """A broker and a job in processes of their own, and a receiver of predictions in this one."""

    def __init__(self, folder: Path, *, rule: bool = False) -> None:
        self._spec = str(RULE if rule else APP)
        self.app = load_app(self._spec)
        self.archive = folder / "archive"
        self.wanted: set[str] = set()
        self._broker = Process([*BROKER, "--data", str(folder / "broker")], '"ready"')
        self.endpoint = Endpoint("bench", json.loads(self._broker.line)["host_port"])
        create_topics(self.app, self.endpoint)
        create_subscription(self.endpoint, "bench-predictions", f"{self.app.name}-predictions")
        self.receiver = EventReceiver(self.endpoint, "bench-predictions")
        self._publisher = Publisher(self.endpoint)
        self._models = None if rule else Process([*SERVE, *_exported(folder / "models"), "--json"], '"ready"')
        self._job = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.receiver.close()
        self._publisher.close()
        self._job.kill()
        if self._models is not None:
            self._models.kill()
        self._broker.kill()

    @property
    def _model_server(self) -> str | None:
        return None if self._models is None else str(json.loads(self._models.line)["host_port"])

    def verify(self) -> VerifyReport:
        """The whole archive, predictions asked again."""
        if self._model_server is None:
            return verify(self.app, self.archive)
        with ModelClient(self._model_server, self.app.models[0].name) as client:
            return verify(self.app, self.archive, predict={self.app.models[0].name: predictor(client)})

    def _start(self) -> Process:
        where = ["--emulator", str(self.endpoint.host_port), "--project", "bench", "--archive", str(self.archive)]
        if self._model_server is not None:
            where += ["--model-server", self._model_server]
        return Process([*JOB, "--app", self._spec, *where, *self.job_options(), "--json"], '"ready"')

    def job_options(self) -> list[str]:
        """Further options of the job."""
        return []

    def stop_job(self) -> None:
        """Drain the job."""
        self._job.stop()

    def throughput(self, name: str, messages: Sequence[OutgoingMessage], events: int) -> dict[str, Any]:
        """Publish as fast as the broker takes it; events a second from the first publish to the last prediction."""
        before = self.receiver.count()
        samples: list[tuple[float, float]] = []
        watching = threading.Event()
        url = json.loads(self._job.line)["monitoring"]
        watch = threading.Thread(target=_sample, args=(self._job.pid, url, samples, watching), daemon=True)
        watch.start()
        begin = time.monotonic()
        for at in range(0, len(messages), 1000):
            self._publisher.publish(f"{self.app.name}-events", messages[at : at + 1000])
        self.receiver.wait_for(before + events)
        seconds = time.monotonic() - begin
        watching.set()
        watch.join()
        self.wanted |= _identities(events, len(self.wanted))
        found: dict[str, Any] = {f"events_per_s{name}": round(events / seconds)}
        if not name:
            found |= {"rss_mb": round(samples[-1][1]) if samples else None, "rss_slope_mb_per_min": _slope(samples)}
        return found

    def live(self, name: str, per_s: int, messages: Sequence[OutgoingMessage]) -> dict[str, Any]:
        """Publish one by one at an even rate, not waiting for answers; milliseconds from publish to the prediction."""
        begin, sent = time.monotonic(), {}
        with ThreadPoolExecutor(PUBLISHING) as threads:
            for number, message in enumerate(messages):
                wait = begin + number / per_s - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                sent[str(len(self.wanted) + number)] = time.monotonic()
                threads.submit(self._publisher.publish, f"{self.app.name}-events", [message])
        self.wanted |= set(sent)
        self.receiver.wait_for(len(self.wanted))
        times = [(self.receiver.arrived(event_id) - at) * 1000 for event_id, at in sent.items()]
        return {
            f"{name}_events_per_s": round(len(messages) / (max(sent.values()) - begin)),
            f"{name}_p50_ms": round(float(np.percentile(times, 50)), 1),
            f"{name}_p99_ms": round(float(np.percentile(times, 99)), 1),
        }

    def restart(self, messages: Sequence[OutgoingMessage]) -> float:
        """Kill the job with -9; seconds until the prediction of an event that was published while it was dead."""
        begin = time.monotonic()
        self._job.kill()
        self._publisher.publish(f"{self.app.name}-events", messages)
        self.wanted |= _identities(len(messages), len(self.wanted))
        self._job = self._start()
        self.receiver.wait_for(len(self.wanted))
        return round(time.monotonic() - begin, 2)

    def null_loop(self, messages: Sequence[OutgoingMessage]) -> float:
        """Messages a second of a process that pulls, publishes the same elsewhere, and acknowledges."""
        for topic in ("null-in", "null-out"):
            create_topic(self.endpoint, topic)
        create_subscription(self.endpoint, "null-in", "null-in")
        create_subscription(self.endpoint, "null-out", "null-out")
        loop = Process([*NULL_LOOP, str(self.endpoint.host_port)], "ready")
        receiver = Receiver(self.endpoint, "null-out")
        begin = time.monotonic()
        for at in range(0, len(messages), 1000):
            self._publisher.publish("null-in", messages[at : at + 1000])
        receiver.wait_for(len(messages))
        seconds = time.monotonic() - begin
        receiver.close()
        loop.kill()
        return len(messages) / seconds


def _exported(models: Path) -> list[str]:
    """Export the small model; the arguments that serve it."""
    command = [sys.executable, "-m", "benchmarks.vessels.export", str(models)]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return ["--app", str(APP), "--models", str(models)]


def _positions(rows: int) -> pa.RecordBatch:
    """Positions of the day at their vessels' real intervals, in the order of arrival, a known identity each."""
    vessels = Positions(rows=max(rows, 10_000), late_share=LATE_SHARE) if rows <= ROWS else Positions(more=rows - ROWS)
    table = vessels.generate().slice(0, rows)
    (batch,) = table.combine_chunks().to_batches()
    return next(blocks(iter([batch])))


def _duplicated(rows: int) -> np.ndarray:
    """Row numbers in which one of a hundred comes again, some hundred rows later."""
    random = np.random.default_rng(5)
    again = np.flatnonzero(random.random(rows) < DUPLICATE_SHARE)
    places = np.concatenate([np.arange(rows), again + random.integers(1, 500, len(again))])
    order = np.argsort(places, kind="stable")
    found: np.ndarray = np.concatenate([np.arange(rows), again])[order]
    return found


def _block_messages(rows: pa.RecordBatch) -> list[OutgoingMessage]:
    schema = load_app(str(APP)).event_types["position"]
    whole = rows.take(pa.array(_duplicated(rows.num_rows)))
    return [block_message(schema, whole.slice(at, BLOCK)) for at in range(0, whole.num_rows, BLOCK)]


def _single_messages(rows: pa.RecordBatch, *, duplicated: bool = True) -> list[OutgoingMessage]:
    app = load_app(str(APP))
    whole = rows.take(pa.array(_duplicated(rows.num_rows))) if duplicated else rows
    return [OutgoingMessage(one.data, one.attributes) for one in rows_to_messages(whole, app.event_types)]


def _identities(events: int, first: int) -> set[str]:
    """Of events in a row: identities are numbers in the order of the positions."""
    return {str(number) for number in range(first, first + events)}


def _sample(pid: int, url: str, samples: list[tuple[float, float]], ended: threading.Event) -> None:
    """Resident size of the job without the state that it reports, in MB, by seconds."""
    process = psutil.Process(pid)
    while not ended.wait(SAMPLE_S):
        try:
            status = job_status(url)
            used = process.memory_info().rss - status["state_bytes"] - status["identity_bytes"]
            samples.append((time.monotonic(), used / 1e6))
        except (OSError, psutil.Error):
            continue


def _slope(samples: Sequence[tuple[float, float]]) -> float | None:
    """MB a minute over the second half of the run; None for a run too short to say."""
    late = np.array(samples[len(samples) // 2 :])
    if len(late) < 10:
        return None
    return round(float(np.polyfit(late[:, 0] / 60, late[:, 1], 1)[0]), 2)


def report(result: dict[str, Any]) -> None:
    """Print the figures beside what is aimed at."""
    report_figures(result, TARGETS)


def report_figures(result: dict[str, Any], targets: Mapping[str, tuple[str, float]]) -> None:
    """Print figures, each beside its target if it has one."""
    for name, value in result.items():
        sign, target = targets.get(name, ("", 0.0))
        aimed = f"   target {sign} {target:,g}" if sign else ""
        shown = f"{value:,}" if isinstance(value, int | float) else str(value)
        print(f"{name:28} {shown:>14}{aimed}")
    print(f"{os.cpu_count()} cores for broker, job, load and receiver together")
