"""`sameriver archive export`: an archive's rows into BigQuery or Parquet, now or for as long as they come."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click
from click.core import ParameterSource

from commands import options, output
from commands.options import app_option, folder_option, follow_options, json_option, pubsub_options


@click.command()
@app_option
@folder_option("--archive", "the job's archive", "var/archive/<app>")
@click.option("--to", required=True, metavar="URI", help="bq://project.dataset.table, gs://bucket/folder, or a folder.")
@click.option(
    "--what",
    type=click.Choice(["archive", "predictions", "reactions"]),
    default="archive",
    show_default=True,
    help="Every event as it was folded; one row for each prediction; one for each reaction.",
)
@follow_options(10.0)
@pubsub_options
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    /,
    app_name: str,
    archive: Path | None,
    to: str,
    what: str,
    follow: bool,
    every_s: float,
    project: str,
    emulator: str | None,
    as_json: bool,
) -> None:
    """Export what the job has published to BigQuery or Parquet, each row once.

    It may run beside the job. The destination says how far it is, so an export that was stopped or killed goes on
    where it was. Events whose row BigQuery refuses become dead letters, with its reason, where --emulator or --project
    says on which Pub/Sub; else the rows are kept in the archive's folder `export`.
    """
    from batch import export as exports
    from commands.signals import stop_signal
    from streaming.topics import Publisher

    app = options.load(app_name)
    told_where = emulator is not None or ctx.get_parameter_source("project") is not ParameterSource.DEFAULT
    publisher = Publisher(options.endpoint(project, emulator), deadline_s=30.0) if told_where else None
    with ExitStack() as stack:
        if publisher is not None:
            stack.callback(publisher.close)
        publish = None if publisher is None else publisher.publish
        running = exports.Export(app, archive or options.archive_folder(app), what, to, publish)
        stack.callback(running.close)
        with stop_signal() as stop, output.progress(f"export to {to}") as tell:

            def told(commit: int) -> None:
                tell(0.0, f"commit {commit}")

            if follow:
                stop.drain = lambda: None
                exports.follow(running, every_s, stop.asked, told)
            else:
                running.catch_up(told)
    done = running.done
    if as_json:
        output.print_json(done.as_dict())
        return
    written = done.written
    where = running.rejected if publisher is None else "sameriver deadletters list --reason export_refused"
    click.echo(f"{written.rows:,} rows of {done.commits:,} commits written to {to}")
    if done.resumed_after >= 0:
        click.echo(f"commits up to {done.resumed_after:,} were there already")
    for number, text in (
        (written.existing, "rows were there already"),
        (written.differing, "of them with other values: they stay as they are, see the log"),
        (written.rejected, f"rows were refused: see {where}"),
    ):
        if number:
            click.echo(f"{number:,} {text}")
