"""What the autoscaler watches and does, without a cluster: load comes, the metric rises, servers join, and leave again.

                 five times the load
    load      ___|‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾|_____________
    servers   1        | 3                | 1
    metric    below    above    below     below, and no prediction has failed

A server computes one request at a time, for 25 ms in which its model only waits: so three of them share this machine
as if each had cores of its own. Requests that find it busy wait in its queue of batches. The load are callers who ask
for one prediction after another: how many requests are in a server then does not depend on how quick the machine is.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, cast

import httpx
import pyarrow as pa
import pytest
import yaml

from serving.client import ModelClient
from tests import repository
from tests.processes import Started, free_port, wait_until
from tests.serving_models import SLEEPS, put

Start = Callable[..., Started]
BATCHING = "max_batch_size { value: 1 } num_batch_threads { value: 1 } max_enqueued_batches { value: 10000 }"
SCALING = list(yaml.safe_load_all(repository.text(Path("deploy/kubernetes/base/model-server-scaling.yaml"))))
METRIC: dict[str, Any] = SCALING[0]["spec"]["metrics"][0]["pods"]
TARGET = float(METRIC["target"]["averageValue"])


class Servers:
    """Model servers on ports of their own, and what the autoscaler would be told of them."""

    def __init__(self, start: Start, folder: Path) -> None:
        self._start, self._folder = start, folder
        folder.mkdir(exist_ok=True)
        put("sleeps", folder / "sleeps", 1)
        (folder / "batching").write_text(BATCHING)
        self.ports = [free_port() for _ in range(3)]
        self.running: dict[int, tuple[Started, str]] = {}
        rule = yaml.safe_load(repository.text(Path("deploy/monitoring/adapter.yaml")))["rules"]["custom"][0]
        assert rule["name"]["as"] == METRIC["metric"]["name"]
        (self._series,) = re.findall(r'__name__="([^"]+)"', rule["metricsQuery"])
        self._before: dict[int, tuple[float, float]] = {}

    @property
    def target(self) -> str:
        """All addresses as one, like a name that is resolved to them."""
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def join(self, *numbers: int) -> None:
        for number in numbers:
            flags = [f"--port={self.ports[number]}", "--rest_api_port=-1", "--model_name=sleeps"]
            flags += [f"--model_base_path={self._folder / 'sleeps'}", f"--allowed_ops={SLEEPS}"]
            flags += ["--enable_batching", f"--batching_parameters_file={self._folder / 'batching'}"]
            flags += ["--monitoring_config_file=deploy/model-server/monitoring.config"]
            server = self._start(["-m", "serving.server", *flags])
            self.running[number] = server, ""
        for number in numbers:
            server, _ = self.running[number]
            server.wait_for_line("listening on")
            self.running[number] = server, server.wait_for_line("REST API on").split()[-1]

    def leave(self, *numbers: int) -> None:
        for number in numbers:
            assert self.running.pop(number)[0].stop() == 0

    def metric(self) -> float:
        """Seconds of request per second since the last time, the mean of the servers: what the adapter's rule says."""
        found = []
        for number, (_, where) in self.running.items():
            page = httpx.get(f"http://{where}/monitoring/prometheus/metrics", timeout=120).text
            pattern = rf"^{re.escape(self._series)}{{.*}} ([\d.e+]+)$"
            total = sum(float(value) for value in re.findall(pattern, page, re.MULTILINE)) / 1e6
            now_s = time.monotonic()
            before_s, before = self._before.get(number, (now_s - 1.0, total))
            self._before[number] = now_s, total
            found.append((total - before) / (now_s - before_s))
        return sum(found) / len(found)


class Load:
    """Callers who each ask for one prediction after another: so many are in the servers, however quick these are."""

    def __init__(self, client: ModelClient) -> None:
        self.futures: list[futures.Future[Any]] = []
        self._client = client
        self._callers: list[tuple[threading.Event, threading.Thread]] = []

    def callers(self, number: int) -> None:
        """From now on so many."""
        while len(self._callers) < number:
            ended = threading.Event()
            self._callers.append((ended, threading.Thread(target=self._ask, args=(ended,), daemon=True)))
            self._callers[-1][1].start()
        for ended, _ in self._callers[number:]:
            ended.set()
        for _, thread in self._callers[number:]:
            thread.join()
        del self._callers[number:]

    def _ask(self, ended: threading.Event) -> None:
        block = pa.record_batch({"x": pa.array([1.0], pa.float32())})
        while not ended.is_set():
            asked = self._client.predict(block)
            self.futures.append(asked)
            futures.wait([asked])


def scale_up_and_down(start: Start, folder: Path, pause_s: float, step_s: float) -> list[str]:
    """The picture above; seconds of each part, in which the metric is asked for every so many seconds."""
    servers, told = Servers(start, folder), []
    servers.join(0)
    wait = threading.Event().wait

    def until(what: str, condition: Callable[[float], bool]) -> None:
        began_s, values = time.monotonic(), []

        def reached() -> bool:
            wait(step_s)
            values.append(servers.metric())
            return condition(values[-1])

        wait_until(reached, what=what)
        told.append(f"{what}: {values[-1]:.2f} after {time.monotonic() - began_s:.1f} s")

    with ModelClient(cast(Any, [servers.target]), "sleeps", in_flight=10_000) as client:
        client.metadata()
        servers.metric()
        load = Load(client)
        load.callers(1)
        wait(pause_s)
        until("below the target", lambda value: 0 < value < TARGET)
        load.callers(5)
        until("above the target at five times the load", lambda value: value > TARGET)
        servers.join(1, 2)
        until("below the target with three servers", lambda value: value < TARGET)
        wait(pause_s)
        load.callers(1)
        servers.leave(1, 2)
        wait(pause_s)
        until("below the target with one server again", lambda value: value < TARGET)
        load.callers(0)
        answers = [future.result(120) for future in load.futures]
    told.append(f"{len(answers)} predictions, none failed")
    assert all(float(answer.outputs["y"][0]) == 1.0 for answer in answers)
    servers.leave(0)
    return told


def test_five_times_the_load_is_seen_and_servers_come_and_go(start_process: Start, tmp_path: Path) -> None:
    print("\n".join(scale_up_and_down(start_process, tmp_path, pause_s=0.3, step_s=0.5)))


@pytest.mark.soak
def test_again_and_again(start_process: Start, tmp_path: Path) -> None:
    for turn in range(5):
        told = scale_up_and_down(start_process, tmp_path / str(turn), pause_s=10.0, step_s=1.0)
        print(f"turn {turn}", *told, sep="\n  ")
