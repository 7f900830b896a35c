"""The streaming job as a graph of Beam's that keeps its state in the runner: for Dataflow, which pulls and publishes.

    read ─> decode ─> once ─> fold by origin ─> fold by plane ─> predict ─> (reactions) ─> commit ─┬─> publish
                    │shards│            │shards│            │shards│                             └─> tables

Between two steps that remember lies a shuffle by shard, an integer. What passes *Commit*, a shuffle by nothing, is
kept by the runner and never computed again: so what is published and what is archived are the same bits, however often
the steps before or after are repeated (contract C7), and the runner's commit is the acknowledgement (C6).

Sources and sinks are arguments: Pub/Sub and BigQuery on Dataflow, lists and files in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.gcp.pubsub import PubsubMessage, ReadFromPubSub, WriteToPubSub
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from google.protobuf import json_format

from shared_features.app import App
from shared_features.blocks import block_schema, empty_block
from shared_features.errors import ConfigurationError
from shared_features.kernel import step
from shared_features.state import StageState
from streaming import coders
from streaming import dataflow_steps as steps
from streaming.job import JobSettings
from streaming.job_description import describe_job
from streaming.naming import subscription_of
from streaming.pieces import Piece
from streaming.topics import Endpoint

coders.register()

Transform = beam.PTransform[Any, Any]
_KEYED = tuple[int, Piece]


@dataclass(frozen=True)
class Ends:
    """Where a job's events come from and where its results go.

    Attributes:
        source: gives `PubsubMessage`.
        publish: of a topic's name, what takes its messages.
        tables: by name, what takes the blocks of ended rows.
    """

    source: Transform
    publish: Callable[[str], Transform]
    tables: Mapping[str, Transform]


def build(pipeline: beam.Pipeline, app: App, settings: JobSettings, ends: Ends, shards: int) -> None:
    """The graph.

    Args:
        settings: as for other runners; where archive, monitoring and streams are is of no concern here.
        shards: of every step that remembers. The names of these steps carry it, and the app's fingerprint: an update
            of a running job that would lose its state is refused by the service, since the step is not there any more.
    """
    description = describe_job(app, settings)
    job = steps.read_job(description)
    state_of = f"{shards} shards of {app.fingerprint[:12]}"
    pieces = (
        pipeline
        | "Events" >> ends.source
        | "Decode" >> beam.ParDo(steps.Decode(description, shards)).with_output_types(_KEYED)
    )
    for number, keyed in enumerate(job.before, 1):
        fold = steps.Folding(description, True, number, shards)
        pieces = pieces | f"Fold {keyed.name}, {state_of}" >> beam.ParDo(fold).with_output_types(_KEYED)
    pieces = pieces | "Predict" >> beam.ParDo(steps.Predict(description, shards)).with_output_types(_KEYED)
    for number, keyed in enumerate(job.after, 1):
        fold = steps.Folding(description, False, number, shards)
        pieces = pieces | f"Fold {keyed.name}, {state_of}" >> beam.ParDo(fold).with_output_types(_KEYED)
    committed = pieces | "Rows" >> beam.Values() | "Commit" >> beam.Reshuffle()
    topics = steps.topics(app)
    messages = committed | "Publish" >> beam.ParDo(steps.Publish(description)).with_output_types(
        PubsubMessage, **dict.fromkeys(topics, PubsubMessage)
    ).with_outputs(*topics)
    for topic in topics:
        _ = messages[topic] | f"To {topic}" >> ends.publish(topic)
    blocks = committed | "Blocks" >> beam.ParDo(steps.Rows(description)).with_output_types(pa.RecordBatch)
    for name, table in ends.tables.items():
        _ = blocks | f"Table {name}" >> table


def pubsub_ends(
    app: App, endpoint: Endpoint, subscription: str | None, id_label: str | None, tables: Mapping[str, Transform]
) -> Ends:
    """Pub/Sub as Beam has it; Dataflow puts its own in the place of both transforms.

    Args:
        id_label: attribute by which Dataflow drops what Pub/Sub delivers twice within ten minutes; None: the message's
            id. Either way the job tells duplicates itself, by identity.
    """
    path = endpoint.subscription(subscription or subscription_of(app))
    source = ReadFromPubSub(subscription=path, id_label=id_label, with_attributes=True)
    return Ends(source, lambda topic: WriteToPubSub(endpoint.topic(topic), with_attributes=True), tables)


def pipeline_options(given: Sequence[str]) -> PipelineOptions:
    """Options of Dataflow's runner; those that are given win."""
    ours = ["--runner=DataflowRunner", "--streaming", "--enable_streaming_engine", "--no_save_main_session"]
    return PipelineOptions([*ours, *given])


def submit(app: App, settings: JobSettings, ends: Ends, shards: int, given: Sequence[str]) -> str:
    """Start, or update, the job; its id.

    Args:
        given: Beam's options, ``--project``, ``--region`` and ``--temp_location`` among them.
    """
    return str(_run(app, settings, ends, shards, pipeline_options(given)).job_id())


def job_graph(app: App, settings: JobSettings, ends: Ends, shards: int, given: Sequence[str]) -> str:
    """The graph as Dataflow would get it, as JSON of Beam's protocol buffer; nothing is sent anywhere."""
    options = pipeline_options([*given, "--dry_run=True"])
    return json_format.MessageToJson(_run(app, settings, ends, shards, options).job.proto_pipeline, sort_keys=True)


def _run(app: App, settings: JobSettings, ends: Ends, shards: int, options: PipelineOptions) -> Any:
    try:
        pipeline = beam.Pipeline(DataflowRunner(), options=options)
    except ValueError as error:
        missing = ", ".join(str(error).splitlines()[1:]) or str(error)
        raise ConfigurationError(
            f"Dataflow cannot take the job ({missing.rstrip('.')}): give --beam=--region=…, --beam=--temp_location=gs://…"
        ) from error
    build(pipeline, app, settings, ends, shards)
    return pipeline.run()


def ended_schema(app: App, settings: JobSettings) -> pa.Schema:
    """The columns of the blocks that tables take."""
    job = steps.read_job(describe_job(app, settings))
    block = empty_block(block_schema(app.event_types))
    for stage in job.plan.stages:
        block = step(StageState(stage), block)
    block = steps.with_results(job, block, None)
    for keyed in job.after:
        block = keyed.folder(0).fold(Piece(block)).block
    return block.schema
