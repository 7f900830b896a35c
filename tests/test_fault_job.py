"""Faults around a running job: it is killed, stopped in its tracks, cut off from its broker, flooded, out of disk.

The rules: work must be in flight as the fault strikes, or the run proves nothing; what is expected is what the
broker acknowledged to the publisher; after the faults all must drain, and the whole archive must verify.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

import pytest

from tests.faults.flow import flow, kill_clock
from tests.faults.jobs import Jobs
from tests.faults.proxy import DROPPING, HALF_OPEN, LATE, REFUSING, SLOW, Fault, Proxy, hold
from tests.faults.rig import Rig
from tests.processes import Started, start, wait_until


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    data = tmp_path_factory.mktemp("broker")
    process = start(["-m", "streaming.broker", "--port", "0", "--data-dir", data], ready="listening on")
    yield process
    assert process.stop() == 0, process.tail()
    assert process.lines == [process.line], process.tail()  # it complained of nothing


@pytest.fixture
def proxy(broker: Started) -> Iterator[Proxy]:
    made = Proxy(broker.line.rpartition(" ")[2])
    yield made
    made.close()


@pytest.fixture
def rig(warm_jobs: Jobs, broker: Started, proxy: Proxy, tmp_path: Path) -> Iterator[Rig]:
    """The job speaks to the broker through the proxy, everybody else directly."""
    made = Rig(warm_jobs, broker.line.rpartition(" ")[2], tmp_path, job_broker=proxy.host_port)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kills", "events", "mean_s"), [(3, 1_000, 0.3), pytest.param(20, 10_000, 3.0, marks=pytest.mark.soak)]
)
def test_kills_of_the_job_lose_nothing(rig: Rig, kills: int, events: int, mean_s: float) -> None:
    """The job is stopped in its tracks at a moment that a clock chose, and killed once there is work before it."""
    archived, in_flight = 0, []
    with flow(rig, 1_000_000):
        for _ in range(kills):
            job = rig.start_job()
            kill_clock(rig, archived, mean_s)
            job.send(signal.SIGSTOP)
            wait_until(lambda: len(rig.published) > rig.archived(), what="something is on its way")
            published = len(rig.published)
            job.kill()
            archived = rig.archived()
            in_flight.append(published - archived)
    job = rig.start_job()
    rig.publish(max(0, events - len(rig.published)))
    rig.wait_predicted()
    totals = job.drain()
    report = rig.check()
    print(
        f"seed {rig.seed}: {report['events']} events, in flight at each kill {in_flight}, "
        f"{rig.predictions.copies - len(rig.published)} predictions came again, {totals['duplicates']} duplicates"
    )
    assert min(in_flight) > 0


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5, 1), pytest.param(5.0, 6, marks=pytest.mark.soak)])
def test_a_bad_connection_to_the_broker_delays_and_loses_nothing(
    rig: Rig, proxy: Proxy, seconds: float, rounds: int
) -> None:
    """While faults are on, whatever comes out is right; once they are off, the backlog is gone before long."""
    job = rig.start_job()
    with flow(rig, 1_000_000, batch=2):
        for _ in range(rounds):
            faults = [LATE, SLOW, DROPPING, HALF_OPEN, REFUSING, Fault(latency_s=0.02, drop_share=0.1)]
            rig.draw.shuffle(faults)
            for fault in faults:
                before = len(rig.published)
                if fault.refuse:
                    proxy.reset()
                hold(proxy, fault, seconds)
                wait_until(lambda before=before: len(rig.published) > before, what="events keep coming")  # type: ignore[misc]
                assert job.code is None
                assert rig.predictions.by_event.keys() <= set(rig.published)
            proxy.reset()
    rig.wait_predicted()
    assert proxy.connections > 3
    job.drain()
    report = rig.check()
    print(f"seed {rig.seed}: {report['events']} events, {proxy.connections} connections")


@pytest.mark.soak
def test_a_connection_that_died_without_a_word_is_given_up(rig: Rig, proxy: Proxy) -> None:
    """Half open for good, as after a power cut: the client's keepalive notices within a minute, and connects anew."""
    job = rig.start_job()
    rig.publish(100)
    rig.wait_predicted()
    proxy.abandon()
    rig.publish(100)
    rig.wait_predicted()
    job.drain()
    rig.check()


@pytest.mark.parametrize("seconds", [1.0, pytest.param(30.0, marks=pytest.mark.soak)])
def test_processes_that_stand_still_go_on_where_they_were(rig: Rig, broker: Started, seconds: float) -> None:
    """SIGSTOP of the job (30 s outlast its leases: all comes again and is dropped as duplicates) and of the broker."""
    job = rig.start_job()
    with flow(rig, 1_000_000) as flowing:
        for pid in (job.pid, broker.process.pid):
            before = rig.archived()
            wait_until(lambda before=before: rig.archived() > before, what="work is under way")  # type: ignore[misc]
            os.kill(pid, signal.SIGSTOP)
            try:
                Event().wait(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)
            assert flowing.running
    rig.wait_predicted()
    assert job.drain()["outcomes"] == {"predicted": len(rig.published)}
    rig.check()


def test_a_full_disk_ends_the_job_and_loses_nothing(rig: Rig) -> None:
    """The archive cannot grow: the job says so and ends, and the next one goes on from what is there."""
    job = rig.start_job(limits={"RLIMIT_FSIZE": 60_000})
    rig.publish(50)
    rig.wait_predicted()
    with flow(rig, 1_000_000):
        assert job.wait() not in (0, -9)
        assert "File too large" in job.log.read_text("utf-8")
        published = len(rig.published)
        wait_until(lambda: len(rig.published) > published, what="events come after the job has ended")
    archived = rig.archived()
    assert 0 < archived < len(rig.published)
    job = rig.start_job()
    assert job.ready is not None
    assert job.ready["recovered_rows"] == archived
    rig.wait_predicted()
    job.drain()
    rig.check()


def test_connections_to_the_jobs_port_cost_no_event(rig: Rig) -> None:
    """More of them than the job may have files open."""
    job = rig.start_job(limits={"RLIMIT_NOFILE": 64})
    rig.publish(50)
    rig.wait_predicted()
    assert job.ready is not None
    port = int(job.ready["monitoring"].rpartition(":")[2])
    with ExitStack() as stack:
        with suppress(TimeoutError):  # one that is not answered: the queue is full too
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.3))
        rig.publish(50)
        rig.wait_predicted()
    job.drain()
    rig.check()


@pytest.mark.parametrize("events", [6_000, pytest.param(150_000, marks=pytest.mark.soak)])
def test_a_flood_is_held_back_by_the_broker_not_by_the_jobs_memory(rig: Rig, events: int) -> None:
    """Far more than the job can take waits in the broker; afterwards an event is as quick as before."""
    job = rig.start_job()
    rig.publish(100)
    rig.wait_predicted()
    idle = most = job.memory_bytes()
    with flow(rig, events, every_s=0.0, batch=1_000) as flowing:
        while flowing.running:
            most = max(most, job.memory_bytes())
            Event().wait(0.05)
        flowing.finish()
    rig.wait_predicted()
    most = max(most, job.memory_bytes())
    began_s = time.monotonic()
    rig.publish(1)
    rig.wait_predicted()
    after_s = time.monotonic() - began_s
    job.drain()
    rig.check()
    print(f"seed {rig.seed}: {events} events, {(most - idle) >> 20} MB above idle, then one in {after_s * 1000:.0f} ms")
    assert most - idle < 256 << 20
