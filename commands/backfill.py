"""`sameriver backfill`: features and predictions of a past range, into the tables that the stream writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, batch_runner_options, folder_option, json_option
from commands.servers import check_model

if TYPE_CHECKING:
    from batch.backfill import BackfillSummary
    from batch.backfill_rows import Asking
    from shared_features.app import App

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command()
@app_option
@click.option(
    "--source", show_default="var/history/<app>", help="History: a folder of Parquet, or bq://project.dataset.table."
)
@click.option(
    "--out", show_default="var/backfill/<app>", help="Folder, gs://bucket/folder, or bq://project.dataset.table."
)
@click.option("--from", "since", type=_TIME, help="UTC; events published from there on.  [default: all]")
@click.option("--to", "until", type=_TIME, help="UTC; events published before.  [default: all]")
@click.option("--model-server", metavar="HOST:PORT,…", help="Predicts.  [default: this process, with --models]")
@folder_option("--models", "models that predict in this process", "var/models/<app>")
@click.option("--collect", is_flag=True, help="No predictions: features only.")
@click.option("--whole-history", is_flag=True, help="Fold all that was published before, however old.")
@folder_option("--work", "what waits between two steps, gone at the end", "in --out, or var/backfill-work/<app>")
@click.option("--shards", type=click.IntRange(1), show_default="by the rows", help="Into how many shards keys go.")
@batch_runner_options
@json_option
def backfill(
    app_name: str,
    source: str | None,
    out: str | None,
    since: datetime | None,
    until: datetime | None,
    model_server: str | None,
    models: Path | None,
    collect: bool,
    whole_history: bool,
    work: Path | None,
    shards: int | None,
    runner: str,
    beam_options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Features and predictions of a past range, as the stream would have archived them.

    Rows get the prediction_id that the stream gives: run again, it adds none; what is there stays. A run that was cut
    off goes on where it was.
    """
    app = options.load(app_name)
    where = out or str(options.VAR / "backfill" / app.name)
    if work is None and "://" in where:
        work = options.VAR / "backfill-work" / app.name
    with output.progress("backfill") as tell, _asking(app, model_server, models, collect, runner) as asking:
        tell(0.0, "loading Beam")
        from batch.backfill import backfill as job

        summary = job(
            app,
            source or options.history_folder(app),
            where,
            since=None if since is None else since.replace(tzinfo=UTC),
            until=None if until is None else until.replace(tzinfo=UTC),
            asking=asking,
            whole_history=whole_history,
            work=work,
            shards=shards,
            runner_options=[*options.runner_options(runner), *beam_options],
            progress=tell,
        )
    if as_json:
        output.print_json(summary.as_dict())
    else:
        _tell(summary)


@contextmanager
def _asking(
    app: App, model_server: str | None, models: Path | None, collect: bool, runner: str
) -> Iterator[Asking | None]:
    """Whom to ask for predictions; a model server in this process where no other is named."""
    if collect or not app.models:
        yield None
        return
    from batch.backfill_rows import ask_models
    from serving.server import ModelServer
    from serving.versions import ModelSettings
    from shared_features.errors import ConfigurationError

    names = options.served_models(app)
    if model_server is not None or not names:
        yield ask_models(app, model_server or "")
        return
    if runner != "in-process":
        raise ConfigurationError(f"workers of {runner} cannot ask this process: give a --model-server that they reach")
    home = models or options.models_folder(app)
    for name in names:
        check_model(home, name, app, "or name another folder with --models, a --model-server, or --collect")
    with ModelServer([ModelSettings(name, home / name) for name in names], port=0, poll_s=0) as server:
        yield ask_models(app, f"127.0.0.1:{server.port}")


def _tell(summary: BackfillSummary) -> None:
    done = "done before" if summary.reused else f"{summary.seconds:.0f} s"
    click.echo(
        f"{summary.out}: {summary.rows_added:,} rows added, {summary.rows_there:,} were there ({done}); "
        f"{summary.files} files, {summary.bytes / 1e6:.0f} MB"
    )
    output.print_table(["outcome", "rows"], [[name.replace("_", " "), f"{n:,}"] for name, n in summary.rows.items()])
    if summary.rows_differing:
        click.echo(f"rows that are there with other values, left as they are: {summary.rows_differing:,}")
    for reason, number in summary.events_left_out.items():
        click.echo(f"events left out, {reason.replace('_', ' ')}: {number:,}")
    for key, number in summary.without_key.items():
        click.echo(f"events whose {key} is null, not seen in its windows: {number:,}")
