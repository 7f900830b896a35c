"""The clients of `sameriver bench serving`, and the same SavedModel called in process: one measurement a process.

python -m benchmarks.serving_load WHAT JSON     prints one JSON object
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_export import COLUMNS

BLOCK = 1024
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def columns(rows: int) -> dict[str, Any]:
    """Rows of numbers, the same each time."""
    values = np.random.default_rng(1).standard_normal((COLUMNS, rows)).astype(np.float32)
    return {f"x{number:02}": column for number, column in enumerate(values)}


def request(rows: int, inputs: int = 0) -> bytes:
    """A Predict request for model ``m``; with one of `inputs`, for a model that takes no more than ``x``."""
    from serving import wire
    from serving.tensors import write_numbers

    message = wire.PredictRequest()
    message.model_spec.name = "m"
    given = {"x": columns(rows)["x00"]} if inputs == 1 else columns(rows)
    for name, column in given.items():
        write_numbers(message.inputs[name], int(wire.DataType.DT_FLOAT), column, as_content=True)
    return bytes(message.SerializeToString())


def summary(took_s: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    p50, p99 = np.percentile(took_s, [50, 99]) * 1e3
    return {"count": len(took_s), "p50_ms": float(p50), "p99_ms": float(p99)}


def repeated(function: Callable[[], object], seconds: float) -> list[float]:
    """How long each call took, for so many seconds, after a tenth of them to get warm."""
    took: list[float] = []
    began = time.perf_counter()
    while (now := time.perf_counter()) < began + 1.1 * seconds:
        function()
        if now > began + 0.1 * seconds:
            took.append(time.perf_counter() - now)
    return took


def in_process(folder: str, seconds: float) -> dict[str, float]:
    """The model without a server: TensorFlow's session, called from this thread."""
    began = time.perf_counter()
    from serving.tensorflow_c import LoadedModel, Tensor, library

    library()
    loaded = time.perf_counter()
    model = LoadedModel(Path(folder))
    signature = model.meta_graph.signature_def["serving_default"]
    prepared = model.prepare([signature.inputs[name].name for name in columns(0)], [signature.outputs["score"].name])
    found = {"library_s": loaded - began}
    for name, rows in (("block", BLOCK), ("one", 1)):
        feeds = [Tensor(1, (rows,), column) for column in columns(rows).values()]
        took = repeated(lambda feeds=feeds: model.run(prepared, feeds), seconds)  # type: ignore[misc]
        found[f"{name}_p50_ms"] = summary(took)["p50_ms"]
        found[f"{name}_rows_per_s"] = rows * len(took) / sum(took)
    return found


def blocks(target: str, seconds: float) -> dict[str, float]:
    """Blocks of Arrow columns through the client, four in flight, answers as columns."""
    import pyarrow as pa

    from serving.client import ModelClient

    block = pa.record_batch(columns(BLOCK))
    with ModelClient(target, "m", in_flight=4) as client:
        client.predict(block).result(60)
        under_way: deque[Future[Any]] = deque()
        rows = 0
        began = time.perf_counter()
        while time.perf_counter() < began + seconds:
            under_way.append(client.predict(block))
            if len(under_way) >= 4:
                rows += len(under_way.popleft().result(60).outputs["score"])
        for future in under_way:
            rows += len(future.result(60).outputs["score"])
        return {"rows_per_s": rows / (time.perf_counter() - began)}


def one(target: str, seconds: float) -> dict[str, float]:
    """One row at a time over gRPC."""
    import grpc

    data = request(1)
    with grpc.insecure_channel(target) as channel:
        predict = channel.unary_unary(PREDICT, None, None)
        return summary(repeated(lambda: predict(data, timeout=60), seconds))


def rest(target: str, seconds: float) -> dict[str, float]:
    """One row at a time over REST, on one connection."""
    row = {name: float(column[0]) for name, column in columns(1).items()}
    body = json.dumps({"instances": [row]})
    connection = http.client.HTTPConnection(target, timeout=60)

    def ask() -> None:
        connection.request("POST", "/v1/models/m:predict", body)
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(reply.read())
        reply.read()

    return summary(repeated(ask, seconds))


def concurrent(target: str, seconds: float, clients: int = 64, count: int = 0, inputs: int = 0) -> dict[str, float]:
    """Clients who each send one row as soon as the one before is answered, for a time or for a count.

    With one of `inputs`, to a model that takes no more than ``x``.
    """
    return asyncio.run(_concurrent(target, seconds, clients, count, request(1, inputs)))


async def _concurrent(target: str, seconds: float, clients: int, count: int, data: bytes) -> dict[str, float]:
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options) for _ in range(min(clients, 8))]
    took: list[float] = []
    answered = 0
    warm_until = time.perf_counter() + (0.2 * seconds if seconds else 0)
    end = warm_until + seconds if seconds else float("inf")

    async def client(number: int) -> None:
        nonlocal answered
        predict = channels[number % len(channels)].unary_unary(PREDICT, None, None)
        while (now := time.perf_counter()) < end and not (count and answered >= count):
            await predict(data, timeout=120)
            answered += 1
            if now > warm_until and not count:
                took.append(time.perf_counter() - now)

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    passed = time.perf_counter() - began
    for channel in channels:
        await channel.close(None)
    if count:
        return {"count": answered, "per_s": answered / passed}
    return {**summary(took), "per_s": len(took) / seconds}


def watch(target: str, seconds: float) -> dict[str, Any]:
    """One row at a time over gRPC: when each was sent (on the system's clock) and how long it took."""
    import grpc

    data = request(1)
    found: list[tuple[float, float]] = []
    with grpc.insecure_channel(target) as channel:
        predict = channel.unary_unary(PREDICT, None, None)
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            predict(data, timeout=60)
            found.append((now, time.monotonic() - now))
    return {"requests": found}


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    "in_process": in_process, "blocks": blocks, "one": one, "rest": rest, "concurrent": concurrent, "watch": watch,
}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](**json.loads(sys.argv[2]))))
