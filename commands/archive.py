"""`sameriver archive`: what can be done with a job's archive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from commands import options, output
from commands.archive_export import export
from commands.options import app_option, folder_option, json_option


@click.group()
def archive() -> None:
    """The archive of a streaming job."""


@archive.command()
@app_option
@folder_option("--archive", "the job's archive", "var/archive/<app>")
@json_option
def compact(app_name: str, archive: Path | None, as_json: bool) -> None:
    """Turn the log of a stopped job into Parquet; a running job does so by itself, a day or 64 MB at a time.

    What was not published yet stays in the log, for the job to publish when it comes back.
    """
    from streaming.archive import compact_archive

    folder = archive or options.archive_folder(options.load(app_name))
    with output.progress("compacting the archive") as tell:
        tell(0.0, str(folder))
        done = compact_archive(folder)
    if as_json:
        output.print_json(asdict(done))
        return
    click.echo(
        f"{done.rows:,} rows of {done.segments} segments: {done.log_bytes / 1e6:,.1f} MB of log became "
        f"{done.parquet_bytes / 1e6:,.1f} MB in {folder / 'parquet'}"
    )
    if done.left:
        click.echo("the last segment stays in the log: not all of it has been published, or it is empty")


archive.add_command(export)
