"""The streaming job on Flink: the same graph, submitted to a Beam job server, its steps in a worker process.

The worker makes the job's parts in its own process, from the description that is the source's element. Flink keeps
the source's place, and each stage's token; the archive is what state comes back from. So:

* an event is acknowledged when it is archived, its results are published, and a checkpoint that its work was part of
  has completed;
* where the worker process ends, Flink starts the steps again in another, which comes back from the archive as any
  restarted job does;
* where the process lives on but a bundle failed, or Flink went back to an older checkpoint, the numbers of the works
  or the tokens do not fit, and the job begins anew from the archive (see `streaming.runtime`).

One worker process for the whole job: parallelism is 1. The archive's lock refuses a second one.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineState

from shared_features.app import App
from shared_features.errors import ConfigurationError
from shared_features.plan import make_plan
from streaming import runtime
from streaming.delivery import Totals
from streaming.job import JobSettings, StreamingJob, build
from streaming.job_description import describe_job, read_description
from streaming.source import PullMessages
from streaming.stages import Deliver
from streaming.work import Work

log = logging.getLogger(__name__)

CALL_S = 0.2
"""How long one call of the source pulls: what it pulls goes on when the call ends, and the next comes 0.1 s later."""

IDLE_S = 1.0
"""How much longer it waits: each call leaves 6 KB in Flink's state for good (https://github.com/apache/beam/issues/27648)."""

POLL_S = 0.2
CONNECT_S = 5.0
END_S = 20.0
SERVER_TIMEOUT_S = 60

_RUNNING = PipelineState.RUNNING


@dataclass(frozen=True, slots=True)
class FlinkSettings:
    """Where and how a job runs on Flink.

    Attributes:
        job_endpoint: ``host:port`` of the Beam job server.
        worker_pool: ``host:port`` of a Beam worker pool that the task manager reaches; None runs the steps in the
            process that submits, which a task manager on the same machine reaches.
        checkpoint_ms: between two checkpoints, and so about the longest an acknowledgement waits.
        start_s: how long to wait until the job runs.
    """

    job_endpoint: str
    worker_pool: str | None = None
    checkpoint_ms: int = 2_000
    start_s: float = 120.0


class PullOnWorker(PullMessages):
    """The source on a worker: begins the job in its process, and sends an empty work where there are no messages.

    That heartbeat shows later steps a gap, and brings a checkpoint's notice that got lost, without another event.
    """

    call_s = CALL_S
    idle_s = IDLE_S
    heartbeat = True

    def job(self, element: bytes) -> runtime.Job:
        job = runtime.obtain(element, partial(begin, element))
        if job.delivery.failure is not None:
            runtime.begin_anew(element, job, RuntimeError("a commit failed"))
            job = runtime.get(element)
        return job


class DeliverAfterCheckpoint(Deliver):
    """The sink where the runner takes checkpoints: what it delivers is acknowledged when one has completed."""

    def process(
        self,
        element: tuple[bytes, Work],
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
    ) -> None:
        job_id, work = element
        job = self.deliver(job_id, work)
        if job is not None and job.acks is not None:
            finalizer.register(partial(job.acks.checkpointed, job.messages_delivered))


_OPEN: dict[bytes, StreamingJob] = {}
_LEFT: set[bytes] = set()
"""Jobs that this process has taken leave of; Flink may go on asking it for their steps until it ends."""


def begin(description: bytes, stopping: threading.Event | None = None) -> runtime.Job:
    """Make the job of this description in this process, from its archive."""
    if description in _LEFT:
        raise RuntimeError("this process works for the job no more: end the job on Flink's page")
    app, settings = read_description(description)
    opened = StreamingJob(app, settings, life=os.urandom(8).hex())
    _OPEN[description] = opened
    parts = opened.parts
    parts.stopping = stopping or parts.stopping
    parts.reopen = partial(_begin_again, description, parts.stopping)
    return parts


def _begin_again(description: bytes, stopping: threading.Event) -> runtime.Job:
    end(description)
    return begin(description, stopping)


def end(description: bytes) -> None:
    """Close the job of this description in this process, if there is one."""
    opened = _OPEN.pop(description, None)
    if opened is None:
        return
    try:
        opened.close()
    except RuntimeError as error:
        log.warning("what was not committed comes again: %s", error)


