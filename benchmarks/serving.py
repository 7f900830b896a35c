"""`sameriver bench serving`: the model server against the same SavedModel called in process, on the same cores.

One run: blocks and single rows over gRPC, REST, batching, reloads, the start, memory, and the gateway. The server is a
process, its clients are another; both share the cores that the call in process has for itself. Everything is measured
with a model that computes for milliseconds (``large``) and with one that hardly does (``small``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import psutil

from benchmarks.serving_export import MODELS
from benchmarks.serving_load import request
from serving import wire

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 64
RELOADS = 5
BATCHING = (
    "max_batch_size { value: 64 } batch_timeout_micros { value: 2000 } max_enqueued_batches { value: 100 } "
    "num_batch_threads { value: 1 }"
)
TARGETS: dict[str, tuple[str, float]] = {
    "ratio_in_process": (">=", 0.75),
    "p50_extra_ms": ("<=", 2.0),
    "rest_p99_ms": ("<=", 10.0),
    "batching_gain": (">=", 3.0),
    "reload_p99_ratio": ("<=", 3.0),
    "start_s": ("<=", 15.0),
    "rss_growth_bytes_per_request": ("<=", 10.0),
    "gateway_p99_ms": ("<=", 60.0),
}
"""What is aimed at, by the name in the result. A target that is missed is told and is no failure."""

Progress = Callable[[float, str], None]


def run(
    *, seconds: float = 3.0, rounds: int = 3, requests: int = 60_000, gateway: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure everything; about 4 minutes on 2 cores.

    Args:
        seconds: that each measurement takes.
        rounds: of the ones that are compared with each other, which take turns; their medians count.
        requests: over which the server's memory is watched.
        gateway: measure the gateway, too.
        progress: called with the share done and the step at work.

    Returns the figures by name; ``_small`` ends those of the small model.
    """
    tell = progress or (lambda _done, _what: None)
    result: dict[str, Any] = {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="sameriver-bench-") as name:
        folder = Path(name)
        tell(0.0, "exporting two models (TensorFlow)")
        result["tensorflow_import_s"] = _export(folder)
        for number, model in enumerate(MODELS):
            suffix = "" if model == "large" else f"_{model}"
            tell(0.15 + 0.25 * number, f"{model} model: over gRPC and REST, and in process")
            found = _compared(folder / model, seconds, rounds)
            tell(0.3 + 0.25 * number, f"{model} model: {CLIENTS} clients, with and without batching")
            found.update(_batched(folder, model, seconds, rounds))
            result.update({f"{key}{suffix}": value for key, value in found.items()})
        tell(0.65, "reloads under load")
        result.update(_reloads(folder / "large"))
        tell(0.75, f"memory over {requests:,} requests")
        result.update(_memory(folder / "small", requests))
    if gateway:
        tell(0.85, "gateway")
        from benchmarks import serving_gateway

        result.update(serving_gateway.run())
    tell(1.0, "done")
    return finished(result)


def finished(result: dict[str, Any]) -> dict[str, Any]:
    """The figures, with how busy the machine was, what is aimed at, and which targets are missed."""
    aimed = {name: f"{sign} {aim:g}" for name, (sign, aim) in TARGETS.items() if name in result}
    missed = [name for name in aimed if not _met(name, result[name])]
    return {**result, "load_after": os.getloadavg()[0], "targets": aimed, "missed": missed}


def _met(name: str, value: float) -> bool:
    sign, aim = TARGETS[name]
    return value >= aim if sign == ">=" else value <= aim


def _export(folder: Path) -> float:
    """Export the models; seconds that Python's TensorFlow took to import, which the server does without."""
    _python("-m", "benchmarks.serving_export", folder)
    code = "import time; t = time.perf_counter(); import tensorflow; print(time.perf_counter() - t)"
    return float(_python("-c", code).splitlines()[-1])


def _python(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-P", *map(str, arguments)], env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arguments[1]} failed: {done.stderr[-2000:]}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _measure(what: str, **arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        _python("-m", "benchmarks.serving_load", what, json.dumps(arguments)).splitlines()[-1]
    )
    return found


class _Server:
    """A model server in a process of its own, from its start to its first answer and on."""

    def __init__(self, base_path: Path, *flags: str) -> None:
        began = time.perf_counter()
        command = [sys.executable, "-P", "-m", "serving.server", "--port=0", "--rest_api_port=-1", "--model_name=m"]
        self.process = subprocess.Popen(
            [*command, f"--model_base_path={base_path}", "--file_system_poll_wait_seconds=0.1", *flags],
            env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.rest = self.process.stdout.readline().split()[-1]
        self.target = self.process.stdout.readline().split()[-1]
        with grpc.insecure_channel(self.target) as channel:
            channel.unary_unary(wire.PREDICT, None, None)(request(1), timeout=60)
        self.start_s = time.perf_counter() - began

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def versions(self) -> list[int]:
        """Those that answer."""
        message = wire.GetModelStatusRequest()
        message.model_spec.name = "m"
        with grpc.insecure_channel(self.target) as channel:
            status = channel.unary_unary(wire.GET_MODEL_STATUS, None, wire.GetModelStatusResponse.FromString)
            answer = status(message.SerializeToString(), timeout=60)
        return [one.version for one in answer.model_version_status if one.state == wire.State.AVAILABLE]


@contextmanager
def _serving(base_path: Path, *flags: str) -> Iterator[_Server]:
    server = _Server(base_path, *flags)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)
        assert server.process.stdout is not None
        server.process.stdout.close()


