"""Figures that judge a prediction: exact, vectorised, on NumPy arrays.

Labels are 0 or 1 (any numeric or bool dtype), probabilities and scores float, all [rows].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_features.errors import HistoryError

Array = npt.NDArray[Any]

CALIBRATION_BINS = 20
SMALLEST_PROBABILITY = 1e-7


def rank_auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve: the chance that a positive outranks a negative, ties counting one half.

    Raises:
        HistoryError: all labels are the same, so that nothing can be ranked.

    >>> rank_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    return float(_weighted_auc(_Ranking.of(labels, scores), np.ones((1, len(scores)), np.int64))[0])


def log_loss(labels: Array, probabilities: Array) -> float:
    """Mean negative log likelihood in nats; probabilities are kept 1e-7 away from 0 and 1."""
    inside = np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return float(-np.where(labels.astype(bool), np.log(inside), np.log1p(-inside)).mean())


def brier_score(labels: Array, probabilities: Array) -> float:
    """Mean squared distance of probability and outcome, in [0, 1]; 0 is best (Brier, 1950).

    >>> brier_score(np.array([0, 1]), np.array([0.5, 1.0]))
    0.125
    """
    return float(np.mean((probabilities.astype(np.float64) - labels) ** 2))


def average_precision(labels: Array, scores: Array) -> float:
    """Mean precision over the positives, each taken at its own score: sum of (recall gained) x precision.

    Rows of one score count together, as in scikit-learn's ``average_precision_score``.

    Raises:
        HistoryError: there is no positive.

    >>> average_precision(np.array([0, 1, 1]), np.array([0.2, 0.1, 0.9]))
    0.8333333333333333
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order].astype(np.int64))
    if not hits[-1]:
        raise HistoryError(
            f"An average precision needs positives, but all {len(labels)} labels are false: evaluate a longer period."
        )
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (last + 1)).sum() / hits[-1])


def calibration_curve(labels: Array, probabilities: Array, bins: int = CALIBRATION_BINS) -> tuple[Array, Array, Array]:
    """(mean probability, share of positives, rows) of bins of equal count, in the order of probability."""
    order = np.argsort(probabilities, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    predicted = np.array([probabilities[part].mean(dtype=np.float64) for part in parts])
    observed = np.array([labels[part].mean(dtype=np.float64) for part in parts])
    return predicted, observed, np.array([len(part) for part in parts])


def calibration_error(labels: Array, probabilities: Array, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean distance of predicted and observed share over equal-count bins."""
    predicted, observed, rows = calibration_curve(labels, probabilities, bins)
    return float(np.average(np.abs(predicted - observed), weights=rows))


def roc_curve(labels: Array, scores: Array) -> tuple[Array, Array]:
    """(false alarm rate, hit rate), from (0, 0) to (1, 1), one point for each distinct score."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(labels[order].astype(np.int64))
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true, all_rows = hits[last], last + 1
    false_rate = np.append(0.0, (all_rows - true) / max(len(order) - hits[-1], 1))
    return false_rate, np.append(0.0, true / max(hits[-1], 1))


def figures(labels: Array, probabilities: Array) -> dict[str, float]:
    """AUC, average precision, log loss, Brier score, calibration error, mean prediction, share of positives, rows."""
    return {
        "auc": rank_auc(labels, probabilities),
        "average_precision": average_precision(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "brier": brier_score(labels, probabilities),
        "calibration_error": calibration_error(labels, probabilities),
        "mean_prediction": float(probabilities.mean(dtype=np.float64)),
        "positives": float(labels.mean(dtype=np.float64)),
        "rows": len(labels),
    }


def bootstrap_auc(labels: Array, scores: Mapping[str, Array], *, resamples: int, seed: int) -> dict[str, Array]:
    """AUC of each score on the same resampled rows, for paired comparison.

    Rows are drawn with replacement, as many as there are; every score sees the same draws.

    Returns:
        name -> float64 [resamples].
    """
    rows = len(labels)
    random = np.random.default_rng(seed)
    rankings = {name: _Ranking.of(labels, score) for name, score in scores.items()}
    found: dict[str, list[Array]] = {name: [] for name in scores}
    at_once = max(1, min(resamples, 4_000_000 // rows))  # a few dozen MB of counts
    for start in range(0, resamples, at_once):
        draws = min(at_once, resamples - start)
        drawn = random.integers(0, rows, (draws, rows), dtype=np.int32)
        counts = np.stack([np.bincount(one, minlength=rows) for one in drawn])
        for name, ranking in rankings.items():
            found[name].append(_weighted_auc(ranking, counts))
    return {name: np.concatenate(parts) for name, parts in found.items()}


class _Ranking:
    """Order of rows by score, with where each group of ties begins; sorted once, weighted many times."""

    def __init__(self, order: Array, starts: Array, positive: Array) -> None:
        self.order = order
        self.starts = starts
        self.positive = positive

    @classmethod
    def of(cls, labels: Array, scores: Array) -> _Ranking:
        positive = labels.astype(bool)
        if positive.all() or not positive.any():
            raise HistoryError(
                f"An AUC needs both outcomes, but all {len(labels)} rows have the same label: evaluate a longer period."
            )
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        starts = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
        return cls(order, starts, positive[order])


def _weighted_auc(ranking: _Ranking, counts: Array) -> Array:
    """AUC where row i stands counts[:, i] times; counts int64 [draws, rows]; float64 [draws]."""
    ordered = counts[:, ranking.order]
    positive = np.add.reduceat(ordered * ranking.positive, ranking.starts, axis=1)
    negative = np.add.reduceat(ordered, ranking.starts, axis=1) - positive
    below = np.cumsum(negative, axis=1) - negative
    halves = (positive * (2 * below + negative)).sum(axis=1)  # integers: exact
    return np.asarray(halves / (2.0 * positive.sum(axis=1) * negative.sum(axis=1)))
