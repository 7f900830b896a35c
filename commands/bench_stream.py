"""`sameriver bench stream`: the whole way of an event, on this machine."""

from __future__ import annotations

import click

from commands import output
from commands.options import json_option


@click.command()
@click.option("--events", type=click.IntRange(min=1_000), default=1_000_000, help="Sent in blocks of 1,000.")
@click.option("--rule", is_flag=True, help="Predict by a rule, in place of a small model on a model server.")
@json_option
def stream(events: int, rule: bool, as_json: bool) -> None:
    """Time events from publish to prediction: broker, job, model server, load and receiver on the same cores.

    Throughput in blocks and one by one, beside a loop that does nothing and beside features per element; latency at
    255 events a second; a kill and a restart; memory; and `verify` over all of it.
    """
    from benchmarks import stream as benchmark

    with output.progress("bench stream") as progress:
        result = benchmark.run(events=events, rule=rule, progress=progress)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)
