"""The demo's course: prepare, go live, warm up, replay (steady, burst, kill -9), drain, verify, sum up."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from commands import options
from commands.children import START_S, Live
from commands.demo_map import DemoMap
from commands.demo_tally import NEVER, Tally
from commands.demo_verdict import ended, lost, summary, verdict
from commands.demo_view import Stage, View, export_svg
from commands.preparation import Preparation
from commands.processes import Child, ChildError, Record, wait_until
from commands.replay import BURST, KILL, STEADY, WARM, ReplaySettings, make_replay, warm_up_us
from shared_features.app import App
from shared_features.errors import ConfigurationError
from streaming.naming import reaction_topics, topic

RATE = 255.0
"""Events a second at which latency is measured."""

KILL_RATE = 1_000.0
"""Events a second while the job is killed: enough that some are always on their way."""

KILL_EVENTS = 2_000
KILL_SHARE = 0.25
"""Of those events, published before the kill."""

HELD_S = 120.0
"""What a killed job held comes again when its leases are over, after 10 s."""

QUIET_S = 60.0
"""How long predictions may stay away before those missing count as lost."""

STAGES = {
    "data": "history",
    "training rows": "training rows",
    "model": "model",
    "live": "processes",
    "warm": "warm-up",
    "steady": "steady, 255/s",
    "burst": "burst",
    "kill": "kill -9 the job",
    "drain": "drain",
    "verify": "verify",
}


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What to show.

    Attributes:
        quick: three days instead of seven, and a model that is trained quickly.
        steady_s: how long events come at a steady rate; None: 40 s, or 8 s if quick.
        seed: of what is made late or sent twice.
        picture: file for one frame as SVG.
        map_port: of the map, for an app that has one; 0 takes a free port.
    """

    quick: bool = False
    steady_s: float | None = None
    seed: int = 1
    picture: Path | None = None
    map_port: int = 0

    def replay(self, since: datetime, days: tuple[float, float]) -> ReplaySettings:
        """The first days from ``since`` on: of ``days`` the second number if quick."""
        steady_s = 8.0 if self.quick else 40.0
        steady_s = steady_s if self.steady_s is None else self.steady_s
        return ReplaySettings(
            since, since + timedelta(days=days[self.quick]), int(RATE * steady_s), KILL_EVENTS, seed=self.seed
        )


