"""Where a runner goes on after a failure: works that got lost, came twice or from another life change nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from batch.verify import verify
from serving.client_access import ClientAccess
from shared_features.app import load_app
from shared_features.errors import ConfigurationError
from streaming import runtime
from streaming.flink import DeliverAfterCheckpoint, PullOnWorker, end
from streaming.job import JobSettings
from streaming.job_description import describe_job, read_description
from streaming.stages import Decode, Features, KeyedStage
from streaming.topics import Endpoint
from streaming.work import Work, WorkCoder
from tests.faults.jobs import Jobs
from tests.processes import REPOSITORY, Started
from tests.shop.app import app
from tests.test_streaming import Bench, outgoing
from tests.test_verify import sales

Start = Callable[..., Started]
Element = tuple[bytes, Work]


def test_a_job_travels_as_a_description() -> None:
    access = ClientAccess(authority=Path("/a"), tls=True)
    settings = JobSettings(Endpoint("p", "h:1"), Path("/archive"), "m:2", access, horizon_s=7, schemas=Path("/s"))
    shop = load_app(str(REPOSITORY / "tests" / "shop"))
    again, same = read_description(describe_job(shop, settings))
    assert (again.fingerprint, same) == (shop.fingerprint, settings)
    plain = JobSettings(Endpoint(), Path("/archive"))
    assert asdict(read_description(describe_job(shop, plain))[1]) == asdict(plain)


def test_a_worker_with_another_app_is_refused() -> None:
    shop = load_app(str(REPOSITORY / "tests" / "shop"))
    description = describe_job(shop, JobSettings(Endpoint(), Path("/archive")))
    with pytest.raises(ConfigurationError, match=r"has fingerprint .* wanted 0"):
        read_description(description.replace(shop.fingerprint.encode(), b"0"))
    with pytest.raises(ConfigurationError, match="version 2, wanted 1"):
        read_description(description.replace(b'"version":1', b'"version":2'))


class Cell:
    """Beam's state cell, which a runner sets back to what it was at a checkpoint."""

    def __init__(self) -> None:
        self.held: bytes | None = None

    def read(self) -> bytes | None:
        return self.held

    def write(self, token: bytes) -> None:
        self.held = token


class Finalizer:
    """Callbacks of bundles whose checkpoint has not completed yet."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def register(self, callback: Callable[[], None]) -> None:
        self.waiting.append(callback)


class Runner:
    """Runs the steps one after the other, each on what came through a coder, and fails as it is told."""

    def __init__(self, description: bytes, chance: random.Random) -> None:
        self.description, self.chance = description, chance
        self.cells = [Cell() for _ in range(2)]
        self.finalizer = Finalizer()
        stages = [self._keyed(number) for number in range(2)]
        self.steps: list[Callable[[Element], Any]] = [Decode().process, *stages, Features().process]  # type: ignore[no-untyped-call]
        self.failures = 0

    def _keyed(self, number: int) -> Callable[[Element], Iterator[Element]]:
        return lambda element: KeyedStage(number).process(element, self.cells[number])

    def pull(self) -> bool:
        """One call of the source and all that follows; whether there was anything."""
        job = PullOnWorker().job(self.description)  # type: ignore[no-untyped-call]
        messages = job.subscriber.pull(7, 0.05)
        self.pass_on(job.numbered(messages))
        return bool(messages)

    def pass_on(self, work: Work) -> None:
        element = (self.description, work)
        fault, at = (
            self.chance.choice(["none"] * 12 + ["lost", "twice", "checkpoint", "set back"]),
            self.chance.randrange(5),
        )
        before = [cell.held for cell in self.cells]
        for number, step in enumerate([*self.steps, self._deliver]):
            if fault != "none" and number == at:
                self.failures += 1
                if fault == "lost":
                    return
                if fault == "twice":
                    list(step(element) or ())
                if fault == "checkpoint":
                    self.finish_checkpoint()
            found = list(step(element) or ())
            if not found:
                break
            element = (self.description, WorkCoder().decode(WorkCoder().encode(found[0][1])))
        if fault == "set back":
            for cell, held in zip(self.cells, before, strict=True):
                cell.held = held

    def _deliver(self, element: Element) -> None:
        DeliverAfterCheckpoint().process(element, self.finalizer)  # type: ignore[no-untyped-call]

    def finish_checkpoint(self) -> None:
        waiting, self.finalizer.waiting = self.finalizer.waiting, []
        for callback in waiting:
            callback()


def test_whatever_a_runner_loses_every_event_is_predicted_once_from_exact_state(
    start_process: Start, warm_jobs: Jobs, tmp_path: Path
) -> None:
    bench, history = Bench(start_process, warm_jobs, tmp_path), sales(400)
    bench.publish(outgoing(history))
    shop = load_app(str(REPOSITORY / "tests" / "shop"))
    description = describe_job(shop, JobSettings(bench.endpoint, bench.archive))
    runner = Runner(description, random.Random(2))
    lives = set()
    try:
        while bench.archived_rows() < history.num_rows:
            for _ in range(20):
                runner.pull()
                lives.add(runtime.get(description).life)
        acks = runtime.get(description).acks
        assert acks is not None
        runner.chance = random.Random("without failures")
        while runner.pull():
            pass
        runner.finish_checkpoint()
    finally:
        runtime.forget(description)
        end(description)
    assert len(lives) > 3
    report = verify(app, bench.archive)
    assert (report.events, report.predictions, report.mismatches) == (400, 300, 0)
    assert len({message.attributes["prediction_id"] for message in bench.take("predictions")}) == 300
    bench.close()
