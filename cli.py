"""The `sameriver` command: what it can do stands in `commands`, one file per group."""

from __future__ import annotations

import os
import sys

# Our packages are top-level ones, and a PYTHONPATH with "." or an empty part would find a folder called batch or apps
# in the working folder first.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import click

from commands.archive import archive
from commands.ask import ask
from commands.backfill import backfill
from commands.bench import bench
from commands.data import data
from commands.deadletters import deadletters
from commands.demo import demo
from commands.evaluate import evaluate
from commands.gateway import gateway
from commands.group import Commands, stop_with_parent, take_short_turns
from commands.logs import set_up_logging
from commands.monitor import monitor
from commands.new import new
from commands.profile import profile
from commands.promote import promote, rollback
from commands.publish import publish
from commands.retrain import retrain
from commands.servers import broker, serve
from commands.snapshot import snapshot
from commands.sql import sql
from commands.status import status
from commands.stream import stream
from commands.tail import tail
from commands.training import train, traindata
from commands.tune import tune
from commands.up import up
from commands.validate import validate
from commands.verify import verify
from commands.view import view
from commands.why import why


@click.group(
    cls=Commands,
    context_settings={
        "auto_envvar_prefix": "SAMERIVER",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 110,
    },
)
@click.version_option(package_name="sameriver", prog_name="sameriver")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    help="What is logged to standard error.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Lines for people, or JSON.")
def main(log_level: str, log_format: str) -> None:
    """Streaming prediction without training-serving skew.

    Every option can also be given as an environment variable: SAMERIVER_<COMMAND>_<OPTION>, for example
    SAMERIVER_STREAM_ARCHIVE. Exit codes: 0 done; 1 a difference was found, or a defect; 2 something that the
    sentence on standard error says how to mend; 130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    take_short_turns()
    stop_with_parent()
    set_up_logging(log_level, log_format)


for command in (
    new,
    bench,
    demo,
    up,
    data,
    ask,
    traindata,
    train,
    tune,
    evaluate,
    retrain,
    promote,
    rollback,
    backfill,
    snapshot,
    verify,
    view,
    monitor,
    why,
    sql,
    profile,
    validate,
    serve,
    broker,
    stream,
    gateway,
    publish,
    tail,
    deadletters,
    status,
    archive,
):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="sameriver")
