"""`sameriver verify`: recompute what was served and compare it bit for bit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option

if TYPE_CHECKING:
    from batch.verify import VerifyReport
    from shared_features.app import App


@click.command()
@app_option
@folder_option("--archive", "the streaming job's archive", "var/archive/<app>")
@click.option(
    "--model-server", metavar="HOST:PORT", help="Asks the model again; otherwise predictions are not checked."
)
@click.option("--history", help="History to compare with training rows; otherwise they are not compared.")
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    app_name: str,
    archive: Path | None,
    model_server: str | None,
    history: str | None,
    as_json: bool,
) -> None:
    """Recompute what was served by the batch path and compare it bit for bit; exit code 1 on any difference."""
    app = options.load(app_name)
    report = _compare(app, archive or options.archive_folder(app), model_server, history)
    found = report.as_dict()
    if as_json:
        output.print_json(found)
    else:
        _tell(found)
    if report.mismatches or report.training_mismatches:
        ctx.exit(1)


def _tell(found: dict[str, Any]) -> None:
    lines = [(name.replace("_", " "), f"{count:,}") for name, count in found.items() if isinstance(count, int)]
    output.print_table(["", "count"], lines)
    if found.get("first_mismatch"):
        click.echo(f"first mismatch: {found['first_mismatch']}")


def _compare(app: App, archive: Path, model_server: str | None, history: str | None) -> VerifyReport:
    import pyarrow as pa
    import pyarrow.compute as pc

    from batch.replay import read_served
    from batch.skew import TrainingRows, training_rows
    from batch.verify import verify
    from commands.replay import ENDLESS_US, read_history, warm_up_us
    from serving.client import ModelClient
    from shared_features.plan import make_plan
    from streaming.job import predictor

    training: TrainingRows | None = None
    if history is not None:
        served = read_served(archive)
        if served is not None:
            times = served.column("event_time").cast(pa.int64())
            begin_us, end_us = (pc.min(times).as_py(), pc.max(times).as_py())
            reach_us = warm_up_us(app)
            block = read_history(app, Path(history), begin_us - 2 * reach_us, end_us + 1)
            if reach_us == ENDLESS_US and pc.min(block.column("event_time").cast(pa.int64())).as_py() >= begin_us:
                reach_us = 0  # the job has seen the whole history
            training = training_rows(make_plan(app), block, begin_us + reach_us)
    with ExitStack() as stack:
        predict = {
            name: predictor(stack.enter_context(ModelClient(model_server, name)))
            for name in options.served_models(app)
            if model_server is not None
        }
        return verify(app, archive, predict=predict, training=training)
