"""What late arrival costs: rows of a history with an archive's delays, beside those without, for several graces.

For features: how many are others, and by how much. For a model (scikit-learn's gradient boosting): the AUC on the test
split as it comes live, with delays, of one that was trained without them and of one that was trained with them.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from commands import output

if TYPE_CHECKING:
    import pyarrow as pa

    from batch.lateness import Lateness
    from shared_features.app import App

GRACES_US = (0, 600_000_000, 3_600_000_000)
"""Graces that are tried beside the app's own, where they are shorter."""
SHOWN = 10
SEED = 1


def measure(
    app: App,
    history: str,
    delays: Lateness,
    tell: output.Progress,
    **options: Any,
) -> dict[str, Any]:
    """Delays by type, and for each grace which features are others than without delays, and the AUC of models.

    Args:
        options: further ones of `batch.traindata.make_training_rows`.

    A grace is the app's ``lateness``: an event that is later still reaches the windows after it, cut at the grace.
    """
    from batch.lateness import cost_of
    from batch.traindata import make_training_rows

    graces = sorted({grace for grace in GRACES_US if grace < app.lateness_us} | {app.lateness_us})
    costs: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="sameriver-") as name:
        at_once = Path(name, "at-once")
        tell(0.0, "rows without delays")
        make_training_rows(app, history, at_once, **options)
        model, why = _trained(at_once)
        for number, grace in enumerate(graces):
            tell((1 + number) / (1 + len(graces)), f"rows with delays, a grace of {grace / 1e6:,.0f} s")
            tried, late = copy.copy(app), Path(name, f"late-{grace}")
            tried.lateness_us = grace
            make_training_rows(tried, history, late, lateness=delays, **options)
            cost = dataclasses.asdict(cost_of(app, _pairs(at_once, late)))
            with_delays = None if model is None else _trained(late)[0]
            auc = {
                "trained_without_delays": None if model is None else model.auc(late),
                "trained_with_delays": None if with_delays is None else with_delays.auc(late),
            }
            costs.append({"grace_s": grace / 1e6, **cost, "auc": auc})
        best = None if model is None else model.auc(at_once)
    return {"delays_s": delays.quantiles_s(), "auc_without_delays": best, "no_auc": why, "graces": costs}


def _pairs(at_once: Path, late: Path) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The same files of two folders of rows."""
    import pyarrow.parquet as pq

    for path in sorted(at_once.rglob("*.parquet")):
        yield pq.read_table(path), pq.read_table(late / path.relative_to(at_once))


class _Model:
    """A model of some training rows."""

    def __init__(self, folder: Path) -> None:
        from training.baselines import GradientBoosting
        from training.rows import open_rows
        from training.statistics import compute_statistics

        rows = open_rows(folder)
        self._fitted = GradientBoosting(rows, compute_statistics(rows), SEED)

    def auc(self, folder: Path) -> float:
        """What it is worth on the test split of a folder."""
        from training.metrics import rank_auc
        from training.rows import LABEL, number_column, open_rows

        test = open_rows(folder).table("test")
        return rank_auc(number_column(test[LABEL]), self._fitted.predict(test))


def _trained(folder: Path) -> tuple[_Model | None, str | None]:
    """A model that has been tried, or why there is none."""
    from shared_features.errors import SameriverError

    try:
        model = _Model(folder)
        model.auc(folder)
    except (SameriverError, ValueError) as error:
        return None, str(error)
    return model, None


def show(report: dict[str, Any]) -> None:
    """Tables for people."""
    rows = [[name, *(f"{second:,.1f}" for second in seconds)] for name, seconds in report["delays_s"].items()]
    output.print_table(["delays in s", "half", "90 %", "99 %", "all"], rows)
    rows = [_line(cost) for cost in report["graces"]]
    output.print_table(
        ["grace", "rows", "with another feature", "AUC, trained without delays", "AUC, trained with delays"], rows
    )
    if report["no_auc"] is None:
        click.echo(f"AUC if nothing came late: {report['auc_without_delays']:.4f}")
    else:
        click.echo(f"no AUC: {report['no_auc']}")
    worst = sorted(report["graces"][-1]["features"].items(), key=lambda item: -item[1][0])[:SHOWN]
    click.echo(f"with the app's own grace of {report['graces'][-1]['grace_s']:,.0f} s:")
    rows = [[name, f"{share:.1%}", "" if error is None else f"{error:.4g}"] for name, (share, error) in worst]
    output.print_table(["feature", "rows in which it is another", "mean difference"], rows)


def _line(cost: dict[str, Any]) -> list[str]:
    aucs = ["" if auc is None else f"{auc:.4f}" for auc in cost["auc"].values()]
    share = cost["rows_differing"] / max(1, cost["rows"])
    return [f"{cost['grace_s']:,.0f} s", f"{cost['rows']:,}", f"{share:.1%}", *aucs]
