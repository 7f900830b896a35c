"""The result of `sameriver bench kernel` for people: figures with targets, then the cost of each aggregate."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

FIGURES: tuple[tuple[str, str, str], ...] = (
    ("rows_per_s", "rows a second, blocks of 100,000", "{:,.0f}"),
    ("rows_per_s_polars", "the same, Polars", "{:,.0f}"),
    ("rows_per_s_duckdb", "the same, DuckDB", "{:,.0f}"),
    ("ratio_polars", "times as fast as Polars", "{:.2f}"),
    ("ratio_duckdb", "times as fast as DuckDB", "{:.2f}"),
    ("peak_rss_mb", "peak memory, MB", "{:,.0f}"),
    ("peak_rss_mb_polars", "the same, Polars", "{:,.0f}"),
    ("peak_rss_mb_duckdb", "the same, DuckDB", "{:,.0f}"),
    ("us_per_event_live", "one event on the day's state, median µs", "{:,.0f}"),
    ("us_per_event_live_p99", "the same, 99 of 100", "{:,.0f}"),
    ("rows_per_s_blocks_of_1000", "rows a second, blocks of 1,000", "{:,.0f}"),
    ("growth_ratio", "time for all rows / for a tenth", "{:.2f}"),
    ("hot_key_ratio", "one vessel with a tenth of all / uniform", "{:.2f}"),
    ("late_ratio", "10 % late by up to an hour / in order", "{:.2f}"),
    ("rows_per_s_measure_speed", "1 - min(1, speed/17) at 1e-6, a tenth", "{:,.0f}"),
)


def figures_table(result: dict[str, Any]) -> Table:
    """Every figure with its target and whether it is met."""
    table = Table(f"{result['rows']:,} positions, mean and deviation over six windows")
    for heading in ("measured", "target", ""):
        table.add_column(heading, justify="right")
    for name, what, form in FIGURES:
        target = result["targets"].get(name)
        verdict = "" if target is None else "[green]met[/]" if target["met"] else "[red]missed[/]"
        table.add_row(what, form.format(result[name]), "" if target is None else target["target"], verdict)
    return table


def costs_table(result: dict[str, Any]) -> Table:
    """Nanoseconds a row of each aggregate, and how many times the mean's."""
    overs = list(dict.fromkeys(one["over"] for one in result["aggregates"]))
    table = Table("aggregate", title="ns a row, one feature alone; (times the mean)")
    for over in overs:
        table.add_column(f"over {over}", justify="right")
    cells: dict[str, dict[str, str]] = {}
    for one in result["aggregates"]:
        cell = f"{one['ns_per_row']:,.0f} ({one['times_mean']:.2f})"
        cells.setdefault(one["aggregate"], {})[one["over"]] = f"[red]{cell}[/]" if one["flagged"] else cell
    for name, found in cells.items():
        table.add_row(name, *(found.get(over, "") for over in overs))
    return table


def show(result: dict[str, Any]) -> None:
    """Print both tables and whether the others' results agree."""
    console = Console()
    console.print(figures_table(result), costs_table(result), sep="\n")
    reasons = {one["aggregate"]: one["reason"] for one in result["aggregates"] if one["flagged"]}
    for name, reason in reasons.items():
        console.print(f"{name}: more than 5 times the mean, because it {reason or 'has no stated reason yet'}.")
    shown = ", ".join(
        f"{name} {'differs in nulls' if found is None else f'{found:.1e}'}"
        for name, found in result["largest_difference"].items()
    )
    cpu = result["machine"]
    place = f"{cpu['cpu']}, {cpu['cores']} cores, {cpu['threads']} threads, load {cpu['load']} before"
    console.print(f"{place}; {result['seconds']:.0f} s in all.")
    verdict = "agree" if result["results_agree"] else "[red]do not agree[/]"
    console.print(f"Results of {result['rows_compared']:,} rows {verdict}; largest difference: {shown}.")
