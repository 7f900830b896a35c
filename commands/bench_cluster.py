"""`sameriver bench cluster`: the streaming job on a Flink cluster, on this machine."""

from __future__ import annotations

import click

from commands import output
from commands.options import json_option


@click.command()
@click.option("--events", type=click.IntRange(min=1_000), default=300_000, help="Sent in blocks of 1,000.")
@click.option("--rule", is_flag=True, help="Predict by a rule, in place of a small model on a model server.")
@click.option("--outputs", type=click.Choice(["at-once", "checkpoint"]), default="at-once", help="As of `stream`.")
@json_option
def cluster(events: int, rule: bool, outputs: str, as_json: bool) -> None:
    """Time events through a Flink cluster of two task managers: broker, model server and load on the same cores.

    Throughput in blocks, latency at 255 events a second, the growth of checkpoints, kill -9 of a task manager, and
    `verify` over all of it. Needs Java 17 and Maven.
    """
    from benchmarks import cluster as benchmark

    with output.progress("bench cluster") as progress:
        result = benchmark.run(events=events, rule=rule, outputs=outputs, progress=progress)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)
