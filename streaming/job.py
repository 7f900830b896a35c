"""The streaming job: topic -> decode -> keyed stages -> features -> predict -> archive -> publish -> ack.

It runs on Beam's in-process runner, named explicitly. Everything after the source fuses into one stage and runs
inside the source's ``yield``; a test on the optimised graph keeps it so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from serving.client import ClientAccess, ModelClient
from serving.external import Externals, Wait, read_addresses
from shared_features.app import App, Rule
from shared_features.compute import warm_up
from shared_features.external import has_externals
from shared_features.fingerprint import check_same
from shared_features.plan import Plan, make_plan
from streaming import runtime
from streaming.archive import Archive
from streaming.deduplication import Deduplicator
from streaming.delivery import Delivery, Totals
from streaming.event_blocks import BlockLimits
from streaming.intake import Intake
from streaming.monitoring import Monitoring
from streaming.monitoring_access import MonitoringAccess, write_address
from streaming.monitoring_server import MonitoringServer
from streaming.naming import dead_letters_of, subscription_of, topics_of
from streaming.recovery import recover
from streaming.results import Answer
from streaming.revisions import schema_service
from streaming.routes import RoutedModel
from streaming.runner import mended
from streaming.saved_state import StateSaver
from streaming.snapshots import begin_from, seek_existing
from streaming.source import PullMessages
from streaming.stages import Decode, Deliver, Features, KeyedStage
from streaming.topics import Endpoint, Publisher, Subscriber, create_subscription, create_topic
from streaming.tracing import Tracing
from streaming.work import Work

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Settings of one streaming job.

    Attributes:
        endpoint: where topics and subscriptions are.
        archive: folder of the archive.
        model_server: ``host:port`` of the model server, several separated by commas; None for collect mode or a rule.
        model_access: certificates and token for the model servers; None speaks plaintext.
        models: folder with a folder for each model, where promotions stand; None: the newest versions predict.
        collect: compute, archive and publish features only, whatever models the app names.
        with_features: put the features into prediction messages.
        prediction_blocks: publish predictions as blocks, not one by one.
        horizon_s: deduplication horizon, seconds of event time.
        max_future_s: how far an event time may lie after its publish time.
        streams: of messages, open at once.
        max_messages: messages of one pull.
        max_waiting: blocks waiting for predictions before the pull stops.
        max_event_bytes: larger events are dead-lettered unread.
        max_block_events, max_block_bytes: larger blocks of events are dead-lettered unread; bytes when decompressed.
        schemas: folder of schemas that events were written with, ``<revision>.avsc``; then the Schema service is asked.
        monitoring_host, monitoring_port: where /metrics, /healthz and /readyz are; port 0 takes a free one, None none.
        monitoring_access: who may ask there; None: this machine.
        traces: where spans go: ``http://HOST:PORT`` of an OpenTelemetry collector, or a file; None: there are none.
        external: ``NAME=ADDRESS`` of external models, see `serving.external_calls`; others are on this machine.
        external_tokens: ``NAME=FILE`` with a token to show.
        snapshot: what a new archive begins with; its subscription is sent to a little before the snapshot's cut.
        subscription: what the job pulls, where another job of the app's pulls the usual one.
    """

    endpoint: Endpoint
    archive: Path
    model_server: str | None = None
    model_access: ClientAccess | None = None
    models: Path | None = None
    collect: bool = False
    with_features: bool = False
    prediction_blocks: bool = False
    horizon_s: int = 7 * 86_400
    max_future_s: int = 600
    streams: int = 1
    max_messages: int = 1_000
    max_waiting: int = 64
    max_event_bytes: int = 1 << 20
    max_block_events: int = 20_000
    max_block_bytes: int = 64 << 20
    schemas: Path | None = None
    monitoring_host: str = "127.0.0.1"
    monitoring_port: int | None = None
    monitoring_access: MonitoringAccess | None = None
    traces: str | None = None
    external: tuple[str, ...] = ()
    external_tokens: tuple[str, ...] = ()
    snapshot: Path | None = None
    subscription: str | None = None


def create_topics(app: App, endpoint: Endpoint, subscription: str | None = None) -> None:
    """Make the app's topics, the job's subscription and the one that keeps dead letters where they do not exist."""
    for topic in topics_of(app).values():
        create_topic(endpoint, topic)
    create_subscription(endpoint, subscription or subscription_of(app), topics_of(app)["events"])
    create_subscription(endpoint, dead_letters_of(app), topics_of(app)["dead-letters"])


