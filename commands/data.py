"""`sameriver data`: event histories from public data."""

from __future__ import annotations

from pathlib import Path

import click

from commands import output
from commands.options import folder_option, json_option


@click.group()
def data() -> None:
    """Turn public data into an event history."""


@data.command()
@folder_option("--out", "the history", "var/history/flights")
@json_option
def flights(out: Path | None, as_json: bool) -> None:
    """336,776 real flights of 2013 with their weather, as events in Parquet (25 MB, 5 s)."""
    from apps.flights.history import write_history

    with output.progress("flights") as tell:
        summary = write_history(out or Path("var/history/flights"), tell)
    if as_json:
        output.print_json(summary.as_dict())
        return
    found = "found" if summary.reused else "written"
    click.echo(f"{summary.folder}: {found}, {summary.files} files, {summary.bytes / 1e6:.0f} MB")
    counts = summary.counts
    lines = [
        ("flights scheduled", counts.scheduled),
        ("cancelled (no event)", counts.cancelled),
        *((f"no arrived event: {why.replace('_', ' ')}", count) for why, count in counts.without_arrival.items()),
        *((f"{event_type} events", count) for event_type, count in summary.events.items()),
        ("duplicates removed", sum(counts.duplicates_removed.values())),
        ("clock times that disagree", sum(counts.clock_disagreements.values())),
    ]
    output.print_table(["", "count"], [(name, f"{count:,}") for name, count in lines])
