"""`sameriver monitor`: what live predictions turn out to be worth, and whether their features are those of training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.monitoring_options import monitoring_options, monitoring_settings
from commands.options import app_option, folder_option, follow_options, json_option, pubsub_options
from commands.signals import stop_signal
from commands.view import view_publisher

if TYPE_CHECKING:
    from batch.monitor import Monitor

SHOWN = 14


@click.command()
@app_option
@folder_option("--archive", "the streaming job's archive", "var/archive/<app>")
@folder_option("--models", "models, which say what their training saw", "var/models/<app>")
@folder_option("--out", "the tables quality, drift and alarms", "var/monitor/<app>")
@click.option("--window", default="1d", help="Length of the windows of time, such as 1h or 7d.")
@click.option("--publish", is_flag=True, help="Publish alarms that go on or off on the topic <app>-view-alarms.")
@follow_options(1.0)
@monitoring_options
@pubsub_options
@json_option
def monitor(
    app_name: str,
    archive: Path | None,
    models: Path | None,
    out: Path | None,
    window: str,
    publish: bool,
    follow: bool,
    every_s: float,
    project: str,
    emulator: str | None,
    as_json: bool,
    **monitoring: Any,
) -> None:
    """Join labels to predictions and compare features with training's, by windows of time; tell of alarms.

    AUC, calibration and the app's KPIs; PSI and Kolmogorov-Smirnov of each feature and of the prediction. It folds the
    archive: live, after a restart and over a finished archive it says the same.
    """
    from batch.monitor import Monitor
    from batch.monitor_metrics import MonitorMonitoring
    from batch.views import ViewFollower
    from shared_features.aggregates import duration_us
    from streaming.monitoring_server import MonitoringServer

    app = options.load(app_name)
    folder, tables = archive or options.archive_folder(app), out or options.VAR / "monitor" / app.name
    reference = partial(_reference, models or options.models_folder(app))
    found = Monitor(app, reference, duration_us(window, "--window"))
    follower = ViewFollower(found, folder, app)
    settings = monitoring_settings(monitoring)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_signal())
        stop.drain = stop.asked.set
        publisher = view_publisher(stack, app, follower, folder, project, emulator) if publish else None
        told = MonitorMonitoring(found, follower)
        if follow and settings["monitoring_port"] is not None:
            host, port, access = (settings[f"monitoring_{name}"] for name in ("host", "port", "access"))
            server = MonitoringServer(told, host, port, access)
            stack.callback(server.close)
            click.echo(f"following {folder}; metrics at {server.url}/metrics", err=True)
        while not stop.asked.is_set():
            before = follower.revision
            for changed in follower.catch_up():
                if publisher is not None:
                    publisher.take(changed)
                told.update(caught_up=False)
            told.update(caught_up=True)
            if follower.revision != before:
                found.write(tables)
            if not follow:
                break
            stop.pause(every_s)
    found.write(tables)
    _tell(found, tables, as_json=as_json)


def _reference(models: Path, model: str, version: int) -> Mapping[str, Any] | None:
    """What a version's training saw; None where it is gone, is a rule, or was not trained on rows."""
    from shared_features.errors import ConfigurationError
    from training.sketches import read_reference

    try:
        return read_reference(models / model / str(version)) if version else None
    except ConfigurationError as error:
        click.echo(f"no drift for version {version} of {model}: {error}", err=True)
        return None


def _tell(found: Monitor, folder: Path, *, as_json: bool) -> None:
    rows = list(found.quality.rows())
    if as_json:
        standing = [
            {name: row[name] for name in ("alarm", "of", "model", "version", "value")} for row in found.standing()
        ]
        alarms = found.table().num_rows
        counted = {"windows": len(rows), "labelled": sum(row["labelled"] for row in rows), "alarms": alarms}
        output.print_json({**counted, "standing": standing, "too_late": found.quality.too_late, "out": str(folder)})
        return
    kpis = [f"kpi.{kpi.name}" for kpi in found.app.kpis]
    names = ["version", "predictions", "labelled", "auc", "log_loss", "calibration_error", *kpis]
    lines = [[_day(row["window"]), *(_cell(row[name]) for name in names)] for row in rows[-SHOWN:]]
    output.print_table(["window from", *names], lines)
    for row in found.table().to_pylist()[-SHOWN:]:
        verb = "on " if row["on"] else "off"
        of = f" of {row['of']}" if row["of"] else ""
        click.echo(f"alarm {verb} {row['alarm']}{of}: {row['value']:.4f}, window from {row['window']:%Y-%m-%d %H:%M}")
    click.echo(f"{len(rows)} windows; tables in {folder}", err=True)


def _day(at_us: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(at_us / 1e6, UTC):%Y-%m-%d %H:%M}"


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