class StreamingJob:
    """One streaming job in this process.

    Args:
        app: the app.
        settings: see `JobSettings`.

    Raises:
        ConfigurationError: the archive or a topic cannot be used.
        FingerprintError: the served model was made with other features.
    """

    def __init__(self, app: App, settings: JobSettings) -> None:
        self.app, self.settings = app, settings
        self.job_id = os.urandom(8).hex().encode("ascii")
        self.monitoring = Monitoring(app.name, app.fingerprint)
        self._served = None
        self._archive: Archive | None = None
        self._tracing: Tracing | None = None
        if settings.monitoring_port is not None:
            self._served = MonitoringServer(
                self.monitoring, settings.monitoring_host, settings.monitoring_port, settings.monitoring_access
            )
        try:
            self._open()
        except BaseException:
            self._let_go()
            raise

    def _open(self) -> None:
        app, settings = self.app, self.settings
        self.plan = make_plan(app)
        archive_of = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}
        self._tracing = None if settings.traces is None else Tracing(settings.traces, f"sameriver-{app.name}")
        self._routed = connect_models(app, settings)
        self._externals = connect_externals(app, settings, lambda seconds: self._job.stopping.wait(seconds))
        self.monitoring.readiness.fingerprint_matched = True
        archive = self._archive = Archive(settings.archive, archive_of)
        subscription = settings.subscription or subscription_of(app)
        if settings.snapshot is not None:
            go_back = partial(seek_existing, settings.endpoint, subscription)
            begin_from(settings.archive, settings.snapshot, self.plan, settings.horizon_s * 1_000_000, go_back)
        create_topics(app, settings.endpoint, subscription)
        warm_up(self.plan)
        self._publisher = Publisher(settings.endpoint)
        deduplicator = Deduplicator(settings.horizon_s * 1_000_000)
        deduplicator.warm_up()
        self.recovered = recover(
            self.plan,
            settings.archive,
            deduplicator,
            self._publisher.publish,
            with_features=settings.with_features,
            as_blocks=settings.prediction_blocks,
        )
        self.monitoring.recovered_rows = self.recovered.rows
        self.monitoring.readiness.state_restored = True
        # After a crash messages come back when their lease is over: the shortest that the service takes.
        subscriber = Subscriber(settings.endpoint, subscription, streams=settings.streams, lease_s=10)
        self._delivery = Delivery(
            app,
            predict={name: routed.predict for name, routed in self._routed.items()},
            archive=archive,
            publish=self._publisher.publish,
            acknowledge=subscriber.acknowledge,
            max_waiting=settings.max_waiting,
            with_features=settings.with_features,
            collect=settings.collect,
            as_blocks=settings.prediction_blocks,
            stages=self.recovered.stages,
            monitoring=self.monitoring,
        )
        intake = open_intake(app, settings, self._externals)
        states = runtime.StateCache(self.recovered.states)
        self._job = runtime.Job(
            self.plan,
            intake,
            deduplicator,
            states,
            subscriber,
            self._delivery,
            settings.max_messages,
            monitoring=self.monitoring,
            tracing=self._tracing,
            saver=StateSaver(self.plan, archive, self._delivery, deduplicator, states.states, self.recovered),
        )
        self.monitoring.watch(self._job)
        if self._served is not None:
            write_address(settings.archive, self._served.url, settings.monitoring_access)

    @property
    def parts(self) -> runtime.Job:
        """What the steps of the pipeline find in this process."""
        return self._job

    @property
    def totals(self) -> Totals:
        """Counts since the start."""
        return self._delivery.totals

    def stop(self) -> None:
        """Ask the job to drain: pull nothing more, finish what was pulled. Safe in a signal handler."""
        self._job.stopping.set()

    def run(self) -> Totals:
        """Run until `stop` is called, then drain. Raises what made the job fail."""
        runtime.register(self.job_id, self._job)
        try:
            with mended():
                pipeline = beam.Pipeline(runner=FnApiRunner(), options=pipeline_options())
                build(pipeline, self.plan, self.job_id)
                pipeline.run().wait_until_finish()
            if self._job.saver is not None:
                self._job.saver.between_works(at_end=True)
        finally:
            runtime.forget(self.job_id)
            self.close()
        return self.totals

    def close(self) -> None:
        """Commit what has passed all steps, then let go of everything. Raises what made commits fail."""
        try:
            self._delivery.close()
        finally:
            if self._job.saver is not None:
                self._job.saver.close()
            self._job.subscriber.close()
            self._publisher.close()
            for routed in self._routed.values():
                routed.close()
            if self._externals is not None:
                self._externals.close()
            self._let_go()

    def _let_go(self) -> None:
        """Free the archive and the port: another try in this process must find them so."""
        if self._archive is not None:
            self._archive.close()
        if self._tracing is not None:
            self._tracing.close()
        if self._served is not None:
            self._served.close()

    @property
    def monitoring_url(self) -> str | None:
        """Where /metrics, /healthz and /readyz are."""
        return None if self._served is None else self._served.url


