"""`sameriver view`: a table that follows from an archive, computed once or kept up to date beside the live job."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, folder_option, follow_options, json_option, pubsub_options
from commands.signals import StopSignal, stop_signal

if TYPE_CHECKING:
    from batch.views import ViewFollower, ViewPublisher
    from shared_features.app import App

SHOWN = 10


@click.command()
@click.argument("name", required=False, help="Which of the app's views; not needed where there is one.")
@app_option
@folder_option("--archive", "the streaming job's archive", "var/archive/<app>")
@click.option(
    "--backfill",
    metavar="FOLDER",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Of the rows that `sameriver backfill` wrote there, in place of an archive's.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File of the table: .parquet or .csv.")
@click.option("--publish", is_flag=True, help="Publish the rows that change on the topic <app>-view-<name>.")
@follow_options(1.0)
@pubsub_options
@json_option
def view(
    name: str | None,
    app_name: str,
    archive: Path | None,
    backfill: Path | None,
    out: Path | None,
    publish: bool,
    follow: bool,
    every_s: float,
    project: str,
    emulator: str | None,
    as_json: bool,
) -> None:
    """Keep a table that follows from the archive, such as the vessels' hours of fishing by hour and place.

    Live and batch give the same table: the archive's rows are folded in their order. Published rows carry a revision;
    of two with the same key the one with the higher revision holds.
    """
    from batch.views import ViewFollower, check_ending, fold_backfill, view_of, write_table

    app = options.load(app_name)
    if out is not None:
        check_ending(out)  # before all is folded
    found, published = view_of(app, name), 0
    if backfill is not None:
        if archive is not None or publish or follow:
            raise click.UsageError(
                "--backfill is folded once and not published: leave out --archive, --publish and --follow"
            )
        folder, folded = backfill, fold_backfill(found, app, backfill)
    else:
        folder = archive or options.archive_folder(app)
        follower = ViewFollower(found, folder, app)
        with ExitStack() as stack:
            stop = stack.enter_context(stop_signal())
            stop.drain = stop.asked.set
            publisher = view_publisher(stack, app, follower, folder, project, emulator) if publish else None
            _keep(follower, publisher, out, stop, every_s if follow else None)
            published = 0 if publisher is None else publisher.published
        folded = follower.rows
    rows = found.table().num_rows if out is None else write_table(found, out)
    left_out = {reason: count for reason, count in getattr(found, "left_out", {}).items() if count}
    if as_json:
        told = {"view": found.name, "rows": rows, "folded": folded, "left_out": left_out, "published": published}
        output.print_json({**told, "out": str(out or "")})
        return
    table = found.table().slice(0, SHOWN)
    output.print_table(table.schema.names, [tuple(map(str, row.values())) for row in table.to_pylist()])
    click.echo(f"{rows:,} rows of view {found.name} from {folded:,} rows of {folder}", err=True)
    for reason, count in left_out.items():
        click.echo(f"left out: {count:,} {reason}", err=True)


def view_publisher(
    stack: ExitStack, app: App, follower: ViewFollower, archive: Path, project: str, emulator: str | None
) -> ViewPublisher:
    """Publishes a view's rows, with its cursor beside the archive; closed with ``stack``."""
    from batch.views import ViewPublisher
    from streaming.topics import Publisher, create_topic

    endpoint = options.endpoint(project, emulator)
    client = Publisher(endpoint)
    stack.callback(client.close)
    cursor = archive / "views" / f"{follower.view.name}.json"
    with options.reaching(endpoint):
        publisher = ViewPublisher(app, follower, cursor, client.publish)
        create_topic(endpoint, publisher.topic)
    return publisher


def _keep(
    follower: ViewFollower,
    publisher: ViewPublisher | None,
    out: Path | None,
    stop: StopSignal,
    every_s: float | None,
) -> None:
    """Fold until all is folded; with ``every_s`` go on until asked to stop, and write the file whenever rows change."""
    from batch.views import write_table

    while not stop.asked.is_set():
        changes = False
        for changed in follower.catch_up():
            changes = True
            if publisher is not None:
                publisher.take(changed)
            if stop.asked.is_set():
                return
        if every_s is None:
            return
        if changes and out is not None:
            write_table(follower.view, out)
        stop.pause(every_s)
