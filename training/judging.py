"""Models and baselines side by side: the same figures of each, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import HistoryError
from training.costs import Costs, cost_figures
from training.metrics import average_precision, bootstrap_auc, figures, rank_auc
from training.plots import Judged
from training.rows import number_column

Array = npt.NDArray[Any]


def figures_of(one: Judged, labels: Array, costs: Costs) -> dict[str, Any]:
    """All figures of one model; ranks come from its scores, the rest from its probabilities."""
    ranked = {"auc": rank_auc(labels, one.scores), "average_precision": average_precision(labels, one.scores)}
    decided = cost_figures(labels, one.probabilities, costs)
    return {"name": one.name, **figures(labels, one.probabilities), **ranked, "costs": decided}


def auc_differences(judged: Sequence[Judged], labels: Array, resamples: int, seed: int) -> list[dict[str, Any]]:
    """AUC of the first model minus that of each other, with the 95 % interval of a paired bootstrap."""
    drawn = bootstrap_auc(labels, {one.name: one.scores for one in judged}, resamples=resamples, seed=seed)
    first = judged[0]
    found = []
    for other in judged[1:]:
        low, high = np.quantile(drawn[first.name] - drawn[other.name], [0.025, 0.975])
        difference = rank_auc(labels, first.scores) - rank_auc(labels, other.scores)
        found.append(
            {
                "against": other.name,
                "auc": difference,
                "low": float(low),
                "high": float(high),
                "excludes_zero": bool(low > 0 or high < 0),
            }
        )
    return found


def judged_rules(rules: pa.Table, test: pa.Table, positives: float) -> list[Judged]:
    """Hand-written rules, joined to the test rows by ``event_id``; where one says nothing it says ``positives``.

    Raises:
        HistoryError: they do not cover the test rows.
    """
    if "event_id" not in rules.column_names:
        raise HistoryError("Rules need the column event_id, but have none: add it from the rows they were applied to.")
    places = pc.index_in(test["event_id"].cast(pa.string()), value_set=rules["event_id"].cast(pa.string()))
    if places.null_count:
        raise HistoryError(
            f"Rules must cover every test row, but {places.null_count} of {len(test)} are missing: apply them to the "
            "whole test split."
        )
    found = []
    for name in rules.column_names:
        if name != "event_id":
            values = number_column(rules[name].take(places))
            values = np.clip(np.where(np.isfinite(values), values, positives), 0.0, 1.0)
            found.append(Judged(name, values, values))
    return found
