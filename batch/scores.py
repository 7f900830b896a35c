"""Figures of predictions whose outcome is known, in memory that does not grow, and the same in any order.

Predictions are counted in bins that are 0.8 % wide in odds' terms: p below one half by the leading bits of p, others by
those of 1 - p. All that is kept is integers, so that what was counted can be taken back, parts can be merged, and any
order gives the same bits. AUC and calibration error are those of the binned predictions; log loss, Brier score and
means are rounded to 1e-9 for each prediction.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shared_features.elementary import log

CALIBRATION_BINS = 20
SMALLEST_PROBABILITY = 1e-7

_UNITS = 1e9
_SHIFT = 45  # of a double's 52 bits of fraction the first 7 tell bins apart
_LEAST = 2.0**-24


def _code(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return values.view(np.int64) >> _SHIFT


_FIRST = int(_code(np.array([_LEAST]))[0])
_HALF = int(_code(np.array([0.5]))[0]) - _FIRST + 1
BINS = 2 * _HALF

Probabilities = npt.NDArray[np.float64]


def bins_of(probabilities: Probabilities) -> npt.NDArray[np.int64]:
    """The bin of each probability, rising with it; int64, shape [rows], in [0, BINS).

    >>> bins_of(np.array([0.0, 0.25, 0.251, 0.75, 1.0])).tolist()
    [0, 2816, 2816, 3073, 5889]
    """
    least = np.clip(np.minimum(probabilities, 1 - probabilities), _LEAST, 0.5)
    codes = _code(least) - _FIRST
    return np.where(probabilities < 0.5, codes, BINS - 1 - codes)


class Scores:
    """Counts of predictions with their outcomes.

    Attributes:
        positives, negatives: rows of each bin; int64, shape [BINS].
    """

    def __init__(self) -> None:
        self.positives, self.negatives = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self._said = np.zeros(BINS, np.int64)  # of each bin the sum of probabilities, in units of 1e-9
        self._loss = self._squares = 0

    def add(self, probabilities: Probabilities, labels: npt.NDArray[np.bool_], sign: int = 1) -> None:
        """Count rows, or take them back with ``sign`` -1; both arrays of shape [rows]."""
        places, units = bins_of(probabilities), np.rint(probabilities * _UNITS).astype(np.int64)
        self.positives += sign * np.bincount(places[labels], minlength=BINS)
        self.negatives += sign * np.bincount(places[~labels], minlength=BINS)
        np.add.at(self._said, places, sign * units)
        inside = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        right = np.where(labels, inside, 1 - inside)
        self._loss += sign * int(np.rint(-log(right) * _UNITS).astype(np.int64).sum())
        self._squares += sign * int(np.rint(np.square(probabilities - labels) * _UNITS).astype(np.int64).sum())

    def figures(self) -> dict[str, float | int | None]:
        """``labelled``, ``positives`` (their share), ``auc``, ``log_loss``, ``brier``, ``calibration_error``.

        None where the outcomes say nothing of a figure.
        """
        rows, hits = int(self.positives.sum() + self.negatives.sum()), int(self.positives.sum())
        return {
            "labelled": rows,
            "positives": hits / rows if rows else None,
            "auc": self._auc(),
            "log_loss": self._loss / (rows * 10**9) if rows else None,
            "brier": self._squares / (rows * 10**9) if rows else None,
            "calibration_error": self._calibration_error(rows) if rows else None,
        }

    def _auc(self) -> float | None:
        """The chance that a positive outranks a negative, ties counting one half."""
        below = np.cumsum(self.negatives) - self.negatives
        halves = int((self.positives * (2 * below + self.negatives)).sum())
        pairs = int(self.positives.sum()) * int(self.negatives.sum())
        return halves / (2 * pairs) if pairs else None

    def _calibration_error(self, rows: int) -> float:
        """Mean distance of predicted and observed share over bins of about equal count."""
        counts = self.positives + self.negatives
        middles = 2 * np.cumsum(counts) - counts
        groups = np.minimum(middles * CALIBRATION_BINS // (2 * rows), CALIBRATION_BINS - 1)
        apart = self._said - self.positives * 10**9
        sums = np.zeros(CALIBRATION_BINS, np.int64)
        np.add.at(sums, groups, apart)
        return int(np.abs(sums).sum()) / (rows * 10**9)
