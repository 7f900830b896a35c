"""A long life in short: weighted random actions on a whole system, checked whenever it is asked to be well."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.faults.jobs import Job, Jobs
from tests.faults.model_server import FILE, ModelServer, offset, put
from tests.faults.rig import Rig
from tests.faults.served import app
from tests.processes import Started, free_port, new_seed, start, wait_until
from tests.serving_calls import ask

WEIGHTS = {"publish": 100, "validate": 10, "kill": 5, "deploy": 5, "reload": 3, "seek": 2, "replay": 2}
BATCH = 20


class System:
    """Broker, model server and job; each can be killed, and is started again by this watchdog."""

    def __init__(self, jobs: Jobs, folder: Path, seed: int) -> None:
        self._where = ("--port", str(free_port()), "--data-dir", str(folder / "broker"))
        self._broker = self._start_broker()
        put(folder / "half", 1)
        self.server = ModelServer(folder / "half")
        host_port = self._broker.line.rpartition(" ")[2]
        self.rig = Rig(jobs, host_port, folder, seed=seed, app=app, file=FILE, retain=True)
        self.job = self._start_job()
        self.deployed = 1

    def _start_broker(self) -> Started:
        return start(["-m", "streaming.broker", *self._where], ready="listening on")

    def _start_job(self) -> Job:
        return self.rig.start_job("--model-server", self.server.target)

    def close(self) -> None:
        self.job.kill()
        self.rig.close()
        self.server.process.kill()
        self._broker.kill()

    # -- actions ------------------------------------------------------------------------------------------
    def publish(self) -> None:
        self.rig.publish(BATCH, copies=1 + (self.rig.draw.random() < 0.1))

    def validate(self) -> None:
        """All that was published is predicted, by the version that it names."""
        self.rig.wait_predicted()
        assert self.job.code is None, self.job.log.read_text("utf-8")
        for event_id, told in list(self.rig.predictions.by_event.items()):
            (one,) = told
            record = json.loads(one[1])
            assert record["outputs"] == {"y": self.rig.x[event_id] / 2 + offset(record["model_version"])}

    def kill(self) -> None:
        """One of the three, while events are on their way; and the system gets on."""
        self.publish()
        which = self.rig.draw.choice(["broker", "model server", "job"])
        if which == "broker":
            self._broker.kill()
            self._broker = self._start_broker()
        elif which == "model server":
            self.server.kill_and_start()
        else:
            self.job.kill()
            self.job = self._start_job()
        before = len(self.rig.predictions.by_event)
        self.publish()
        wait_until(
            lambda: len(self.rig.predictions.by_event) > before, what=f"predictions come after a kill of {which}"
        )

    def deploy(self) -> None:
        self.deployed += 1
        put(self.server.models, self.deployed)

    def reload(self) -> None:
        listed = f'config {{ name: "half" base_path: "{self.server.models}" }}'
        with grpc.insecure_channel(self.server.target) as channel:
            answer = ask(channel, "HandleReloadConfigRequest", f"config {{ model_config_list {{ {listed} }} }}")
        assert answer.code == "OK", answer

    def seek(self) -> None:
        self.rig.seek_to_the_start()

    def replay(self) -> None:
        """What cannot be used comes back each time that it is sent again."""
        before = self.rig.dead_letters.copies
        self.rig.publish_poison()
        wait_until(lambda: self.rig.dead_letters.copies > before, what="the bad message is a dead letter")
        replayed = self.rig.command("deadletters", "replay", "--no-check")
        assert replayed.code == 0, replayed.log.read_text("utf-8")
        assert replayed.records()[-1]["sent"] >= 1
        wait_until(lambda: self.rig.dead_letters.copies > before + 1, what="it is one again")


@pytest.fixture
def system(warm_jobs: Jobs, tmp_path: Path) -> Iterator[Callable[[int], System]]:
    made: list[System] = []

    def make(seed: int) -> System:
        made.append(System(warm_jobs, tmp_path, seed))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.tensorflow
@pytest.mark.parametrize("actions", [14, pytest.param(1_000, marks=pytest.mark.soak)])
def test_weighted_random_actions(system: Callable[[int], System], actions: int) -> None:
    """Every kind of action once, in random order, the others by weight."""
    seed = new_seed()
    draw = random.Random(seed)
    names = [*WEIGHTS, *draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=actions - len(WEIGHTS))]
    draw.shuffle(names)
    running = system(seed)
    for number, name in enumerate(names):
        try:
            getattr(running, name)()
        except Exception as error:
            raise AssertionError(f"seed {seed}, action {number} ({name}) of {names[: number + 1]}") from error
    running.validate()
    running.job.drain()
    report = running.rig.check("--model-server", running.server.target)
    print(
        f"seed {seed}: {dict(Counter(names))}, {report['events']} events, {running.rig.predictions.copies} predictions"
    )
