"""What a candidate must show before it takes a champion's place: rules in the app file, read by training only.

No part of the fingerprint: a model's features are the same, however strictly it is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shared_features.errors import DefinitionError
from shared_features.source_lines import caller

HIGHER_IS_BETTER = ("auc", "average_precision")
LOWER_IS_BETTER = ("log_loss", "brier", "calibration_error")
METRICS = (*HIGHER_IS_BETTER, *LOWER_IS_BETTER)
SLICED = ("auc", "log_loss", "brier")
"""Metrics that have an interval in each slice."""


class Gate:
    """One rule for a candidate, on the test split.

    Over all test rows the figures themselves count. In slices, of which there are many and small ones, a rule is broken
    only where the 95 % interval lies wholly beyond the bound: among a hundred slices some look bad by chance.

    Args:
        metric: ``auc``, ``average_precision`` (more is better); ``log_loss``, ``brier``, ``calibration_error`` (less).
        at_least: the candidate's figure must reach this; for metrics of which more is better.
        at_most: it must not exceed this; for metrics of which less is better.
        not_worse_by: it may be worse than the champion's by at most this; without a champion the rule is kept.
        slices: features; the rule holds for each of their values instead of all rows together.

    Raises:
        DefinitionError: unknown metric, no bound or more than one, or a bound or slices that the metric cannot have.

    >>> Gate("auc", not_worse_by=0.01, slices=["origin"]).definition
    {'metric': 'auc', 'not_worse_by': 0.01, 'slices': ['origin']}
    """

    def __init__(
        self,
        metric: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        not_worse_by: float | None = None,
        slices: Sequence[str] = (),
    ) -> None:
        if metric not in METRICS:
            raise DefinitionError(f"gate got the metric {metric!r}, wanted one of {', '.join(METRICS)}")
        bounds = {"at_least": at_least, "at_most": at_most, "not_worse_by": not_worse_by}
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        wanted = "at_least" if metric in HIGHER_IS_BETTER else "at_most"
        numbers = all(type(bound) in (int, float) and bound >= 0 for bound in given.values())
        if len(given) != 1 or not numbers or not set(given) <= {wanted, "not_worse_by"}:
            raise DefinitionError(
                f"gate on {metric} got the bounds {given}, wanted one of {wanted}= and not_worse_by=, a number of 0 or "
                "more"
            )
        if isinstance(slices, str) or (slices and metric not in SLICED):
            raise DefinitionError(
                f"gate on {metric} got slices={slices!r}, wanted a list of features, and {' or '.join(SLICED)}"
            )
        self.metric, self.bounds, self.slices, self.at = metric, given, tuple(slices), caller()

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        return {"metric": self.metric, **self.bounds, "slices": list(self.slices)}


DEFAULT_GATES = (Gate("auc", not_worse_by=0.002), Gate("log_loss", not_worse_by=0.005))
"""What holds for an app that declares none."""
