"""`sameriver bench stream`: the whole way of an event, on this machine."""

from __future__ import annotations

import click

from commands import output
from commands.options import json_option


@click.command()
@click.option("--events", type=click.IntRange(min=1_000), default=1_000_000, help="Sent in blocks of 1,000.")
@json_option
def stream(events: int, as_json: bool) -> None:
    """Time events from publish to prediction: broker, streaming job, load and receiver on the same cores.

    Throughput in blocks and one by one, beside a loop that does nothing and beside features per element; latency at
    255 events a second; a kill and a restart; memory; and `verify` over all of it.
    """
    from benchmarks import stream as benchmark

    with output.progress("bench stream") as progress:
        result = benchmark.run(events=events, progress=progress)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)
