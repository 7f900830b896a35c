"""`sameriver snapshot`: state as of a cut in publish time, for a live job to begin with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, batch_runner_options, folder_option, json_option, pubsub_options
from commands.predicting import asking, predicting_options

if TYPE_CHECKING:
    from batch.snapshot import SnapshotSummary

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])


@click.command()
@app_option
@click.option(
    "--source", show_default="var/history/<app>", help="History: a folder of Parquet, or bq://project.dataset.table."
)
@click.option(
    "--previous",
    metavar="APP",
    help="In place of history: the archive of a job of the app's version before; what has not changed is taken over.",
)
@folder_option("--archive", "the archive of --previous", "var/archive/<app>")
@click.option("--at", "cut", type=_TIME, help="UTC; all that was published before is in it.  [required]")
@click.option(
    "--complete-to",
    type=_TIME,
    help="UTC; up to there the history holds everything.  [default: its newest publish time]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="var/snapshots/<app>.state",
    help="File of the snapshot.",
)
@click.option("--horizon", "horizon_s", default=7 * 86_400, help="Identities are kept for so many seconds.")
@predicting_options("No predictions: reactions that remember begin with nothing remembered.")
@click.option("--shards", type=click.IntRange(1), show_default="by the rows", help="While folding; changes nothing.")
@batch_runner_options
@click.option("--subscribe", is_flag=True, help="Only make the job's subscription, which keeps what comes from now on.")
@click.option("--subscription", metavar="NAME", help="With --subscribe.  [default: <app>-events-sameriver]")
@pubsub_options
@json_option
def snapshot(
    app_name: str,
    source: str | None,
    previous: str | None,
    archive: Path | None,
    cut: datetime | None,
    complete_to: datetime | None,
    out: Path | None,
    horizon_s: int,
    model_server: str | None,
    models: Path | None,
    collect: bool,
    shards: int | None,
    runner: str,
    beam_options: tuple[str, ...],
    subscribe: bool,
    subscription: str | None,
    project: str,
    emulator: str | None,
    as_json: bool,
) -> None:
    """State and identities of all that was published before a cut, from history, and what reactions remember.

    `sameriver stream --snapshot` begins with it, sends its subscription to a little before the cut, and drops what the
    snapshot holds. The subscription must be there before the cut: --subscribe makes it.
    """
    app = options.load(app_name)
    if subscribe:
        _subscribe(app_name, subscription, project, emulator, as_json)
        return
    if cut is None:
        raise click.UsageError("Missing option '--at': the cut, in publish time (UTC).")
    if archive is not None and previous is None:
        raise click.UsageError("--archive is the one of --previous: give that, too")
    if source is not None and previous is not None:
        raise click.UsageError("--source and --previous do not go together: history, or the archive of a job")
    from shared_features.reactions import remembers

    file = out or options.VAR / "snapshots" / f"{app.name}.state"
    until = None if complete_to is None else complete_to.replace(tzinfo=UTC)
    if previous is not None:
        before = options.load(previous)
        with output.progress("snapshot") as tell:
            tell(0.0, "loading Beam")
            from batch.succession import snapshot_after

            _tell(
                snapshot_after(
                    app,
                    before,
                    archive or options.archive_folder(before),
                    file,
                    cut=cut.replace(tzinfo=UTC),
                    complete_to=until,
                    horizon_s=horizon_s,
                    progress=tell,
                ),
                as_json=as_json,
            )
        return
    collect = collect or not remembers(app)
    with (
        output.progress("snapshot") as tell,
        asking(app, model_server, models, runner, collect=collect) as asked,
    ):
        tell(0.0, "loading Beam")
        from batch.snapshot import snapshot as job

        summary = job(
            app,
            source or options.history_folder(app),
            file,
            cut=cut.replace(tzinfo=UTC),
            complete_to=until,
            horizon_s=horizon_s,
            asking=asked,
            shards=shards,
            runner_options=options.runner_options(runner, beam_options),
            progress=tell,
        )
    _tell(summary, as_json=as_json)


def _tell(summary: SnapshotSummary, *, as_json: bool) -> None:
    if as_json:
        output.print_json(summary.as_dict())
        return
    done = "done before" if summary.reused else f"{summary.seconds:.0f} s"
    click.echo(f"{summary.file}: all that was published before {summary.cut} ({done}), {summary.bytes / 1e6:.1f} MB")
    kept = ["taken over" if name in summary.stages_kept else "" for name in summary.keys]
    rows = [
        [name, f"{keys:,}", f"{summary.retained[name]:,}", how]
        for (name, keys), how in zip(summary.keys.items(), kept, strict=True)
    ]
    output.print_table(["stage", "keys", "events held", ""], rows)
    for name, number in summary.remembered.items():
        click.echo(f"reaction {name} remembers something of {number:,} keys")
    click.echo(f"identities known of {summary.horizon_s:,} s: {summary.identities:,}")


def _subscribe(app_name: str, subscription: str | None, project: str, emulator: str | None, as_json: bool) -> None:
    from streaming.job import create_topics
    from streaming.naming import subscription_of

    app, where = options.load(app_name), options.endpoint(project, emulator)
    name = subscription or subscription_of(app)
    with options.reaching(where):
        create_topics(app, where, name)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    if as_json:
        output.print_json({"subscription": name, "since": since})
    else:
        click.echo(f"{name} keeps what is published from now on: cut at {since} or later")
