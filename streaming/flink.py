"""The streaming job on a Flink cluster: submitted to a Beam job server, watched, and submitted again where it was lost.

What was folded, and what is not archived yet, is in Flink's checkpoints; a job starts from the newest one that the
archive's folder knows of. `streaming.cluster_steps` has the graph, docs/flink.md what happens when something ends.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineState

from shared_features.app import App
from shared_features.errors import ConfigurationError
from streaming.archive import read_counts, segments
from streaming.cluster_steps import build_cluster
from streaming.cluster_worker import DRAIN_FILE, ClusterJob
from streaming.delivery import Totals
from streaming.flink_monitoring import FlinkMonitoring
from streaming.flink_rest import UnreachableError, local_path, reach
from streaming.job import JobSettings, connect_models, create_topics
from streaming.job_description import describe_job
from streaming.key_groups import KEY_GROUPS, MAX_SHARDS
from streaming.monitoring_access import write_address
from streaming.monitoring_server import MonitoringServer

log = logging.getLogger(__name__)

POLL_S = 0.5
CONNECT_S = 5.0
SERVER_TIMEOUT_S = 60
BUNDLE_MS = 100
"""A bundle costs milliseconds in each step: with 30 ms, 255 events a second on 2 cores waited 2.7 times as long."""
DRAIN_CHECKPOINTS = 3
"""One holds what was pulled, the next says so (`streaming.covered`), and one more is not counted on."""
STATE_FILE = "flink.json"


@dataclass(frozen=True, slots=True)
class FlinkSettings:
    """Where and how a job runs on Flink.

    Attributes:
        job_endpoint: ``host:port`` of the Beam job server.
        rest: ``host:port`` of the job manager's REST API.
        worker_pool: ``host:port`` of a Beam worker pool, as each task manager reaches it.
        parallelism: workers of each step.
        shards: of each keyed stage; state is dealt out to workers by shard, so it is the most that parallelism can be.
        checkpoint_ms: between two checkpoints.
        hold: send results when a checkpoint holds them, not at once.
        start_from: a savepoint or checkpoint; None takes the newest that the archive's folder knows of.
        start_s: how long to wait until the job runs.
    """

    job_endpoint: str = "localhost:8099"
    rest: str = "localhost:8081"
    worker_pool: str = "localhost:50000"
    parallelism: int = 2
    shards: int = 4
    checkpoint_ms: int = 2_000
    hold: bool = False
    start_from: str | None = None
    start_s: float = 180.0


class FlinkJob:
    """One streaming job on Flink, seen from where it was submitted.

    Args:
        app: the app.
        settings: of the job; the archive must be where the workers reach it.
        flink: see `FlinkSettings`.

    Raises:
        ConfigurationError: the cluster does not answer, the settings do not fit, or the archive is of another job.
        FingerprintError: the served model was made with other features.
    """

    def __init__(self, app: App, settings: JobSettings, flink: FlinkSettings) -> None:
        self.app, self.settings, self.flink = app, settings, flink
        _check(settings, flink)
        connect(flink.job_endpoint)
        self.rest = reach(flink.rest)
        for routed in connect_models(app, settings).values():
            routed.close()
        create_topics(app, settings.endpoint, settings.subscription)
        self._job = ClusterJob(describe_job(app, settings), flink.shards, flink.checkpoint_ms, flink.hold)
        self._stopping = threading.Event()
        self._state = settings.archive / STATE_FILE
        settings.archive.mkdir(parents=True, exist_ok=True)
        (settings.archive / DRAIN_FILE).unlink(missing_ok=True)
        self._commits = _commits(settings.archive)
        self.monitoring = FlinkMonitoring(app, settings.archive, self._commits, self.rest)
        self.monitoring.readiness.fingerprint_matched = True
        self.job_id = self._running() or self._submit(flink.start_from or self._newest())
        self._served = None
        if settings.monitoring_port is not None:
            self._served = MonitoringServer(
                self.monitoring, settings.monitoring_host, settings.monitoring_port, settings.monitoring_access
            )
            write_address(settings.archive, self._served.url, settings.monitoring_access)

    @property
    def monitoring_url(self) -> str | None:
        """Where /metrics, /healthz, /readyz and /status are; None if nowhere."""
        return None if self._served is None else self._served.url

    def stop(self) -> None:
        """Ask the job to drain. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> Totals:
        """Watch the job until `stop` is called, and submit it again where the job manager has lost it; then drain.

        Draining pulls nothing more, waits until what was pulled is archived and acknowledged, and ends the job on
        Flink with a savepoint, from which it goes on when it is started again.

        Returns:
            Counts of what was committed meanwhile.
        """
        try:
            while not self._stopping.wait(POLL_S):
                if self._is_lost():
                    log.warning("Flink has lost the job: it is submitted again")
                    self._submit_again()
                self._note_checkpoints()
                self.monitoring.look(self.job_id)
            self._drain()
        finally:
            if self._served is not None:
                self._served.close()
        return self.totals()

    def totals(self) -> Totals:
        """Counts of the commits since this was made."""
        totals = Totals()
        for number, counts in enumerate(read_counts(self.settings.archive) if self._has_archive() else ()):
            if number < self._commits:
                continue
            totals.received += counts["received"]
            totals.duplicates += counts["duplicates"]
            totals.dead_letters += sum(counts["dead_letters"].values())
            totals.commits += 1
            for outcome, rows in counts["outcomes"].items():
                totals.outcomes[outcome] = totals.outcomes.get(outcome, 0) + rows
        return totals

    def savepoint(self, *, cancel: bool = False) -> str:
        """Write a savepoint into the archive's folder, note it there, and end the job if asked to."""
        folder = (self.settings.archive / "savepoints").absolute().as_uri()
        found = self.rest.savepoint(self.job_id, folder, cancel=cancel)
        self._note(savepoint=found if cancel else None)
        return found

    def _has_archive(self) -> bool:
        return (self.settings.archive / "archive.json").exists()

    def _drain(self) -> None:
        mark = self.settings.archive / DRAIN_FILE
        mark.touch()
        try:
            done, until = self._completed() + DRAIN_CHECKPOINTS, time.monotonic() + self.flink.start_s
            while self._completed() < done and time.monotonic() < until:
                time.sleep(POLL_S / 5)
            self.savepoint(cancel=True)
            until = time.monotonic() + CONNECT_S * 4
            while not self._has_ended() and time.monotonic() < until:
                time.sleep(POLL_S / 5)
        finally:
            mark.unlink(missing_ok=True)

    def _completed(self) -> int:
        return int(self.rest.checkpoints(self.job_id)["counts"]["completed"])

    def _has_ended(self) -> bool:
        try:
            return self.rest.state(self.job_id) in ("CANCELED", "FINISHED")
        except UnreachableError as error:
            log.warning("%s", error)
            return False

    def _is_lost(self) -> bool:
        """Whether the job manager answers and does not have the job at work."""
        try:
            self.rest.free_slots()
        except UnreachableError:
            return False
        try:
            return self.rest.state(self.job_id) in ("FAILED", "CANCELED", "FINISHED")
        except UnreachableError:
            return True

    def _submit_again(self) -> None:
        while not self._stopping.is_set():
            try:
                self.job_id = self._submit(self._newest())
                return
            except (ConfigurationError, RuntimeError, OSError) as error:
                log.warning("the job could not be submitted, and is tried again: %s", error)
                self._stopping.wait(POLL_S)

    def _submit(self, start_from: str | None) -> str:
        """Start the job on Flink and wait until all of its tasks run; its id."""
        if start_from is None and self._commits:
            raise ConfigurationError(
                f"archive {self.settings.archive} has commits but no checkpoint to go on from: give one with "
                "--start-from, or a new archive with --archive"
            )
        name = f"sameriver-{self.app.name.replace('_', '-')}-{secrets.token_hex(4)}"
        pipeline = beam.Pipeline(runner=PortableRunner(), options=flink_options(name, self.flink, start_from))
        build_cluster(pipeline, self.app, self.settings, self._job)
        result = pipeline.run()
        until, job_id = time.monotonic() + self.flink.start_s, None
        while time.monotonic() < until:
            try:
                job_id = job_id or self.rest.job_named(name)
                if job_id is not None and self.rest.state(job_id) == "RUNNING":
                    self._note(
                        job=job_id, shards=self.flink.shards, checkpoints=None, savepoint=None, before=start_from
                    )
                    return job_id
            except UnreachableError:
                pass
            if job_id is None and PipelineState.is_terminal(result.state):
                break
            time.sleep(POLL_S / 5)
        why = f"it is {result.state}" if job_id is None else self.rest.failure(job_id) or self.rest.state(job_id)
        if job_id is not None:
            self.rest.cancel(job_id)
        raise ConfigurationError(
            f"the job does not run on Flink within {self.flink.start_s:g} s ({why}): look into the logs of the job "
            f"server at {self.flink.job_endpoint} and of the task managers"
        )

    # -- what the archive's folder knows of the job on Flink ---------------------------------------------------
    def _known(self) -> dict[str, Any]:
        return json.loads(self._state.read_text("utf-8")) if self._state.exists() else {}

    def _note(self, **what: Any) -> None:
        known = self._known() | what
        temporary = self._state.with_suffix(".new")
        temporary.write_text(json.dumps(known), "utf-8")
        os.replace(temporary, self._state)

    def _note_checkpoints(self) -> None:
        """Where the job's checkpoints are, once there is one."""
        if self._known().get("checkpoints"):
            return
        try:
            latest = self.rest.checkpoints(self.job_id)["latest"]["completed"]
        except UnreachableError:
            return
        if latest and latest.get("external_path"):
            self._note(checkpoints=local_path(os.path.dirname(latest["external_path"])))

    def _running(self) -> str | None:
        """The job that was left running, if there is one."""
        job = self._known().get("job")
        try:
            running = job is not None and self.rest.state(job) in ("RUNNING", "CREATED", "RESTARTING")
        except UnreachableError:
            return None
        if not running:
            return None
        log.warning("job %s runs already: it is watched, with the settings that it was started with", job)
        return str(job)

    def _newest(self) -> str | None:
        """The savepoint that ended the job, or its newest checkpoint, or what it was itself started from."""
        known = self._known()
        if known and known["shards"] != self.flink.shards:
            raise ConfigurationError(
                f"the job on Flink has {known['shards']} shards, wanted {self.flink.shards}: state is cut by shard, so "
                "give the same number, or a new archive with --archive"
            )
        folder = known.get("checkpoints")
        found = [] if folder is None else list(Path(folder).glob("chk-*/_metadata"))
        newest = max(found, key=lambda path: int(path.parent.name.removeprefix("chk-")), default=None)
        checkpoint = None if newest is None else newest.parent.as_uri()
        return known.get("savepoint") or checkpoint or known.get("before")


