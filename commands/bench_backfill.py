"""`sameriver bench backfill`: history to features, on this machine."""

from __future__ import annotations

import click

from commands import output
from commands.options import json_option


@click.command()
@click.option("--rows", type=click.IntRange(min=1), default=22_000_000, help="Positions of a day; fewer are quicker.")
@json_option
def backfill(rows: int, as_json: bool) -> None:
    """Time a backfill from Parquet to Parquet against the kernel and pyarrow alone, and compare every row.

    Then twice the rows, and `verify`. Wants 6 GB of disk and, for all rows, about 5 minutes on 2 cores.
    """
    from benchmarks import backfill as benchmark

    with output.progress("bench backfill") as progress:
        result = benchmark.run(rows=rows, progress=progress)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)
