"""The gateway measured: raw event over HTTP to prediction through the topic, and requests a second by clients.

python -m benchmarks.serving_gateway                      the tests' shop, whose model is a rule: about 40 s
python -m benchmarks.serving_gateway --app flights --models var/models/flights

Broker, job, gateway (and model server) run as `sameriver up` starts them; this process is all the clients. Latency
is open loop: events leave at a fixed rate whatever comes back, and each is timed from when it should have left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHOP = ROOT / "tests" / "shop"
RATE = 255.0
CLIENTS = (1, 64, 256)
CONNECTIONS = 64

Body = Callable[[int], bytes]


class Client:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self._reader, self._writer, self._head = reader, writer, head

    @classmethod
    async def connect(cls, url: str) -> Client:
        """To the host of ``url``, for POSTs to its path."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        return cls(reader, writer, head.encode())

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._writer.write(self._head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        return int(head[9:12]), await self._reader.readexactly(length)

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        await self._writer.wait_closed()


async def at_rate(url: str, body: Body, *, rate: float, seconds: float) -> list[float]:
    """Milliseconds from when each event should have left to its prediction; ValueError if one got none."""
    free: asyncio.Queue[Client] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await Client.connect(url))
    took: list[float] = []
    bad: list[tuple[int, bytes]] = []

    async def one(number: int, due_s: float) -> None:
        client = await free.get()
        status, answer = await client.post(body(number))
        took.append((time.perf_counter() - due_s) * 1e3)
        if status != 200 or b'"predicted"' not in answer:
            bad.append((status, answer))
        free.put_nowait(client)

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due_s = began_s + number / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            group.create_task(one(number, due_s))
    for _ in range(CONNECTIONS):
        await free.get_nowait().close()
    if bad:
        raise ValueError(f"{len(bad)} of {len(took)} events got no prediction, the first: {bad[0]}")
    return took


async def closed_loop(url: str, body: Body, *, clients: int, seconds: float) -> dict[str, float]:
    """Predictions a second when each client sends its next event as soon as the last one is answered."""
    until_s = time.perf_counter() + seconds
    took: list[float] = []
    turned_away = 0

    async def one(client_number: int) -> None:
        nonlocal turned_away
        client = await Client.connect(url)
        number = 0
        while time.perf_counter() < until_s:
            began_s = time.perf_counter()
            status, answer = await client.post(body(client_number * 1_000_000 + number))
            number += 1
            if status == 200:
                took.append((time.perf_counter() - began_s) * 1e3)
            elif status == 429:
                turned_away += 1
            else:
                raise ValueError(f"status {status}: {answer!r}")
        await client.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(one(number))
    return {"qps": len(took) / seconds, **percentiles(took), "turned_away": turned_away}


def percentiles(took_ms: Sequence[float]) -> dict[str, float]:
    """p50 and p99, milliseconds."""
    return {"p50_ms": float(np.percentile(took_ms, 50)), "p99_ms": float(np.percentile(took_ms, 99))}


def shop_body(run: str) -> Body:
    """Sales of a hundred shops."""

    def body(number: int) -> bytes:
        sale = {
            "event_id": f"{run}-{number}",
            "shop": f"s{number % 100}",
            "till": number % 7,
            "amount": number % 50 / 4,
        }
        return json.dumps({**sale, "units": number % 5, "paid": number % 2 == 0}).encode()

    return body


def flights_body(run: str) -> Body:
    """Departures of three airports."""

    def body(number: int) -> bytes:
        now_us = time.time_ns() // 1_000
        return json.dumps(
            {
                "event_id": f"{run}-{number}", "flight_id": f"{run}-{number}", "departed_at": now_us,
                "scheduled_at": now_us - 20 * 60_000_000, "departure_delay": 20.0,
                "scheduled_arrival_at": now_us + 90 * 60_000_000, "scheduled_duration": 130.0,
                "carrier": ("UA", "AA", "DL")[number % 3], "flight_number": number % 2_000,
                "tail_number": f"N{number % 900}", "origin": ("EWR", "JFK", "LGA")[number % 3],
                "dest": ("ORD", "LAX", "BOS", "MIA")[number % 4], "distance": 719,
            }
        ).encode()  # fmt: skip

    return body


@contextmanager
def live(app: str, models: Path | None) -> Iterator[str]:
    """The address for events of a `sameriver up` in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="sameriver-gateway-") as folder:
        command = [sys.executable, "-P", "-m", "cli", "up", "--app", app, "--json", "--in-memory"]
        command += ["--broker-port", "0", "--model-port", "0", "--gateway-port", "0"]
        command += [] if models is None else ["--models", str(models.resolve())]
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("{"):
                raise RuntimeError("sameriver up did not start: its own words are above")
            name = "shop" if app == str(SHOP) else app
            yield f"{json.loads(line)['gateway']}/v1/apps/{name}/events"
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)


def run(app: str = str(SHOP), models: Path | None = None, *, seconds: float = 10.0) -> dict[str, Any]:
    """Measure the gateway of an app.

    Args:
        app: ``flights``, which needs ``models``, or the shop of the tests.
        models: folder of the app's models.
        seconds: of the steady rate; each number of clients gets half of it.

    Returns:
        ``gateway_p50_ms`` and ``gateway_p99_ms`` at 255 events/s, ``gateway_qps`` by number of clients, and
        ``gateway_clients`` with each number's latencies.
    """
    make = flights_body if app == "flights" else shop_body
    with live(app, models) as url:
        asyncio.run(closed_loop(url, make("warm"), clients=16, seconds=2.0))
        took = asyncio.run(at_rate(url, make("rate"), rate=RATE, seconds=seconds))
        by_clients = {
            clients: asyncio.run(closed_loop(url, make(f"c{clients}"), clients=clients, seconds=seconds / 2))
            for clients in CLIENTS
        }
    steady = percentiles(took)
    return {
        "gateway_app": "flights" if app == "flights" else "shop",
        "gateway_p50_ms": round(steady["p50_ms"], 1),
        "gateway_p99_ms": round(steady["p99_ms"], 1),
        "gateway_events": len(took),
        "gateway_qps": {str(clients): round(found["qps"]) for clients, found in by_clients.items()},
        "gateway_clients": {
            str(clients): {name: round(value, 1) for name, value in found.items()}
            for clients, found in by_clients.items()
        },
    }


def main() -> None:
    """Measure and print one JSON object."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--app", default=str(SHOP), help="flights, or the shop of the tests")
    arguments.add_argument("--models", type=Path, help="folder of the app's models")
    arguments.add_argument("--seconds", type=float, default=10.0, help="of the steady rate")
    chosen = arguments.parse_args()
    print(json.dumps(run(chosen.app, chosen.models, seconds=chosen.seconds)))


if __name__ == "__main__":
    main()
