"""The streaming job on a Flink cluster: submitted to a Beam job server, watched, and submitted again where it was lost.

What was folded, and what is not archived yet, is in Flink's checkpoints; a job starts from the newest one that the
archive's folder knows of. `streaming.cluster_steps` has the graph, docs/flink.md what happens when something ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from pathlib import Path

import apache_beam as beam
import grpc
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineState

from shared_features.app import App
from shared_features.errors import ConfigurationError, SameriverError
from streaming.archive import read_counts, segments
from streaming.cluster_steps import build_cluster
from streaming.cluster_worker import DRAIN_FILE, ClusterJob
from streaming.delivery import Totals
from streaming.flink_known import KnownJob
from streaming.flink_monitoring import FlinkMonitoring
from streaming.flink_rest import (
    CONNECT_S,
    FlinkRest,
    UnknownJobError,
    UnreachableError,
    connect,
    local_path,
    reach,
)
from streaming.flink_settings import FlinkSettings, check, flink_options
from streaming.job import JobSettings, connect_models, create_topics
from streaming.job_description import describe_job
from streaming.monitoring_access import write_address
from streaming.monitoring_server import MonitoringServer

log = logging.getLogger(__name__)

POLL_S = 0.5
DRAIN_CHECKPOINTS = 3
"""One holds what was pulled, the next says so (`streaming.covered`), and one more is not counted on."""
TELL_S = 30.0
"""How long nothing is said of what keeps a job from running."""
ENDED = ("CANCELED", "FINISHED")


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
        check(settings, flink)
        connect(flink.job_endpoint)
        self.rest = reach(flink.rest)
        for routed in connect_models(app, settings).values():
            routed.close()
        create_topics(app, settings.endpoint, settings.subscription)
        self._job = ClusterJob(describe_job(app, settings), flink.shards, flink.checkpoint_ms, flink.hold)
        self._stopping = threading.Event()
        self._told = ""
        self._known = KnownJob(settings.archive)
        (settings.archive / DRAIN_FILE).unlink(missing_ok=True)
        self._commits = _commits(settings.archive)
        self.monitoring = FlinkMonitoring(app, settings.archive, self._commits, self.rest)
        self.monitoring.readiness.fingerprint_matched = True
        self.job_id = self._running() or self._submit(flink.start_from or self._known.newest(flink.shards))
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

        Raises:
            ConfigurationError: somebody else has ended the job.
            UnreachableError: the cluster does not answer when the job is to be drained.
        """
        try:
            while not self._stopping.wait(POLL_S):
                if is_lost(self.rest, self.job_id):
                    log.warning("Flink has lost the job: it is submitted again")
                    self._submit_again()
                self._note_checkpoints()
                if not self.monitoring.look(self.job_id):
                    self._tell_failure()
            try:
                self._drain()
            except UnreachableError as error:
                raise UnreachableError(
                    f"{error}: the job is not drained; when the cluster is there, the same command goes on with it"
                ) from None
        finally:
            if self._served is not None:
                self._served.close()
            self._known.close()
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

    def _has_archive(self) -> bool:
        return (self.settings.archive / "archive.json").exists()

    def _drain(self) -> None:
        mark = self.settings.archive / DRAIN_FILE
        mark.touch()
        try:
            done, begin, told = self._completed() + DRAIN_CHECKPOINTS, time.monotonic(), 1
            while self._completed() < done and (waited := time.monotonic() - begin) < self.flink.start_s:
                if waited > told * TELL_S:
                    told += 1
                    log.warning("draining waits for a checkpoint; the job is %s", self.rest.state(self.job_id))
                time.sleep(POLL_S / 5)
            folder = (self.settings.archive / "savepoints").absolute().as_uri()
            self._known.note(savepoint=self.rest.stop_with_savepoint(self.job_id, folder))
            until = time.monotonic() + CONNECT_S * 4
            while not self._has_ended() and time.monotonic() < until:
                time.sleep(POLL_S / 5)
        finally:
            mark.unlink(missing_ok=True)

    def _completed(self) -> int:
        return int(self.rest.checkpoints(self.job_id)["counts"]["completed"])

    def _has_ended(self) -> bool:
        try:
            return self.rest.state(self.job_id) in ENDED
        except UnreachableError as error:
            log.warning("%s", error)
            return False

    def _submit_again(self) -> None:
        while not self._stopping.is_set():
            try:
                self.job_id = self._submit(self._known.newest(self.flink.shards))
                return
            except SameriverError as error:
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
        self._known.note(submitted=name, submitted_from=start_from)  # found again by the name if this process ends here
        try:
            job_id = self._until_it_runs(name, pipeline.run())
        except (RuntimeError, OSError, grpc.RpcError, grpc.FutureTimeoutError) as error:
            raise ConfigurationError(
                f"job server {self.flink.job_endpoint} did not take the job ({' '.join(str(error).split())[:300]}): "
                "look into its log"
            ) from None
        except BaseException:  # Ctrl-C while it starts is one
            self._abandon(name)
            raise
        self._known.began(job_id, self.flink.shards, start_from)
        return job_id

    def _until_it_runs(self, name: str, result: PipelineResult) -> str:
        """The id of the job of this name, once all of its tasks run."""
        begin, job_id, state, told = time.monotonic(), None, "", 1
        while (waited := time.monotonic() - begin) < self.flink.start_s:
            with contextlib.suppress(UnreachableError):
                job_id = job_id or self.rest.job_named(name)
                state = "" if job_id is None else self.rest.state(job_id)
            if job_id is not None and state == "RUNNING":
                return job_id
            if state in (*ENDED, "FAILED") or (job_id is None and PipelineState.is_terminal(result.state)):
                break
            if waited > told * TELL_S:
                told += 1
                log.warning("the job does not run yet: %s", self._why(job_id, result))
            time.sleep(POLL_S / 5)
        raise ConfigurationError(
            f"the job does not run on Flink after {waited:.0f} s ({self._why(job_id, result)}): look into the "
            f"logs of the job server at {self.flink.job_endpoint} and of the task managers"
        )

    def _why(self, job_id: str | None, result: PipelineResult) -> str:
        """Why a job does not run."""
        if job_id is None:
            return f"the job server says {result.state}"
        try:
            (slots, free), failure = self.rest.slots(), self.rest.failure(job_id)
        except UnreachableError as error:
            return str(error)
        wanted = self.flink.parallelism
        if slots < wanted or "NoResource" in failure:
            return f"{wanted} slots are wanted, the cluster has {slots}, of which {free} are free"
        return failure or "its tasks are being started"

    def _abandon(self, name: str) -> None:
        """End the job of this name, if it has come to Flink."""
        with contextlib.suppress(UnreachableError):
            job_id = self.rest.job_named(name)
            if job_id is not None:
                self.rest.cancel(job_id)

    def _tell_failure(self) -> None:
        """Log why the job does not run, if that is news."""
        try:
            failure = self.rest.failure(self.job_id)
        except UnreachableError as error:
            failure = str(error)
        if failure and failure != self._told:
            self._told = failure
            log.warning("the job does not run: %s", failure)

    def _note_checkpoints(self) -> None:
        """Where the job's checkpoints are, once there is one."""
        if self._known.read().get("checkpoints"):
            return
        try:
            latest = self.rest.checkpoints(self.job_id)["latest"]["completed"]
        except UnreachableError:
            return
        if latest and latest.get("external_path"):
            self._known.note(checkpoints=local_path(os.path.dirname(latest["external_path"])))

    def _running(self) -> str | None:
        """The job that was left running, if there is one."""
        known = self._known.read()
        name: str | None = known.get("submitted")
        job: str | None = known.get("job") if name is None else self.rest.job_named(name)
        try:
            if job is None or self.rest.state(job) not in ("RUNNING", "CREATED", "RESTARTING"):
                return None
        except UnknownJobError:
            return None
        if name is not None:
            self._known.began(job, self.flink.shards, known["submitted_from"])
        log.warning("job %s runs already: it is watched, with the settings that it was started with", job)
        return job


def _commits(archive: Path) -> int:
    return sum(1 for _ in read_counts(archive)) if (archive / "archive.json").exists() and segments(archive) else 0


def is_lost(rest: FlinkRest, job: str) -> bool:
    """Whether the job manager answers and does not have the job at work, though nobody has ended it.

    Raises:
        ConfigurationError: somebody has ended it.
    """
    try:
        state = rest.state(job)
    except UnknownJobError:
        return True
    except UnreachableError:
        return False
    if state in ENDED:
        raise ConfigurationError(
            f"job {job} was ended on Flink by somebody else ({state}): the same command goes on from its newest "
            "checkpoint; if it left a savepoint, name that with --start-from"
        )
    return state == "FAILED"
