"""`sameriver stream --runner dataflow`: options, and the job's submission."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from commands import output

if TYPE_CHECKING:
    from shared_features.app import App
    from streaming.job import JobSettings

Command = TypeVar("Command", bound=Callable[..., Any])

TABLES = {"archive": "--archive-table", "predictions": "--prediction-table", "reactions": "--reaction-table"}

SHARDS = 32

_WHERE = "bq://project.dataset.table or gs://bucket/folder."
_OPTIONS = (
    click.option("--archive-table", metavar="URI", help=f"Dataflow: where every event goes, {_WHERE}"),
    click.option("--prediction-table", metavar="URI", help=f"Dataflow: where predictions go, too, {_WHERE}"),
    click.option("--reaction-table", metavar="URI", help=f"Dataflow: where reactions go, too, {_WHERE}"),
    click.option(
        "--shards", type=click.IntRange(1, 4096), help="Of every step that remembers.  [default: Flink 4, Dataflow 32]"
    ),
    click.option("--id-label", metavar="ATTRIBUTE", help="Dataflow: its own attribute to drop repetitions by."),
    click.option("--beam", "beam_options", multiple=True, metavar="OPTION", help="Dataflow: an option of Beam's."),
    click.option(
        "--dry-run",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Dataflow: write the job's graph there, and end.",
    ),
)


def dataflow_options(command: Command) -> Command:
    """What `run_on_dataflow` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def run_on_dataflow(app: App, settings: JobSettings, given: Mapping[str, Any], *, as_json: bool) -> None:
    """Submit the job, or write its graph.

    Args:
        given: the options of `dataflow_options`, as click gives them.
    """
    from batch.beam_tables import WriteRows, table_of
    from shared_features.errors import ConfigurationError
    from streaming.dataflow import ended_schema, job_graph, pubsub_ends, submit
    from streaming.job import create_topics
    from streaming.job_description import place_of

    if settings.snapshot is not None:
        raise ConfigurationError("a job on Dataflow cannot begin with a snapshot yet: leave --snapshot out")
    # What is on this machine is not on a worker, and a path of it would be another graph on every machine.
    settings = replace(settings, archive=Path("/"), models=None, traces=None, monitoring_port=None)
    shards, beam_options = given["shards"] or 32, [f"--project={settings.endpoint.project}", *given["beam_options"]]
    uris = {kind: given[option.strip("-").replace("-", "_")] for kind, option in TABLES.items()}
    if uris["archive"] is None:
        raise ConfigurationError(
            "a job on Dataflow has no archive on this machine: give --archive-table bq://project.dataset.table"
        )
    ended = ended_schema(app, settings)
    tables = {kind: table_of(app, kind, uri, ended) for kind, uri in uris.items() if uri is not None}
    sinks = {kind: WriteRows(place_of(app), kind, table) for kind, table in tables.items()}
    ends = pubsub_ends(app, settings.endpoint, settings.subscription, given["id_label"], sinks)
    if given["dry_run"] is not None:
        graph = job_graph(app, settings, ends, shards, beam_options)
        given["dry_run"].write_text(graph, encoding="utf-8")
        _tell({"graph": str(given["dry_run"])}, f"wrote the job's graph to {given['dry_run']}", as_json)
        return
    create_topics(app, settings.endpoint, settings.subscription)
    for table in tables.values():
        table.prepare()
    job_id = submit(app, settings, ends, shards, beam_options)
    _tell({"job_id": job_id}, f"submitted job {job_id}: drain it with `gcloud dataflow jobs drain {job_id}`", as_json)


def _tell(record: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        output.print_json(record)
    else:
        click.echo(line)