class DemoRun:
    """One demo in a folder of its own under ``var/demo``; as a context it stops all it started, whatever happens.

    Args:
        app, app_name: the app, and as given to ``--app``.
        models: folder of its models.
        settings: what to show.
    """

    def __init__(self, app: App, app_name: str, models: Path, settings: DemoSettings) -> None:
        self.app, self._app_name, self._models, self._settings = app, app_name, models, settings
        self._stages = {key: Stage(name) for key, name in STAGES.items()}
        self.view = View(f"sameriver demo · {app.name}", list(self._stages.values()))
        self._listeners: list[Callable[[Stage], None]] = []
        self._stack = ExitStack()
        self._others: tuple[Child, ...] = ()
        self.map: DemoMap | None = None
        self._began_s = time.monotonic()

    def __enter__(self) -> DemoRun:
        self._folder, lock = _new_folder(options.VAR / "demo")
        self._stack.enter_context(lock)
        self.map = DemoMap.of(self.app, self._settings.map_port)
        if self.map is not None:
            self._stack.callback(self.map.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def listen(self, listener: Callable[[Stage], None]) -> None:
        """Call ``listener`` after each change of a stage."""
        self._listeners.append(listener)

    def play(self) -> dict[str, Any]:
        """The whole demo; the summary as `--json` prints it.

        Raises:
            SameriverError: something is missing or cannot be used.
            ChildError: one of the processes failed.
        """
        logs = self._folder / "logs"
        live = Live(self._app_name, served=bool(options.served_models(self.app)), logs=logs)
        self._stack.callback(live.stop)
        live.start_broker(data=self._folder / "broker")
        preparation = Preparation(
            self.app,
            self._app_name,
            models=self._models,
            quick=self._settings.quick,
            logs=logs,
            tell=self._progress,
        )
        self._stack.callback(preparation.stop)
        auc, since = self._prepare(preparation)
        tally, publisher, subscriber = self._go_live(live, preparation, since, logs)
        self._replay(tally, publisher, subscriber)
        with self._stage("drain") as stage:
            stage.detail = "waiting for what the killed job held"
            archive = self._folder / "archive"
            wait_until(lambda: ended(archive) >= tally.distinct(), HELD_S, 0.2)
            totals = live.drain()
            wait_until(lambda: not tally.lost(), QUIET_S)
            wait_until(lambda: time.monotonic() - tally.changed_s > 0.5, 10)
            missing = lost(tally, archive)
            stage.detail = f"{tally.predictions():,} predictions of {tally.to_predict():,}, {missing:,} lost"
        publisher.stop(5)
        subscriber.stop(5)
        with self._stage("verify") as stage:
            report = self._verify(live, preparation, logs)
            compared, differ = report["features"], report["mismatches"]
            stage.detail = f"{compared:,} features compared bit for bit, {differ:,} mismatches"
        seconds = time.monotonic() - self._began_s
        result = summary(tally, archive, totals, report, auc=auc, seconds=seconds)
        if self.map is not None:
            result["map"] = self.map.picture(options.reports_folder(self.app) / "demo.png")
            self.map.over = "the replay is over"
        self.view.verdict = verdict(result)
        return result

    def _prepare(self, preparation: Preparation) -> tuple[float, datetime]:
        """What is missing; the model's AUC on its test split, and from when on that is."""
        with self._stage("data") as stage:
            history = preparation.data()
            stage.detail = f"{_described(history)}{_kept(history)}"
        with self._stage("training rows") as stage:
            rows = preparation.rows()
            stage.detail = f"{sum(rows['rows'].values()):,} rows, {len(self.app.features)} features{_kept(rows)}"
        with self._stage("model") as stage:
            model = preparation.model()
            auc = float(model["metrics"]["test"]["auc"])
            stage.detail = f"{model['model']} version {model['version']}, test AUC {auc:.4f}{_kept(model)}"
        return auc, datetime.fromisoformat(rows["splits"]["test_from"])

    def _go_live(self, live: Live, preparation: Preparation, since: datetime, logs: Path) -> tuple[Tally, Child, Child]:
        """Start model server, job, publisher and subscriber; all are ready when this returns."""
        with self._stage("live") as stage:
            stage.detail = "starting model server and streaming job"
            live.start_model_server(self._models)
            live.start_job(self._folder / "archive")
            replay = make_replay(self.app, preparation.history, self._settings.replay(since, preparation.replay))
            replay.write(self.app, self._folder / "replay.arrow")
            tally = Tally(self.app, replay)
            if self.map is not None:
                self.map.follow(tally)
            emulator = {"PUBSUB_EMULATOR_HOST": live.broker_at()}
            names = [f"--predictions={topic(self.app.name, 'predictions')}"]
            names += [f"--reactions={name}" for name in reaction_topics(self.app).values()]
            names += [f"--dead-letters={topic(self.app.name, 'dead-letters')}", f"--project={options.PROJECT}"]
            names += [f"--model={self.app.models[0].name}"] if self.app.models else []
            subscriber = Child(
                "subscriber",
                ["commands.replay_subscriber", *names],
                logs / "subscriber.log",
                environment=emulator,
                on_record=lambda record: _receive(tally, record),
            )
            self._stack.callback(subscriber.stop, 5)
            target = [f"--project={options.PROJECT}", f"--topic={topic(self.app.name, 'events')}"]
            publisher = Child(
                "publisher",
                ["commands.replay_publisher", str(self._folder / "replay.arrow"), *target],
                logs / "publisher.log",
                environment=emulator,
                on_record=lambda record: _note_sent(tally, record),
            )
            self._stack.callback(publisher.stop, 5)
            subscriber.wait_ready(START_S)
            publisher.wait_ready(START_S)
            live.job_ready()
            stage.detail = "broker, model server, streaming job; official publisher and subscriber"
            if self.map is not None:
                stage.detail = f"map at {self.map.url}; {stage.detail}"  # first: a terminal cuts what is long
        self.view.tally = tally
        self._live = live
        return tally, publisher, subscriber

    def _replay(self, tally: Tally, publisher: Child, subscriber: Child) -> None:
        self._others = (publisher, subscriber)
        with self._stage("warm") as stage:
            hours = warm_up_us(self.app) / 3_600_000_000
            before = f"of the {hours:,.0f} hours before" if hours < 10_000 else "before"
            self._phase(tally, publisher, WARM, None, stage)
            stage.detail = f"{tally.published(WARM):,} events {before}, as far as windows reach"
        with self._stage("steady") as stage:
            self._phase(tally, publisher, STEADY, RATE, stage)
            latency = tally.latency()
            stage.detail = (
                f"{tally.published(STEADY):,} events: publish to prediction {latency.p50_ms:.1f} ms (p50), "
                f"{latency.p99_ms:.1f} ms (p99)"
            )
            if self._settings.picture is not None:
                export_svg(self.view, self._settings.picture, "sameriver demo")
        with self._stage("burst") as stage:
            self._phase(tally, publisher, BURST, None, stage)
            stage.detail = f"{tally.published(BURST):,} events, {tally.burst_events_per_s():,.0f} events/s"
        with self._stage("kill") as stage:
            self._phase(tally, publisher, KILL, KILL_RATE, stage)
            outage = tally.outage()
            assert outage is not None
            stage.detail = f"{outage[1]:,} events in flight; predictions again after {outage[0]:.1f} s"

    def _phase(self, tally: Tally, publisher: Child, phase: int, rate: float | None, stage: Stage) -> None:
        """Publish one phase and wait for its predictions; in the last one the job is killed and started again."""
        total = int((tally.replay.phase == phase).sum())
        publisher.send({"phase": phase, "rate": rate})
        tally.changed_s = time.monotonic()

        def complete() -> bool:
            self._check_alive()
            running = phase != KILL or self._kill_done(tally, KILL_SHARE * total)
            if not running:
                tally.changed_s = time.monotonic()
            self.view.observe()
            published = tally.published(phase)
            stage.share = published / total if total else 1.0
            stage.detail = f"{published:,} of {total:,} events"
            if not running and tally.killed_ns != NEVER:
                stage.detail += "; the job was killed and starts again"
            self._changed(stage)
            done = running and tally.phases_done > phase and not len(tally.missing(phase))
            return done or time.monotonic() - tally.changed_s > QUIET_S

        wait_until(complete, 600)
        if tally.phases_done <= phase:
            raise ChildError(publisher, "did not get its messages acknowledged")

    def _kill_done(self, tally: Tally, published: float) -> bool:
        """Kill the job once, when there is work in flight; whether it has come back. Raises ChildError."""
        job = self._live.job
        assert job is not None
        if tally.killed_ns == NEVER:
            if tally.published(KILL) >= published and tally.has_predicted(KILL) and len(tally.missing(KILL)):
                self._live.kill_job(tally.killed)
            return False
        if job.ready is None and time.monotonic_ns() - tally.killed_ns > START_S * 1e9:
            raise ChildError(job, f"was not ready again within {START_S:.0f} s")
        return job.ready is not None

    def _check_alive(self) -> None:
        for child in (*self._live.children(), *self._others):
            if child.exit_code is not None:
                raise ChildError(child)

    def _verify(self, live: Live, preparation: Preparation, logs: Path) -> Record:
        arguments = ["--app", self._app_name, "--archive", str(self._folder / "archive")]
        if live.model_server is not None:
            arguments += ["--model-server", live.model_at()]
        arguments += ["--history", str(preparation.history), "--json"]
        child = Child("verify", ["cli", "verify", *arguments], logs / "verify.log")
        self._stack.callback(child.stop, 5)
        try:
            return child.wait(300)
        except ChildError:
            if child.exit_code == 1 and child.result:  # it says that something differs
                return child.result
            raise

    def _progress(self, step: str, share: float | None, line: str) -> None:
        stage = self._stages[step]
        stage.share, stage.detail = share, line
        self._changed(stage)

    @contextmanager
    def _stage(self, key: str) -> Iterator[Stage]:
        stage = self._stages[key]
        stage.state, stage.began_s = "running", time.monotonic()
        self._changed(stage)
        yield stage
        stage.state, stage.share, stage.seconds = "done", None, time.monotonic() - stage.began_s
        self._changed(stage)

    def _changed(self, stage: Stage) -> None:
        for listener in self._listeners:
            listener(stage)


def _described(history: dict[str, Any]) -> str:
    """A history in a few words."""
    if "events" not in history:
        return "as found"
    events = ", ".join(f"{count:,} {name}" for name, count in history["events"].items())
    return f"{events}; {history['first_publish'][:10]} to {history['last_publish'][:10]}"


def _kept(made: dict[str, Any]) -> str:
    return " (kept)" if made.get("reused") else ""


def _receive(tally: Tally, record: Record) -> None:
    """Take a report of the subscriber."""
    if "predictions" in record:
        tally.got(record["predictions"])
        tally.reacted(record["reactions"])
        tally.dead_letters.update(record["dead_letters"])


def _note_sent(tally: Tally, record: Record) -> None:
    """Take a report of the publisher."""
    if "sent" in record:
        tally.sent(record["sent"])
    elif "phase_done" in record:
        tally.failed += record["failed"]
        tally.phases_done = record["phase_done"] + 1


def _new_folder(home: Path) -> tuple[Path, IO[str]]:
    """A folder for this run, held by a lock; those of earlier runs that have ended are removed.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        for old in home.glob("run-*"):
            _remove_unless_held(old)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=home))
        lock = (folder / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigurationError(
            f"folder {home} cannot be written ({error.strerror}): make it writable, or run the demo elsewhere"
        ) from None
    return folder, lock


def _remove_unless_held(folder: Path) -> None:
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return  # another run is just making it, or is removing it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
