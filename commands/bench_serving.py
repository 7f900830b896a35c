"""`sameriver bench serving`: the model server, measured against the same model called in process."""

from __future__ import annotations

import click

from commands import output
from commands.options import json_option


@click.command()
@click.option("--seconds", type=click.FloatRange(min=0.2), default=3.0, help="That each measurement takes.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Of what is compared; medians count.")
@click.option("--requests", type=click.IntRange(min=100), default=60_000, help="Over which memory is watched.")
@click.option("--gateway/--no-gateway", default=True, help="Measure the REST gateway for events, too.")
@json_option
def serving(seconds: float, rounds: int, requests: int, gateway: bool, as_json: bool) -> None:
    """Time the model server against the same SavedModel called in process, on the same cores.

    Blocks of 1,024 rows and single rows over gRPC and REST, 64 clients with and without batching, latency during
    reloads, start, memory, and the gateway. About 6 minutes on 2 cores.
    """
    from benchmarks import serving as benchmark

    with output.progress("bench serving") as progress:
        result = benchmark.run(seconds=seconds, rounds=rounds, requests=requests, gateway=gateway, progress=progress)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)
