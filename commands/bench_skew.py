"""`sameriver bench skew`: who gives the same features in batch and live, and who gives the right ones."""

from __future__ import annotations

from pathlib import Path

import click

from commands import output
from commands.options import json_option


@click.command()
@click.option("--system", "systems", multiple=True, help="Only this one; may be given several times.")
@click.option(
    "--write",
    is_flag=True,
    help="Put the table into README.md and benchmarks/skew/README.md, between their marks.",
)
@json_option
def skew(systems: tuple[str, ...], write: bool, as_json: bool) -> None:
    """Run small cases of training-serving skew on this library and on other tools; show who passes what.

    Ties, late events, duplicates, restarts, nulls, window edges and more: each value is compared with the one that
    the definition gives, and batch with streaming bit for bit. About 20 seconds. Add your own system, see
    benchmarks/skew/README.md.
    """
    from benchmarks import skew as benchmark

    with output.progress("bench skew") as progress:
        result = benchmark.run(systems=systems, progress=progress)
    if write:
        folder = Path(benchmark.__file__).resolve().parent
        for path in (folder / "README.md", folder.parent.parent / "README.md"):
            benchmark.write(result, path)
    if as_json:
        output.print_json(result)
    else:
        benchmark.report(result)