def connect_models(app: App, settings: JobSettings) -> dict[str, RoutedModel]:
    """The way to every model that a server holds; none where there is no server, or nothing is predicted.

    Raises:
        FingerprintError: a model was made with other features.
    """
    found: dict[str, RoutedModel] = {}
    if settings.collect or settings.model_server is None:
        return found
    for model in app.models:
        if isinstance(model, Rule):
            continue
        home = None if settings.models is None else settings.models / model.name
        found[model.name] = RoutedModel(settings.model_server, model.name, home=home, access=settings.model_access)
        described = found[model.name].describe()
        if described.fingerprint != app.fingerprint:
            check_same(app.definitions, described.definitions, f"model {model.name!r}", app.spec)
    return found


def connect_externals(app: App, settings: JobSettings, wait: Wait | None = None) -> Externals | None:
    """The way to the models that are asked about the app's events; None where there are none.

    Args:
        wait: between two tries; True if the job was told to stop. None where a step is never told.

    Raises:
        ConfigurationError: an address cannot be used, or a model is not served there in the app's version.
    """
    addresses = read_addresses(settings.external, "--external")
    tokens = {name: Path(file) for name, file in read_addresses(settings.external_tokens, "--external-token").items()}
    if not (has_externals(app.event_types) or addresses or tokens):
        return None
    return Externals(app.event_types, addresses, tokens, wait=wait)


def open_intake(app: App, settings: JobSettings, externals: Externals | None) -> Intake:
    """What reads the job's messages, within its limits."""
    return Intake(
        app.event_types,
        max_event_bytes=settings.max_event_bytes,
        max_future_s=settings.max_future_s,
        limits=BlockLimits(settings.max_block_events, settings.max_block_bytes, settings.max_event_bytes),
        schemas_folder=settings.schemas,
        fetch=schema_service(settings.endpoint),
        ask=None if externals is None else externals.ask,
    )


def build(pipeline: beam.Pipeline, plan: Plan, job_id: bytes) -> None:
    """The graph: one source element, no shuffle on the way, elements with explicit coders.

    Args:
        pipeline: what the steps are added to.
        plan: of the app.
        job_id: the source's element, by which the steps find the job in their process.
    """
    keyed = tuple[bytes, Work]
    pull, decode, features, deliver = PullMessages(), Decode(), Features(), Deliver()  # type: ignore[no-untyped-call]
    works = (
        pipeline
        | "Job" >> beam.Create([job_id])
        | "Pull" >> beam.ParDo(pull).with_output_types(keyed)
        | "Decode" >> beam.ParDo(decode).with_output_types(keyed)
    )
    for number, stage in enumerate(plan.stages):
        works = works | f"Stage {stage.name}" >> beam.ParDo(KeyedStage(number)).with_output_types(keyed)
    works = works | "Features" >> beam.ParDo(features).with_output_types(keyed)
    _ = works | "Deliver" >> beam.ParDo(deliver)


def pipeline_options() -> PipelineOptions:
    """Options of the in-process runner: one worker in this very process."""
    return PipelineOptions(["--direct_num_workers=1", "--direct_running_mode=in_memory"])


def predictor(client: ModelClient) -> Callable[[pa.RecordBatch], Future[Answer]]:
    """The client's predictions as the delivery queue takes them."""

    def predict(block: pa.RecordBatch) -> Future[Answer]:
        answer: Future[Answer] = Future()

        def take(done: Future[Any]) -> None:
            error = done.exception()
            if error is not None:
                answer.set_exception(error)
                return
            prediction = done.result()
            answer.set_result(Answer(prediction.outputs, prediction.refused, prediction.model_version))

        client.predict(block).add_done_callback(take)
        return answer

    return predict