class FlinkJob:
    """One streaming job on Flink, seen from where it was submitted.

    Args:
        app: the app.
        settings: of the job; the archive must be where the worker reaches it.
        flink: see `FlinkSettings`.

    Raises:
        ConfigurationError: the job server does not answer; or, where the steps run in this process, as `StreamingJob`.
    """

    def __init__(self, app: App, settings: JobSettings, flink: FlinkSettings) -> None:
        self.app, self.flink = app, flink
        self.description = describe_job(app, settings)
        self._stopping = threading.Event()
        _reach(flink.job_endpoint)
        _LEFT.discard(self.description)
        self.here: StreamingJob | None = None
        if flink.worker_pool is None:
            runtime.obtain(self.description, partial(begin, self.description))
            self.here = _OPEN[self.description]
        pipeline = beam.Pipeline(runner=PortableRunner(), options=flink_options(app, flink))
        build(
            pipeline,
            make_plan(app),
            self.description,
            PullOnWorker(),  # type: ignore[no-untyped-call]
            DeliverAfterCheckpoint(),  # type: ignore[no-untyped-call]
        )
        self._result = pipeline.run()
        try:
            self._wait_until_running()
        except BaseException:
            self._cancel()
            raise

    def stop(self) -> None:
        """Ask the job to end. Safe in a signal handler."""
        self._stopping.set()

    def run(self) -> Totals | None:
        """Run until `stop` is called.

        Where the steps run in this process the job drains: it pulls nothing more, and what was pulled is delivered
        and acknowledged. Elsewhere it goes on: Beam's job server forgets it when it is told to cancel, Flink does not.

        Returns:
            Counts of the job's last life, or None if its steps ran elsewhere.

        Raises:
            RuntimeError: the job ended by itself.
        """
        try:
            while not self._stopping.wait(POLL_S):
                if PipelineState.is_terminal(self._result.state):
                    self._result.wait_until_finish()
                    raise RuntimeError(f"the job on Flink ended by itself: {self._result.state}")
            if self.here is not None:
                self._drain()
        finally:
            self._cancel()
        return None if self.here is None else self.here.totals

    def _drain(self) -> None:
        """Wait until everything pulled has been acknowledged, or three checkpoints should have come."""
        parts = runtime.get(self.description)
        parts.stopping.set()
        until = time.monotonic() + CALL_S + 3 * self.flink.checkpoint_ms / 1000 + CONNECT_S
        while not _is_settled(runtime.get(self.description)) and time.monotonic() < until:
            time.sleep(POLL_S / 4)

    def _wait_until_running(self) -> None:
        until = time.monotonic() + self.flink.start_s
        while (state := self._result.state) != _RUNNING:
            if PipelineState.is_terminal(state) or time.monotonic() > until:
                raise ConfigurationError(
                    f"the job on Flink is {state}, wanted {_RUNNING} within {self.flink.start_s:g} s: look into the "
                    f"log of the job server at {self.flink.job_endpoint}"
                )
            self._stopping.wait(POLL_S)

    def _cancel(self) -> None:
        """Take leave of the job server, and end what this process holds of the job."""
        self._result.cancel()
        until = time.monotonic() + END_S
        while not PipelineState.is_terminal(self._result.state) and time.monotonic() < until:
            time.sleep(POLL_S / 4)
        if self.here is not None:
            self.here = _OPEN.get(self.description, self.here)
            _LEFT.add(self.description)
            runtime.forget(self.description)
            end(self.description)


def _is_settled(job: runtime.Job) -> bool:
    assert job.acks is not None
    return job.passed.get("deliver", 0) == job.works_pulled and job.acks.sent == job.messages_delivered


class _FlinkOptions(PipelineOptions):
    """The runner's own options, which Beam's Python half would otherwise take for slips until the job server says."""

    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--checkpointing_interval", type=int)
        parser.add_argument("--finish_bundle_before_checkpointing", action="store_true", default=None)
        parser.add_argument("--max_bundle_time_mills", type=int)


def flink_options(app: App, flink: FlinkSettings) -> PipelineOptions:
    """Options of the portable runner.

    Bundles end before a checkpoint, so that none is split by it; elements are never in a checkpoint between steps.
    """
    where = ["LOOPBACK"] if flink.worker_pool is None else ["EXTERNAL", f"--environment_config={flink.worker_pool}"]
    return _FlinkOptions(
        [
            f"--job_endpoint={flink.job_endpoint}",
            f"--job_server_timeout={SERVER_TIMEOUT_S}",
            f"--job_name=sameriver-{app.name.replace('_', '-')}",
            "--environment_type=" + where[0],
            *where[1:],
            "--streaming",
            "--parallelism=1",
            "--sdk_worker_parallelism=1",
            f"--checkpointing_interval={flink.checkpoint_ms}",
            "--finish_bundle_before_checkpointing",
            "--max_bundle_time_mills=50",
        ]
    )


def _reach(job_endpoint: str) -> None:
    host, _, port = job_endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError):
        raise ConfigurationError(
            f"job server {job_endpoint!r} does not answer: wanted host:port of a Beam job server for Flink; start one "
            "as docs/flink.md says"
        ) from None
