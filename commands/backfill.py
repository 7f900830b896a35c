"""`sameriver backfill`: features and predictions of a past range, into the tables that the stream writes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, batch_runner_options, folder_option, json_option, span_option
from commands.predicting import asking, predicting_options

if TYPE_CHECKING:
    from batch.backfill import BackfillSummary

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
@predicting_options("No predictions and no reactions: features only.")
@click.option(
    "--reactions-to",
    metavar="URI",
    help="Also a row for each reaction that fires: folder, gs://bucket/folder, or bq://project.dataset.table.",
)
@click.option("--whole-history", is_flag=True, help="Fold all that was published before, however old.")
@folder_option("--work", "what waits between two steps, gone at the end", "in --out, or var/backfill-work/<app>")
@click.option("--shards", type=click.IntRange(1), show_default="by the rows", help="Into how many shards keys go.")
@span_option
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
    reactions_to: str | None,
    whole_history: bool,
    work: Path | None,
    shards: int | None,
    span: int | None,
    runner: str,
    beam_options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Features, predictions and reactions of a past range, as the stream would have archived them.

    Rows get the prediction_id that the stream gives: run again, it adds none; what is there stays. A run that was cut
    off goes on where it was.
    """
    app = options.load(app_name)
    where = out or str(options.VAR / "backfill" / app.name)
    if work is None and "://" in where:
        work = options.VAR / "backfill-work" / app.name
    if collect and reactions_to is not None:
        raise click.UsageError("--collect makes no predictions, which --reactions-to needs: give one of them")
    with (
        output.progress("backfill") as tell,
        asking(app, model_server, models, runner, collect=collect) as asked,
    ):
        tell(0.0, "loading Beam")
        from batch.backfill import backfill as job

        summary = job(
            app,
            source or options.history_folder(app),
            where,
            since=None if since is None else since.replace(tzinfo=UTC),
            until=None if until is None else until.replace(tzinfo=UTC),
            asking=asked,
            reactions=reactions_to,
            whole_history=whole_history,
            work=work,
            shards=shards,
            span=span,
            runner_options=options.runner_options(runner, beam_options),
            progress=tell,
        )
    if as_json:
        output.print_json(summary.as_dict())
    else:
        _tell(summary)


def _tell(summary: BackfillSummary) -> None:
    done = "done before" if summary.reused else f"{summary.seconds:.0f} s"
    click.echo(
        f"{summary.out}: {summary.rows_added:,} rows added, {summary.rows_there:,} were there ({done}); "
        f"{summary.files} files, {summary.bytes / 1e6:.0f} MB"
    )
    output.print_table(["outcome", "rows"], [[name.replace("_", " "), f"{n:,}"] for name, n in summary.rows.items()])
    if summary.reactions:
        output.print_table(["reaction", "fired"], [[name, f"{n:,}"] for name, n in summary.reactions.items()])
    if summary.reactions_added or summary.reactions_there:
        click.echo(f"rows of reactions: {summary.reactions_added:,} added, {summary.reactions_there:,} were there")
    if summary.rows_differing:
        click.echo(f"rows that are there with other values, left as they are: {summary.rows_differing:,}")
    for reason, number in summary.events_left_out.items():
        click.echo(f"events left out, {reason.replace('_', ' ')}: {number:,}")
    for key, number in summary.without_key.items():
        click.echo(f"events whose {key} is null, not seen in its windows: {number:,}")
