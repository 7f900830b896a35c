"""`sameriver archive export`: an archive's rows into BigQuery or Parquet, now or for as long as they come."""

from __future__ import annotations

from pathlib import Path

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option


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
@click.option("--follow", is_flag=True, help="Go on as the job goes on, until Ctrl-C.")
@click.option(
    "--every",
    "every_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds between two commits while following.",
)
@json_option
def export(
    app_name: str, archive: Path | None, to: str, what: str, follow: bool, every_s: float, as_json: bool
) -> None:
    """Export what the job has published to BigQuery or Parquet, each row once.

    It may run beside the job. The destination says how far it is, so an export that was stopped or killed goes on
    where it was. Rows that BigQuery refuses are kept, with its reason, in the archive's folder `export`.
    """
    from batch import export as exports
    from commands.signals import stop_signal

    app = options.load(app_name)
    running = exports.Export(app, archive or options.archive_folder(app), what, to)
    try:
        with stop_signal() as stop, output.progress(f"export to {to}") as tell:

            def told(commit: int) -> None:
                tell(0.0, f"commit {commit}")

            if follow:
                stop.drain = lambda: None
                exports.follow(running, every_s, stop.asked, told)
            else:
                running.catch_up(told)
    finally:
        running.close()
    done = running.done
    if as_json:
        output.print_json(done.as_dict())
        return
    written = done.written
    click.echo(f"{written.rows:,} rows of {done.commits:,} commits written to {to}")
    if done.resumed_after >= 0:
        click.echo(f"commits up to {done.resumed_after:,} were there already")
    for number, text in (
        (written.existing, "rows were there already"),
        (written.differing, "of them with other values: they stay as they are, see the log"),
        (written.rejected, f"rows were refused: see {running.rejected}"),
    ):
        if number:
            click.echo(f"{number:,} {text}")
