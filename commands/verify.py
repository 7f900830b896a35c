"""`sameriver verify`: recompute what was served and compare it bit for bit, once or beside the live job."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.monitoring_options import monitoring_options, monitoring_settings
from commands.options import app_option, folder_option, json_option
from commands.signals import stop_signal

if TYPE_CHECKING:
    from batch.verify import Predict, VerifyReport
    from batch.verify_backfill import BackfillReport
    from serving.promotion import Promotion
    from shared_features.app import App
    from streaming.routes import EachVersion


@click.command()
@app_option
@folder_option("--archive", "the streaming job's archive", "var/archive/<app>")
@click.option(
    "--model-server", metavar="HOST:PORT", help="Asks the model again; otherwise predictions are not checked."
)
@folder_option("--models", "models, whose promotions say which version had to answer", "var/models/<app>")
@click.option("--history", help="History to compare with training rows; otherwise they are not compared.")
@folder_option("--backfill", "a backfill, whose reactions are verified in place of an archive", "none")
@click.option(
    "--follow", is_flag=True, help="Go on with what a live job commits, and say the first difference at once."
)
@click.option("--until-mismatch", is_flag=True, help="With --follow: end at the first difference, with exit code 1.")
@click.option("--anew", is_flag=True, help="With --follow: begin with the archive's beginning, not where it was.")
@monitoring_options
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    app_name: str,
    archive: Path | None,
    model_server: str | None,
    models: Path | None,
    history: str | None,
    backfill: Path | None,
    follow: bool,
    until_mismatch: bool,
    anew: bool,
    as_json: bool,
    **monitoring: Any,
) -> None:
    """Recompute what was served by the batch path and compare it bit for bit; exit code 1 on any difference.

    With --follow it runs beside the job until it is stopped; /metrics on the monitoring port counts what differs. The
    next time it goes on where it was.
    """
    app = options.load(app_name)
    folder = archive or options.archive_folder(app)
    if follow and history is not None:
        raise click.UsageError(
            "--follow and --history do not go together: compare with a history when the job has ended"
        )
    for option, given in (("--until-mismatch", until_mismatch), ("--anew", anew)):
        if given and not follow:
            raise click.UsageError(f"{option} goes with --follow")
    if backfill is not None and (follow or history is not None or archive is not None):
        raise click.UsageError("--backfill goes with --app only: it looks at the rows of that folder")
    report: VerifyReport | BackfillReport
    if backfill is not None:
        from batch.verify_backfill import verify_backfill

        report = verify_backfill(app, backfill)
    elif follow:
        report = _follow(app, folder, model_server, models, monitoring, until_mismatch=until_mismatch, anew=anew)
    else:
        report = _compare(app, folder, model_server, models, history)
    found = report.as_dict()
    if as_json:
        output.print_json(found)
    else:
        _tell(found)
    if report.mismatches or found.get("training_mismatches"):
        ctx.exit(1)


def _tell(found: dict[str, Any]) -> None:
    lines = [(name.replace("_", " "), f"{count:,}") for name, count in found.items() if isinstance(count, int)]
    output.print_table(["", "count"], lines)
    if found.get("first_mismatch"):
        click.echo(f"first mismatch: {found['first_mismatch']}")


def _follow(
    app: App,
    archive: Path,
    model_server: str | None,
    models: Path | None,
    monitoring: Mapping[str, Any],
    *,
    until_mismatch: bool,
    anew: bool,
) -> VerifyReport:
    from batch.follow import Follower, FollowMonitoring
    from streaming.monitoring_server import MonitoringServer

    settings = monitoring_settings(monitoring)
    with stop_signal() as stop, ExitStack() as stack:
        predict, promotions = _predictors(stack, app, model_server), partial(_promotions, app, models)
        follower = stack.enter_context(
            closing(Follower(app, archive, predict=predict, promotions=promotions, anew=anew))
        )
        if settings["monitoring_port"] is not None:
            host, port, access = (settings[f"monitoring_{name}"] for name in ("host", "port", "access"))
            server = MonitoringServer(FollowMonitoring(follower), host, port, access)
            stack.callback(server.close)
            since = f" from commit {follower.commits:,} on" if follower.commits else ""
            click.echo(f"following {archive}{since}; metrics at {server.url}/metrics", err=True)
        stop.drain = stop.asked.set
        follower.run(
            stop.asked, until_mismatch=until_mismatch, told=lambda text: click.echo(f"mismatch: {text}", err=True)
        )
        return follower.report
    raise click.exceptions.Exit(0)  # told to stop before it had begun


def _predictors(stack: ExitStack, app: App, model_server: str | None) -> dict[str, Predict | EachVersion]:
    """Asks the versions that served again; nobody without a server."""
    if model_server is None:
        return {}
    from streaming.routes import EachVersion

    return {name: stack.enter_context(closing(EachVersion(model_server, name))) for name in options.served_models(app)}


def _promotions(app: App, models: Path | None) -> dict[str, list[Promotion]]:
    """Of each model all states of its versions."""
    from serving.promotion import read_history

    home = models or options.models_folder(app)
    return {name: read_history(home / name) for name in options.served_models(app)}


def _compare(
    app: App, archive: Path, model_server: str | None, models: Path | None, history: str | None
) -> VerifyReport:
    import pyarrow as pa
    import pyarrow.compute as pc

    from batch.admission import first_of_each
    from batch.replay import read_served
    from batch.skew import TrainingRows, training_rows
    from batch.verify import verify
    from commands.replay import ENDLESS_US, read_history, warm_up_us
    from shared_features.plan import make_plan

    training: TrainingRows | None = None
    if history is not None:
        served = read_served(archive)
        if served is not None:
            times = served.column("event_time").cast(pa.int64())
            begin_us, end_us = (pc.min(times).as_py(), pc.max(times).as_py())
            reach_us = warm_up_us(app)
            block = first_of_each(read_history(app, Path(history), begin_us - 2 * reach_us, end_us + 1))
            if reach_us == ENDLESS_US and pc.min(block.column("event_time").cast(pa.int64())).as_py() >= begin_us:
                reach_us = 0  # the job has seen the whole history
            training = training_rows(make_plan(app), block, begin_us + reach_us)
    with ExitStack() as stack:
        predict, promotions = _predictors(stack, app, model_server), partial(_promotions, app, models)
        return verify(app, archive, predict=predict, promotions=promotions, training=training)
