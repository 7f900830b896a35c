"""What a model's decisions cost, where a false alarm and a miss have prices.

An alarm is given where the probability is at or above a threshold. A calibrated probability needs no search for it:
the alarm pays from false_alarm / (false_alarm + miss) on (Elkan, 2001, The Foundations of Cost-Sensitive Learning).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_features.errors import ConfigurationError

Array = npt.NDArray[Any]

PER_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Costs:
    """Prices in one currency, whatever it is.

    Attributes:
        false_alarm: of an alarm where nothing came to pass.
        miss: of no alarm where it did.
    """

    false_alarm: float = 1.0
    miss: float = 1.0

    def __post_init__(self) -> None:
        if not (self.false_alarm > 0 and self.miss > 0 and np.isfinite(self.false_alarm + self.miss)):
            raise ConfigurationError(
                f"Costs must be numbers above 0, but a false alarm is said to cost {self.false_alarm} and a miss "
                f"{self.miss}: correct them."
            )

    @property
    def threshold(self) -> float:
        """From which probability on an alarm pays, if the probability can be believed."""
        return self.false_alarm / (self.false_alarm + self.miss)


def cost_curve(labels: Array, probabilities: Array, costs: Costs) -> tuple[Array, Array]:
    """(thresholds ascending, cost of 1,000 rows at each); the last threshold, infinity, gives no alarm at all."""
    order = np.argsort(probabilities, kind="stable")
    ordered, positive = probabilities[order], labels[order].astype(np.int64)
    first = np.append(0, np.flatnonzero(np.diff(ordered)) + 1)
    missed = np.append(0, np.cumsum(positive))  # positives below each place
    negatives = len(labels) - positive.sum() - np.append(0, np.cumsum(1 - positive))  # at or above it
    places = np.append(first, len(ordered))
    cost = costs.miss * missed[places] + costs.false_alarm * negatives[places]
    return np.append(ordered[first], np.inf), cost * (PER_ROWS / len(labels))


def cost_figures(labels: Array, probabilities: Array, costs: Costs) -> dict[str, float]:
    """Cost of 1,000 rows: at the threshold that pays, at the best one in hindsight, and where there is no model.

    Returns:
        ``threshold``, ``cost``, ``alarms`` (share of rows), ``best_threshold`` (1 at most), ``best_cost``,
        ``always`` and ``never`` (an alarm).

    >>> cost_figures(np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9]), Costs(1, 3))["cost"]
    250.0
    """
    thresholds, cost = cost_curve(labels, probabilities, costs)
    at, best = int(np.searchsorted(thresholds, costs.threshold)), int(np.argmin(cost))
    return {
        "threshold": costs.threshold,
        "cost": float(cost[at]),
        "alarms": float((probabilities >= costs.threshold).mean()),
        "best_threshold": float(min(thresholds[best], 1.0)),
        "best_cost": float(cost[best]),
        "always": float(cost[0]),
        "never": float(cost[-1]),
    }
