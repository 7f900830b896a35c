"""`sameriver validate`: events against their schema, features against what training saw."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.evaluate import require_version, trained_model, version_option
from commands.options import app_option, folder_option, json_option, model_option, pubsub_options

if TYPE_CHECKING:
    from shared_features.app import App
    from streaming.topics import Message


@click.command()
@click.argument("uri", required=False, metavar="[URI]", help="Of the table.")
@app_option
@click.option("--topic", is_flag=True, help="Look at messages of the events topic, as they come, not at a table.")
@click.option("--sample", default=1_000, type=click.IntRange(1), help="With --topic: so many messages.")
@click.option(
    "--timeout", default=60.0, type=click.FloatRange(0), help="With --topic: end after so many quiet seconds."
)
@folder_option("--models", "models, one folder each", "var/models/<app>")
@model_option
@version_option
@click.option("--psi", default=0.25, type=click.FloatRange(0), help="Drift of a feature above this is a violation.")
@click.option(
    "--outside", default=0.01, type=click.FloatRange(0, 1), help="So is a larger share of values out of its range."
)
@pubsub_options
@json_option
@click.pass_context
def validate(
    ctx: click.Context,
    uri: str | None,
    app_name: str,
    topic: bool,
    sample: int,
    timeout: float,
    models: Path | None,
    model_name: str | None,
    version: int | None,
    psi: float,
    outside: float,
    project: str,
    emulator: str | None,
    as_json: bool,
) -> None:
    """Check a table or a sample of messages against the schema, and its features against the model's training data.

    URI is a history (a folder or file of Parquet, bq://project.dataset.table), training rows, or an archive; without
    one it is the app's archive. Drift is the population stability index. Exit code 1 on any violation.
    """
    if topic and uri is not None:
        raise click.UsageError("--topic and a URI do not go together: one of them is looked at")
    app = options.load(app_name)
    from batch.drift import Limits
    from batch.validation import validate_messages, validate_table

    statistics = _statistics(app, models or options.models_folder(app), model_name, version)
    limits = Limits(psi, outside)
    if topic:
        messages = _sample(app, project, emulator, sample, timeout)
        found = validate_messages(app, messages, statistics, limits, f"topic {app.name}-events").as_dict()
    else:
        uri = uri or str(options.archive_folder(app))
        with output.progress(f"validate {uri}") as tell:
            found = validate_table(app, uri, statistics, limits, tell).as_dict()
    if as_json:
        output.print_json(found)
    else:
        _tell(found)
    if not found["ok"]:
        ctx.exit(1)


def _statistics(app: App, home: Path, name: str | None, version: int | None) -> Mapping[str, Any]:
    """What a version of a model says of its training data; its features must be the app's."""
    from shared_features.fingerprint import check_same
    from training.export import latest_version, read_summary
    from training.sketches import read_reference

    model = trained_model(app, name)
    require_version(home / model.name, version)
    folder = home / model.name / str(version) if version is not None else latest_version(home, model.name)
    check_same(app.definitions, read_summary(folder)["definitions"], f"model {model.name}", app.spec)
    return read_reference(folder)


def _sample(app: App, project: str, emulator: str | None, most: int, timeout_s: float) -> Sequence[Message]:
    """Messages of the events topic from now on, by a subscription of our own."""
    from commands.signals import stop_signal
    from commands.tail import subscribed, until_quiet
    from streaming.naming import topics_of

    found: list[Message] = []
    with stop_signal() as stop:
        stop.drain = lambda: None
        arrivals: SimpleQueue[Message] = SimpleQueue()
        stopping: threading.Event = stop.asked
        name = topics_of(app)["events"]
        with subscribed(options.endpoint(project, emulator), name, arrivals, stopping):
            click.echo(f"sampling {name}", err=True)
            found += until_quiet(arrivals, stopping, most, timeout_s)
    return found


def _tell(found: Mapping[str, Any]) -> None:
    events = f"{found['events']:,} events, " if found["events"] else ""
    click.echo(f"{found['kind']} {found['source']}: {events}features of {found['rows']:,} rows")
    headings = ["feature", "PSI", "KS", "missing", "in training", "outside", "least", "greatest", "violations"]
    output.print_table(headings, [_line(one) for one in found["fields"]])
    if found["left_out"]:
        click.echo(f"{len(found['left_out'])} features need the past and are left out: {', '.join(found['left_out'])}")
    if found["example"]:
        click.echo(f"first refused: {found['example']}")
    for text in found["violations"]:
        click.echo(f"violation: {text}")
    if found["ok"]:
        click.echo("no violation")


def _line(one: Mapping[str, Any]) -> list[str]:
    ends = ["" if one[name] is None else f"{one[name]:.6g}" for name in ("low", "high")]
    psi = "few rows" if one["psi"] is None else f"{one['psi']:.3f}"
    ks = "" if one["ks"] is None else f"{one['ks']:.3f}"
    shares = [f"{one[name]:.1%}" for name in ("missing", "trained_missing", "outside")]
    return [one["feature"], psi, ks, *shares, *ends, str(len(one["violations"]) or "")]
