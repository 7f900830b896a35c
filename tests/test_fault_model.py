"""Faults of the model server under a job: kills, new versions, a broken version, a bad or slow connection.

The model says which version it is: y = x / 2 + 100 version. An answer under another version's name would be seen.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import httpx
import pytest

from tests import serving_models
from tests.faults.flow import flow
from tests.faults.jobs import Job, Jobs
from tests.faults.model_server import FILE, ModelServer, offset, put
from tests.faults.proxy import DROPPING, HALF_OPEN, HEALTHY, LATE, REFUSING, SLOW, Proxy, hold
from tests.faults.rig import Rig
from tests.faults.served import app
from tests.processes import Started, start, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    models = tmp_path_factory.mktemp("models") / "half"
    put(models, 1)
    made = ModelServer(models)
    yield made
    made.process.kill()


@pytest.fixture(scope="module")
def broker() -> Iterator[Started]:
    process = start(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    yield process
    assert process.stop() == 0, process.tail()


@pytest.fixture
def proxy(server: ModelServer) -> Iterator[Proxy]:
    made = Proxy(server.target)
    yield made
    made.close()


@pytest.fixture
def rig(warm_jobs: Jobs, broker: Started, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(warm_jobs, broker.line.rpartition(" ")[2], tmp_path, app=app, file=FILE)
    yield made
    made.close()


def check(rig: Rig, target: str) -> list[int]:
    """Every answer is that of the version which it names; the versions."""
    versions = set()
    for event_id, told in rig.predictions.by_event.items():
        record = json.loads(next(iter(told))[1])
        version = record["model_version"]
        assert record["outputs"] == {"y": rig.x[event_id] / 2 + offset(version)}, f"seed {rig.seed}"
        versions.add(version)
    report = rig.check("--model-server", target)
    assert report["predictions"] == len(rig.published)
    assert not rig.dead_letters.by_event
    return sorted(versions)


def predicted_more(rig: Rig, count: int) -> Callable[[], bool]:
    """Whether so many more events are predicted than now."""
    before = len(rig.predictions.by_event)
    return lambda: len(rig.predictions.by_event) >= before + count


@pytest.mark.tensorflow
@pytest.mark.parametrize(("kills", "last"), [(1, 2), pytest.param(10, 4, marks=pytest.mark.soak)])
def test_kills_and_versions_new_and_broken_under_traffic(rig: Rig, server: ModelServer, kills: int, last: int) -> None:
    target = server.target
    job = rig.start_job("--model-server", target)
    started_with = server.newest()
    with flow(rig, 1_000_000) as flowing:
        for _ in range(kills):
            wait_until(predicted_more(rig, 20), what="predictions come")
            server.process.kill()
            wait_until(rig.missing, what="something is on its way that nobody answers")
            server.kill_and_start()
        for version in range(started_with + 1, last + 1):
            wait_until(predicted_more(rig, 20), what="predictions come")
            put(server.models, version)
            wait_until(lambda v=version: f'"model_version": {v}' in newest(rig), what="the new one answers")  # type: ignore[misc]
        broken = serving_models.put("broken", server.models.parent / "aside", 9).rename(server.models / "9")
        wait_until(lambda: any("version 9" in line for line in server.process.lines), what="a word on the broken one")
        wait_until(predicted_more(rig, 100), what="the old version answers")
        broken.rename(server.models.parent / "gone")
        assert flowing.running
    rig.wait_predicted()
    assert job.code is None
    job.drain()
    versions = check(rig, target)
    assert versions == list(range(started_with, last + 1))
    print(f"seed {rig.seed}: {len(rig.published)} events, {kills} kills, versions {versions}")


def newest(rig: Rig) -> str:
    """The prediction that came last."""
    found = list(rig.predictions.by_event.values())[-1]
    return json.dumps(json.loads(next(iter(found))[1]))


@pytest.mark.tensorflow
@pytest.mark.parametrize("seconds", [0.4, pytest.param(5.0, marks=pytest.mark.soak)])
def test_a_bad_connection_to_the_model_server_delays_and_loses_nothing(
    rig: Rig, server: ModelServer, proxy: Proxy, seconds: float
) -> None:
    """Late, slow, torn, silent, refused; and a server that stands still."""
    job = rig.start_job("--model-server", proxy.host_port)
    faults = [LATE, SLOW, DROPPING, HALF_OPEN, REFUSING]
    rig.draw.shuffle(faults)
    with flow(rig, 1_000_000) as flowing:
        for fault in faults:
            wait_until(predicted_more(rig, 1), what=f"predictions come (seed {rig.seed})")
            if fault.refuse:
                proxy.reset()
            hold(proxy, fault, seconds)
            assert job.code is None
        proxy.reset()
        wait_until(predicted_more(rig, 1), what=f"predictions come (seed {rig.seed})")
        os.kill(server.process.process.pid, signal.SIGSTOP)
        try:
            Event().wait(seconds)
        finally:
            os.kill(server.process.process.pid, signal.SIGCONT)
        assert flowing.running
    rig.wait_predicted()
    job.drain()
    check(rig, proxy.target)
    print(f"seed {rig.seed}: {len(rig.published)} events, {proxy.connections} connections")


@pytest.mark.tensorflow
@pytest.mark.parametrize("events", [1_500, pytest.param(40_000, marks=pytest.mark.soak)])
def test_a_model_server_that_is_slow_slows_the_pull(rig: Rig, proxy: Proxy, events: int) -> None:
    """No answers: a few works wait, then nothing more is taken on; the rest waits in the broker."""
    job = rig.start_job("--model-server", proxy.host_port, "--max-messages", "10")
    rig.publish(100)
    rig.wait_predicted()
    idle = job.memory_bytes()
    proxy.fault = HALF_OPEN
    rig.publish(events)
    wait_until(lambda: metric(job, "messages_held") >= min(events, 10_000), what="the job holds what it may hold")
    works = max(metric(job, "works_waiting") for _ in range(20))
    held, memory = metric(job, "messages_held"), job.memory_bytes()
    assert 0 < works <= 64
    assert held <= 20_000
    assert memory - idle < 128 << 20
    proxy.fault = HEALTHY
    rig.wait_predicted()
    job.drain()
    check(rig, proxy.target)
    print(f"seed {rig.seed}: {works} works and {held} messages of {events} held, {(memory - idle) >> 20} MB above idle")


def metric(job: Job, name: str) -> int:
    """One of the job's figures."""
    assert job.ready is not None
    text = httpx.get(f"{job.ready['monitoring']}/metrics", timeout=120).text
    (line,) = [line for line in text.splitlines() if line.startswith(f"sameriver_{name} ")]
    return int(float(line.split()[-1]))
