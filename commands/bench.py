"""`sameriver bench`: measure it on this machine. Each benchmark is a module of `benchmarks` with run and report."""

from __future__ import annotations

import click

from commands import output
from commands.bench_backfill import backfill
from commands.bench_cluster import cluster
from commands.bench_serving import serving
from commands.bench_skew import skew
from commands.bench_stream import stream
from commands.options import json_option


@click.group()
def bench() -> None:
    """Measure on this machine what the documents claim.

    A benchmark reports: its exit code is 0 whether or not its targets are met.
    """


@bench.command()
@click.option("--rows", type=click.IntRange(min=1), default=22_000_000, help="Positions; fewer make it shorter.")
@json_option
def kernel(rows: int, as_json: bool) -> None:
    """Time the feature kernel against Polars and DuckDB, and see that their results agree.

    Mean and deviation over six windows of a day of ship positions; then one event at a time, growth with the number
    of rows, a hot key, late events, and the cost of each aggregate. Wants 6 GB of memory and, for all rows, about
    6 minutes on 2 cores.
    """
    from benchmarks import kernel as benchmark

    with output.progress("bench kernel") as progress:
        result = benchmark.run(rows=rows, progress=progress)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)


bench.add_command(backfill)
bench.add_command(cluster)
bench.add_command(serving)
bench.add_command(skew)
bench.add_command(stream)
