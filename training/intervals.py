"""95 % intervals without resampling, for figures of many small groups of rows.

AUC by DeLong, DeLong and Clarke-Pearson (1988), computed from ranks as by Sun and Xu (2014, IEEE Signal Processing
Letters 21); means of rows by their standard error. Both come in pairs: the difference of two models on the same rows,
which is much surer than two intervals side by side would make believe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from training.metrics import SMALLEST_PROBABILITY

Array = npt.NDArray[Any]

NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and where it lies with 95 % certainty.

    Attributes:
        value: as measured.
        low, high: ends of the interval; equal to ``value`` where the rows leave no doubt.
    """

    value: float
    low: float
    high: float

    @staticmethod
    def of(value: float, variance: float) -> Interval:
        """The normal one."""
        half = NORMAL_95 * float(np.sqrt(max(variance, 0.0)))
        return Interval(float(value), float(value) - half, float(value) + half)


def auc_interval(labels: Array, scores: Array) -> Interval:
    """AUC of scores [rows] for labels bool [rows] with at least two rows of each outcome.

    >>> auc_interval(np.array([0, 0, 1, 1], bool), np.array([0.1, 0.4, 0.4, 0.8])).value
    0.875
    """
    above, below = _placements(labels, scores)
    one = Interval.of(float(above.mean()), _variance(above) + _variance(below))
    return Interval(one.value, max(one.low, 0.0), min(one.high, 1.0))


def auc_difference(labels: Array, scores: Array, other_scores: Array) -> Interval:
    """AUC of ``scores`` minus AUC of ``other_scores`` on the same rows."""
    above, below = _placements(labels, scores)
    other_above, other_below = _placements(labels, other_scores)
    difference = float(above.mean() - other_above.mean())
    return Interval.of(difference, _variance(above - other_above) + _variance(below - other_below))


def mean_interval(values: Array) -> Interval:
    """Mean of float64 [rows]."""
    return Interval.of(float(values.mean()), _variance(values))


def row_losses(metric: str, labels: Array, probabilities: Array) -> Array:
    """What each row adds to ``log_loss`` or ``brier``; float64 [rows]."""
    if metric == "brier":
        return np.asarray((probabilities - labels) ** 2)
    inside = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    losses: Array = -np.where(labels, np.log(inside), np.log1p(-inside))
    return losses


def _placements(labels: Array, scores: Array) -> tuple[Array, Array]:
    """(of each positive the share of negatives below it, of each negative the share of positives above it)."""
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])

    def share_below(values: Array, others: Array) -> Array:
        left, right = np.searchsorted(others, values, "left"), np.searchsorted(others, values, "right")
        return np.asarray((left + right) / (2 * len(others)))

    return share_below(scores[labels], negative), 1 - share_below(scores[~labels], positive)


def _variance(values: Array) -> float:
    """Of the mean."""
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0
