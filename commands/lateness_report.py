"""What late arrival costs: features of a history with an archive's delays, beside those without, for several graces."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import click

from commands import output

if TYPE_CHECKING:
    from batch.lateness import Lateness
    from shared_features.app import App

GRACES_US = (0, 600_000_000, 3_600_000_000)
"""Graces that are tried beside the app's own, where they are shorter."""
SHOWN = 10


def measure(app: App, history: str, delays: Lateness, shards: int, tell: output.Progress) -> dict[str, Any]:
    """Delays by type, and for each grace how many rows and which features are others than without delays.

    A grace is the app's ``lateness``: an event that is later still reaches the windows after it, cut at the grace.
    """
    from batch.lateness import cost_of
    from batch.traindata import features_of_history

    graces = sorted({grace for grace in GRACES_US if grace < app.lateness_us} | {app.lateness_us})
    costs = []
    at_once = features_of_history(app, history, shards=shards, progress=lambda _, step: tell(0.0, step))
    for number, grace in enumerate(graces):
        tell((1 + number) / (1 + len(graces)), f"features with delays, a grace of {grace / 1e6:,.0f} s")
        tried = copy.copy(app)
        tried.lateness_us = grace
        late = features_of_history(tried, history, shards=shards, lateness=delays)
        costs.append(dataclasses.asdict(cost_of(app, at_once, late, grace)))
    return {"delays_s": delays.quantiles_s(), "graces": costs}


def show(report: dict[str, Any]) -> None:
    """Tables for people."""
    rows = [[name, *(f"{second:,.1f}" for second in seconds)] for name, seconds in report["delays_s"].items()]
    output.print_table(["delays in s", "half", "90 %", "99 %", "all"], rows)
    rows = [
        [f"{cost['grace_s']:,.0f} s", f"{cost['rows']:,}", f"{cost['rows_differing'] / max(1, cost['rows']):.1%}"]
        for cost in report["graces"]
    ]
    output.print_table(["grace", "rows", "with another feature"], rows)
    worst = sorted(report["graces"][-1]["features"].items(), key=lambda item: -item[1][0])[:SHOWN]
    click.echo(f"with the app's own grace of {report['graces'][-1]['grace_s']:,.0f} s:")
    rows = [[name, f"{share:.1%}", "" if error is None else f"{error:.4g}"] for name, (share, error) in worst]
    output.print_table(["feature", "rows in which it is another", "mean difference"], rows)
