"""What a model has to beat, fitted on the training split and asked about the same rows.

scikit-learn is loaded only where a baseline is fitted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import ConfigurationError
from training.rows import LABEL, TrainingRows, number_column
from training.statistics import Statistics

Array = npt.NDArray[Any]

MAX_FIT_ROWS = 1_000_000
MAX_CATEGORIES = 254  # HistGradientBoosting bins a category into a byte and keeps one for missing


def fit_rows(rows: TrainingRows, columns: list[str], max_rows: int = MAX_FIT_ROWS) -> pa.Table:
    """The training split's columns and label, or every k-th row of it where it has more than ``max_rows``."""
    stride = -(-rows.counts["train"] // max_rows)
    kept, offset = [], 0
    for block in rows.blocks("train", [*columns, LABEL]):
        first = -offset % stride
        kept.append(block if stride == 1 else block.take(pa.array(np.arange(first, block.num_rows, stride))))
        offset += block.num_rows
    return pa.Table.from_batches(kept)


class OneFeature:
    """Predict from one number alone: the more of it the likelier (or the unlikelier, whichever fits).

    Probabilities come from an isotonic fit; scores for ranking are the number itself, as a fit's steps would
    tie rows which the number tells apart. A missing number has the share of positives among missing ones
    and ranks at the training median.
    """

    def __init__(self, rows: TrainingRows, feature: str) -> None:
        from sklearn.isotonic import IsotonicRegression

        if feature not in rows.numbers:
            raise ConfigurationError(
                f"The one-feature baseline needs a number, but {feature!r} is none of {', '.join(rows.numbers)}: "
                "name another."
            )
        self.feature = feature
        table = fit_rows(rows, [feature])
        values, labels = number_column(table[feature]), number_column(table[LABEL])
        present = np.isfinite(values)
        if not present.any():
            raise ConfigurationError(f"The one-feature baseline needs values, but {feature!r} has none: name another.")
        self._fit = IsotonicRegression(out_of_bounds="clip", increasing="auto", y_min=0, y_max=1)
        self._fit.fit(values[present], labels[present])
        self._median = float(np.median(values[present]))
        self._share_missing = float(labels[~present].mean()) if not present.all() else float(labels.mean())
        # A step without positives is no proof of impossibility: half a row's worth is kept.
        self._least = 0.5 / len(labels)

    def predict(self, data: pa.Table) -> tuple[Array, Array]:
        """(probabilities, scores to rank by), float64 [rows]."""
        values = number_column(data[self.feature])
        present = np.isfinite(values)
        filled = np.where(present, values, self._median)
        probabilities = np.where(present, self._fit.predict(filled), self._share_missing)
        sign = 1.0 if self._fit.increasing_ else -1.0
        return np.clip(probabilities, self._least, 1 - self._least), sign * filled


class GradientBoosting:
    """scikit-learn's HistGradientBoostingClassifier with its own defaults, texts as categories."""

    def __init__(self, rows: TrainingRows, statistics: Statistics, seed: int) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        self._rows = rows
        self._categories = {
            name: pa.array([value for value, _ in one.vocabulary[:MAX_CATEGORIES]], pa.string())
            for name, one in statistics.texts.items()
        }
        features = [*rows.numbers, *rows.texts]
        categorical = [name in self._categories for name in features]
        table = fit_rows(rows, features)
        self._fit = HistGradientBoostingClassifier(categorical_features=categorical, random_state=seed)
        self._fit.fit(self._matrix(table), number_column(table[LABEL]))

    def predict(self, data: pa.Table) -> Array:
        """Probabilities, float64 [rows]."""
        probabilities: Array = self._fit.predict_proba(self._matrix(data))[:, 1]
        return probabilities

    def _matrix(self, data: pa.Table) -> Array:
        columns = [number_column(data[name]) for name in self._rows.numbers]
        for name in self._rows.texts:
            places = pc.index_in(data[name].cast(pa.string()), value_set=self._categories[name])
            columns.append(number_column(places))
        return np.column_stack(columns)
