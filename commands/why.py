"""`sameriver why`: what made one prediction, event by event, and the same again."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from batch.why_contributions import Compared
    from batch.why_report import Ask, Asked
    from serving.client import ModelClient
    from shared_features.app import Model

SHOWN = 10
"""Events of a window in a table, unless --events says otherwise."""
SERVER_WAIT_S = 10.0


@click.command()
@click.argument("prediction_id", metavar="PREDICTION_ID", help="As in the message.")
@app_option
@folder_option("--archive", "the job's archive", "var/archive/<app>")
@folder_option("--models", "the model's versions, to compute the prediction again", "var/models/<app>")
@click.option("--model-server", metavar="HOST:PORT", help="Asks this server again, not a version in --models.")
@click.option("--event-id", metavar="ID", help="The event's identity, as in the message: finds the row faster.")
@click.option(
    "--day", type=click.DateTime(["%Y-%m-%d"]), help="Publish date of the event (UTC): other days are not read."
)
@click.option(
    "--events",
    type=click.IntRange(0),
    show_default=f"{SHOWN} in tables, all in JSON",
    help="At most so many events of each window.",
)
@click.option(
    "--background",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    show_default="those kept with the version in --models",
    help="Parquet file of training rows to compare the prediction with.",
)
@click.option(
    "--background-rows", default=256, type=click.IntRange(0), help="Compare with so many; 0: without contributions."
)
@click.option("--log-odds", is_flag=True, help="Tell contributions to the logarithmic odds of the prediction.")
@json_option
@click.pass_context
def why(
    ctx: click.Context,
    prediction_id: str,
    app_name: str,
    archive: Path | None,
    models: Path | None,
    model_server: str | None,
    event_id: str | None,
    day: datetime | None,
    events: int | None,
    background: Path | None,
    background_rows: int,
    log_odds: bool,
    as_json: bool,
) -> None:
    """Show what made a prediction: events in each window, features, tensors; compute it again; what contributed to it.

    Features must come out to the bit, predictions within 1e-6; exit code 1 if they do not. What each feature
    contributed are Shapley values, against rows of training.
    """
    app = options.load(app_name)
    from batch.why import find_prediction, gather_evidence
    from batch.why_report import explain

    folder = archive or options.archive_folder(app)
    home = models or options.models_folder(app)
    compared = _compared(home, background, background_rows, log_odds=log_odds) if background_rows else None
    shown = SHOWN if events is None and not as_json else events
    with ExitStack() as stack:
        tell = stack.enter_context(output.progress("reading the archive"))
        found = find_prediction(
            app, folder, prediction_id, event_id=event_id, day=None if day is None else day.date(), progress=tell
        )
        evidence = gather_evidence(app, folder, found, progress=tell)
        ask = _of_server(stack, model_server) if model_server else _of_folder(stack, home)
        told = explain(app, prediction_id, evidence, ask, events=shown, compared=compared)
    if as_json:
        output.print_json(told)
    else:
        _tell(told)
    if not told["same"]:
        ctx.exit(1)


def _compared(home: Path, file: Path | None, most: int, *, log_odds: bool) -> Compared:
    """With the rows of a file, or with those that the version keeps."""
    from batch.why_contributions import Compared
    from training.background import read_background

    given = None if file is None else read_background(file)

    def rows(model: Model, version: int) -> pa.Table:
        return read_background(home / model.name / str(version)) if given is None else given

    return Compared(rows, most, log_odds)


def _of_folder(stack: ExitStack, home: Path) -> Ask:
    """Asks the very version that served, loaded in this process; nobody where it is not in the folder."""

    def ask(model: Model, version: int, block: pa.RecordBatch) -> Asked | None:
        from batch.why_report import Asked
        from serving.in_process import InProcessModel

        folder = home / model.name / str(version)
        if not folder.is_dir():
            return None
        loaded = InProcessModel(model.name, version, folder)
        stack.callback(loaded.close)
        outputs = {name: float(values[0]) for name, values in loaded.predict(block).items()}
        return Asked(version, outputs, loaded.tensors(block), loaded.predict)

    return ask


def _of_server(stack: ExitStack, target: str) -> Ask:
    """Asks the version that a server serves now."""

    def ask(model: Model, _: int, block: pa.RecordBatch) -> Asked | None:
        from batch.why_report import Asked
        from serving.client import ModelClient
        from serving.in_process import input_tensors

        client = stack.enter_context(ModelClient(target, model.name))
        _require_answer(client)
        answer = client.predict(block).result()
        outputs = {name: float(values[0]) for name, values in answer.outputs.items()}
        tensors = input_tensors(model.name, client.metadata(), block)
        return Asked(answer.model_version, outputs, tensors, lambda rows: _answered(client, rows))

    return ask


def _require_answer(client: ModelClient) -> None:
    """A job waits for its model server for ever; whoever asks about one prediction does not."""
    from serving.model_error import ModelError
    from shared_features.errors import ConfigurationError

    given_up = threading.Event()

    def give_up() -> None:
        given_up.set()
        client.close()

    patience = threading.Timer(SERVER_WAIT_S, give_up)
    patience.start()
    try:
        client.metadata()
    except ModelError as error:
        if not given_up.is_set():
            raise
        raise ConfigurationError(
            f"model server {client.target} has not answered for {SERVER_WAIT_S:.0f} s: start it, or leave out "
            "--model-server and give --models"
        ) from error
    finally:
        patience.cancel()


def _answered(client: ModelClient, rows: pa.RecordBatch) -> Mapping[str, np.ndarray]:
    from shared_features.errors import ConfigurationError

    answer = client.predict(rows).result()
    for reason in answer.refused.values():
        raise ConfigurationError(f"model {client.model} refuses a row of mixed features: {reason}")
    return answer.outputs


# -- for people ---------------------------------------------------------------------------------------------
def _tell(told: Mapping[str, Any]) -> None:
    event = told["event"]
    of = f"{told['model']} version {told['model_version']}" if told["model"] else "no model yet"
    click.echo(f"prediction {told['prediction_id']} of {told['app']}, {of}, fingerprint {told['fingerprint']}")
    click.echo(f"{event['event_type']} {event['event_id']} of {event['event_time']}, published {event['publish_time']}")
    click.echo("")
    keys = ["key", "value", "epoch", "shard", "position", "late"]
    lines = [[_short(one[part]) for part in ("stage", *keys[1:])] for one in _renamed(told["stages"])]
    output.print_table(keys, lines)
    click.echo("")
    features = [
        [one["feature"], _short(one["served"]), _short(one["again"]), _same(one["same"])] for one in told["features"]
    ]
    output.print_table(["feature", "served", "again", "same"], features)
    if told["snapshot_cut"] is not None:
        cut = told["snapshot_cut"]
        click.echo(f"\npublished before {cut}: in the snapshot that the archive begins with, counted but not listed")
    for window in told["windows"]:
        _tell_window(window)
    for prediction in told["predictions"]:
        _tell_prediction(prediction)
    if told["reactions"]:
        click.echo(f"\nreactions that fired: {', '.join(told['reactions'])}")
    if not told["same"]:
        click.echo("\nSomething did not come out again: see above")
    elif all(prediction["same"] for prediction in told["predictions"]):
        click.echo("\nall of it came out again")
    else:
        click.echo("\nall features came out again; a prediction was not computed again: see above")


def _renamed(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "value": one["key"]} for one in stages]


def _tell_window(window: Mapping[str, Any]) -> None:
    begin = "the beginning" if window["from"] is None else window["from"]
    edge = "[" if window["from_included"] else "("
    condition = f" where {window['where']}" if window["where"] else ""
    events = "1 event" if window["count"] == 1 else f"{window['count']:,} events"
    click.echo(
        f"\n{window['value']}{condition} by {window['stage']} {_short(window['key'])} over {window['over']}: {events} "
        f"in {edge}{begin}, {window['to']}], {window['late']:,} of them late"
    )
    for definition, value in window["aggregates"].items():
        click.echo(f"  {definition} = {_short(value)}")
    click.echo(f"  for {', '.join(window['features'])}")
    _tell_events(window["events"], window["count"])
    if window["too_late_count"]:
        click.echo(f"  {window['too_late_count']} events of this window came later than the prediction:")
        _tell_events(window["too_late"], window["too_late_count"])


def _tell_events(events: Sequence[Mapping[str, Any]], count: int) -> None:
    if len(events) < count:
        click.echo(f"  … {count - len(events):,} earlier ones (--events shows more)")
    if not events:
        return
    lines = [
        [
            f"  {one['event_time']}",
            f"{one['event_type']} {one['event_id']}",
            _short(one["value"]),
            f"{one['epoch']}/{one['shard']}/{one['position']}",
            f"{one['behind_s']:g} s" + (", beyond grace" if one["late"] else "") if one["behind_s"] else "",
        ]
        for one in events
    ]
    output.print_table(["  event time", "event", "value", "position", "late by"], lines)


def _tell_prediction(one: Mapping[str, Any]) -> None:
    click.echo("")
    if one["asked_version"] is None:
        click.echo(f"{one['model']}: version {one['version']} is not at hand, give --models or --model-server")
    elif one["same"] is None:
        click.echo(f"{one['model']}: version {one['version']} served, {one['asked_version']} answers now: not compared")
    lines = [
        [f"{one['model']}.{out['output']}", _short(out["served"]), _short(out["again"]), _short(out["apart"])]
        for out in one["outputs"]
    ]
    output.print_table(["prediction", "served", "again", "apart"], lines)
    if one["tensors"]:
        click.echo("")
        tensors = [
            [name, tensor["dtype"], str(tensor["shape"]), ", ".join(map(_short, tensor["values"]))]
            for name, tensor in one["tensors"].items()
        ]
        output.print_table(["input tensor", "dtype", "shape", "value"], tensors)
    if one["contributions"] is not None:
        _tell_contributions(one["model"], one["contributions"])


def _tell_contributions(model: str, told: Mapping[str, Any]) -> None:
    if "reason" in told:
        click.echo(f"\nno contributions: {told['reason']}")
        return
    for one in told["outputs"]:
        scale = "" if told["scale"] == "output" else f", as {told['scale']}"
        click.echo(
            f"\n{model}.{one['output']} is {one['base']:.4g} on average over {one['rows']:,} rows of training{scale}; "
            f"features make it {one['prediction']:.4g}:"
        )
        lines = [
            [
                feature["feature"],
                _short(feature["value"]),
                _short(feature["usual"]),
                f"{feature['contribution']:+.4f}",
                "" if feature["standard_error"] is None else f"{feature['standard_error']:.4f}",
            ]
            for feature in one["features"]
        ]
        output.print_table(["feature", "value", "usual", "contribution", "standard error"], lines)


def _short(value: Any) -> str:
    if value is None:
        return "null"
    return repr(value) if isinstance(value, float) else str(value)


def _same(same: bool) -> str:
    return "yes" if same else "NO"