def _compared(base_path: Path, seconds: float, rounds: int) -> dict[str, float]:
    """Server and call in process take turns; the server waits while the other computes."""
    alone, block, one, rest, starts = [], [], [], [], []
    for _ in range(rounds):
        alone.append(_measure("in_process", folder=str(base_path / "1"), seconds=seconds))
        with _serving(base_path) as server:
            starts.append(server.start_s)
            block.append(_measure("blocks", target=server.target, seconds=seconds))
            one.append(_measure("one", target=server.target, seconds=seconds))
            rest.append(_measure("rest", target=server.rest, seconds=seconds))
    in_process = _median(alone, "block_rows_per_s")
    return {
        "rows_per_s": _median(block, "rows_per_s"),
        "rows_per_s_in_process": in_process,
        "ratio_in_process": median(
            served["rows_per_s"] / own["block_rows_per_s"] for served, own in zip(block, alone, strict=True)
        ),
        "p50_ms": _median(one, "p50_ms"),
        "p50_in_process_ms": _median(alone, "one_p50_ms"),
        "p50_extra_ms": median(served["p50_ms"] - own["one_p50_ms"] for served, own in zip(one, alone, strict=True)),
        "p99_ms": _median(one, "p99_ms"),
        "rest_p50_ms": _median(rest, "p50_ms"),
        "rest_p99_ms": _median(rest, "p99_ms"),
        "start_s": median(starts),
        "start_libraries_s": _median(alone, "library_s"),
    }


def _median(found: Sequence[dict[str, float]], name: str) -> float:
    return float(median(one[name] for one in found))


def _batched(folder: Path, model: str, seconds: float, rounds: int) -> dict[str, float]:
    parameters = folder / "batching.config"
    parameters.write_text(BATCHING)
    flags = {"unbatched": [], "batched": ["--enable_batching", f"--batching_parameters_file={parameters}"]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in flags}
    for _ in range(rounds):
        for name, given in flags.items():
            with _serving(folder / model, *given) as server:
                found[name].append(_measure("concurrent", target=server.target, seconds=seconds, clients=CLIENTS))
    gains = [
        with_it["per_s"] / without["per_s"]
        for with_it, without in zip(found["batched"], found["unbatched"], strict=True)
    ]
    return {
        "batching_gain": median(gains),
        "clients_64_per_s": _median(found["unbatched"], "per_s"),
        "clients_64_batched_per_s": _median(found["batched"], "per_s"),
        "clients_64_p99_ms": _median(found["unbatched"], "p99_ms"),
        "clients_64_batched_p99_ms": _median(found["batched"], "p99_ms"),
    }


def _reloads(base_path: Path) -> dict[str, float]:
    """p99 of single rows while a version is loaded, warmed up and the one before unloaded, over p99 between."""
    windows: list[tuple[float, float]] = []
    outcome: list[dict[str, Any]] = []
    with _serving(base_path) as server:
        load_s = RELOADS * 4.0
        watcher = threading.Thread(
            target=lambda: outcome.append(_measure("watch", target=server.target, seconds=load_s)), daemon=True
        )
        watcher.start()
        time.sleep(3.0)  # the client starts, and is measured without a reload
        for number in range(2, 2 + RELOADS):
            aside = base_path / "aside"
            shutil.copytree(base_path / "1", aside, copy_function=os.link)
            began = time.monotonic()
            aside.rename(base_path / str(number))
            while server.versions() != [number]:
                time.sleep(0.02)
            windows.append((began, time.monotonic()))
            time.sleep(1.5)
        watcher.join()
    for number in range(2, 2 + RELOADS):
        shutil.rmtree(base_path / str(number))
    sent, took = np.array(outcome[0]["requests"]).T
    during = np.zeros(len(sent), bool)
    for began, ended in windows:
        during |= (sent + took >= began) & (sent <= ended)
    normal_ms, reload_ms = (float(np.percentile(took[mask], 99) * 1e3) for mask in (~during, during))
    return {
        "reload_p99_ratio": reload_ms / normal_ms,
        "reload_p99_ms": reload_ms,
        "normal_p99_ms": normal_ms,
        "reload_longest_ms": float(took[during].max() * 1e3),
        "reload_requests": int(during.sum()),
        "reload_s": float(median(ended - began for began, ended in windows)),
    }


def _memory(base_path: Path, requests: int) -> dict[str, float]:
    """Resident memory after each quarter; the first one fills pools and caches."""
    with _serving(base_path) as server:
        rss = []
        for _ in range(4):
            found = _measure("concurrent", target=server.target, seconds=0, clients=16, count=requests // 4)
            rss.append(server.rss_bytes())
    return {
        "rss_mb": rss[-1] / 2**20,
        "rss_growth_bytes_per_request": (rss[-1] - rss[0]) / (3 * (requests // 4)),
        "memory_requests": requests,
        "clients_16_per_s": found["per_s"],
    }


def report(result: dict[str, Any]) -> None:
    """Print the figures for people, with what is aimed at."""
    from commands import output

    lines = []
    by_clients = {f"gateway_qps, {clients} clients": qps for clients, qps in result.get("gateway_qps", {}).items()}
    for name, value in {**result, **by_clients}.items():
        if not isinstance(value, int | float):
            continue
        aimed = result["targets"].get(name, "")
        met = "" if not aimed else "missed" if name in result["missed"] else "met"
        lines.append([name, f"{value:,.3f}".rstrip("0").rstrip("."), aimed, met])
    output.print_table(["figure", "value", "aimed at", ""], lines)
