"""Options of jobs that run on a Flink cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from streaming.flink_settings import FlinkSettings

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = [
    click.option("--job-endpoint", default="localhost:8099", metavar="HOST:PORT", help="Flink: Beam's job server."),
    click.option(
        "--flink-rest", default="localhost:8081", metavar="HOST:PORT", help="Flink: the job manager's REST API."
    ),
    click.option("--worker-pool", default="localhost:50000", metavar="HOST:PORT", help="Flink: Beam's worker pool."),
    click.option("--parallelism", default=2, type=click.IntRange(1), help="Flink: workers of each step."),
    click.option("--checkpoint-ms", default=2_000, type=click.IntRange(100), help="Flink: between two checkpoints."),
    click.option(
        "--outputs",
        type=click.Choice(["at-once", "checkpoint"]),
        default="at-once",
        help="Flink: results at once, with a revision, or when a checkpoint holds them.",
    ),
    click.option("--start-from", metavar="PATH", help="Flink: a savepoint or checkpoint.  [default: the newest]"),
]


def flink_options(command: F) -> F:
    """Options of a streaming job on Flink."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def flink_settings(given: Mapping[str, Any]) -> FlinkSettings:
    """What `flink_options` gave, as settings."""
    from streaming.flink_settings import FlinkSettings

    return FlinkSettings(
        job_endpoint=given["job_endpoint"],
        rest=given["flink_rest"],
        worker_pool=given["worker_pool"],
        parallelism=given["parallelism"],
        shards=given.get("shards") or 4,
        checkpoint_ms=given["checkpoint_ms"],
        hold=given["outputs"] == "checkpoint",
        start_from=given["start_from"],
    )