class _FlinkOptions(PipelineOptions):
    """The runner's own options, which Beam's Python half would otherwise take for slips until the job server says."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        for name in ("checkpointing_interval", "min_pause_between_checkpoints"):
            parser.add_argument(f"--{name}", type=int)
        parser.add_argument("--max_bundle_time_mills", type=int)
        parser.add_argument("--savepoint_path")
        for name in ("finish_bundle_before_checkpointing", "allow_non_restored_state"):
            parser.add_argument(f"--{name}", action="store_true", default=None)
        for name in ("externalized_checkpoints_enabled", "retain_externalized_checkpoints_on_cancellation"):
            parser.add_argument(f"--{name}", action="store_true", default=None)


def flink_options(name: str, flink: FlinkSettings, start_from: str | None) -> PipelineOptions:
    """Options of the portable runner.

    Bundles end before a checkpoint, so that none is split by it; elements are never in a checkpoint between steps.
    Checkpoints have a pause between them, which `streaming.covered` relies on.
    """
    options = [
        f"--job_endpoint={flink.job_endpoint}",
        f"--job_server_timeout={SERVER_TIMEOUT_S}",
        f"--job_name={name}",
        "--environment_type=EXTERNAL",
        f"--environment_config={flink.worker_pool}",
        "--streaming",
        f"--parallelism={flink.parallelism}",
        f"--max_parallelism={KEY_GROUPS}",
        "--sdk_worker_parallelism=1",
        f"--checkpointing_interval={flink.checkpoint_ms}",
        f"--min_pause_between_checkpoints={flink.checkpoint_ms // 2}",
        "--externalized_checkpoints_enabled",
        "--retain_externalized_checkpoints_on_cancellation",
        "--finish_bundle_before_checkpointing",
        f"--max_bundle_time_mills={BUNDLE_MS}",
    ]
    if start_from is not None:
        options += [f"--savepoint_path={start_from}", "--allow_non_restored_state"]
    return _FlinkOptions(options)


def connect(job_endpoint: str) -> None:
    """Raise ConfigurationError unless something listens at the job server's ``host:port``."""
    host, _, port = job_endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError):
        raise ConfigurationError(
            f"job server {job_endpoint!r} does not answer: wanted host:port of a Beam job server for Flink; start one "
            "as docs/flink.md says"
        ) from None


def _commits(archive: Path) -> int:
    return sum(1 for _ in read_counts(archive)) if (archive / "archive.json").exists() and segments(archive) else 0


def _check(settings: JobSettings, flink: FlinkSettings) -> None:
    if not 1 <= flink.parallelism <= flink.shards <= MAX_SHARDS:
        raise ConfigurationError(
            f"--parallelism {flink.parallelism} and --shards {flink.shards} do not fit: wanted as many shards as "
            f"workers or more, and {MAX_SHARDS} at most"
        )
    for option, value in {"--snapshot": settings.snapshot, "--traces": settings.traces}.items():
        if value is not None:
            raise ConfigurationError(f"{option} is for a job in one process, wanted none with --runner flink")
