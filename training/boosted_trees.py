"""Gradient-boosted trees: scikit-learn's HistGradientBoosting fits them, plain TensorFlow operations serve them.

The training split is read as float32, as a server gets its inputs, so that no value falls on the other side of a
threshold when it is served. The validation split says when to stop.

Importing this module does not load TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import ConfigurationError
from training.baselines import MAX_CATEGORIES, fit_rows
from training.metrics import log_loss, rank_auc
from training.rows import LABEL, TrainingRows, number_column
from training.statistics import Statistics, compute_statistics

Array = npt.NDArray[Any]

KIND = "boosted_trees"
QUICK_ITERATIONS = 50
ROWS_OF_ONE_THREAD = 20_000
"""Below so many rows threads wait for each other longer than they work."""


@dataclass(frozen=True, slots=True)
class BoostedTreesOptions:
    """What an app may set, with defaults that suit the flights of 2013.

    Attributes:
        iterations: trees at most; ``patience`` of them without a better log loss on the validation split end it.
        leaves: of a tree, at most.
        learning_rate: what each tree counts.
        min_leaf_rows: training rows in a leaf, at least.
        regularization: L2, of the values of leaves.
        feature_share: of the features, drawn anew for each split, that it may be made on.
        bins: into which a number is cut to find thresholds.
        min_rows: rows in which a text value must occur to have a place of its own, as the 254 most frequent ones may.
        baseline: number to predict from alone in reports; nothing here depends on it.
    """

    iterations: int = 600
    patience: int = 20
    leaves: int = 31
    learning_rate: float = 0.05
    min_leaf_rows: int = 50
    regularization: float = 1.0
    feature_share: float = 0.5
    bins: int = 255
    min_rows: int = 20
    baseline: str | None = None

    @staticmethod
    def from_mapping(options: Mapping[str, Any], numbers: Sequence[str]) -> BoostedTreesOptions:
        """Check options given as a plain mapping (from an app file or JSON).

        Raises:
            ConfigurationError: an unknown name, or a value of another type or out of range.
        """
        known = [field.name for field in fields(BoostedTreesOptions)]
        for name, value in options.items():
            if name not in known:
                raise ConfigurationError(
                    f"Model {KIND} has no option {name!r}; it has {', '.join(known)}: correct the app file."
                )
            least, most, kind = _RANGES.get(name, (1, 1_000_000, int))
            if name == "baseline":
                fits, wanted = value is None or value in numbers, f"one of the numbers {', '.join(numbers)}"
            else:
                of_kind = isinstance(value, (int, kind)) and not isinstance(value, bool)
                fits, wanted = of_kind and least <= value <= most, f"from {least} to {most}"
                wanted = f"a {'whole ' if kind is int else ''}number {wanted}"
            if not fits:
                raise ConfigurationError(
                    f"Option {name} of model {KIND} must be {wanted}, but is {value!r}: correct the app file."
                )
        return BoostedTreesOptions(**options)

    def summary(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return asdict(self)


_RANGES: Mapping[str, tuple[float, float, type]] = {
    "learning_rate": (1e-4, 1, float),
    "regularization": (0, 1e9, float),
    "feature_share": (0.01, 1, float),
    "leaves": (2, 100_000, int),
    "bins": (2, 255, int),
}


class BoostedTrees:
    """Fitted trees.

    Args:
        rows: whose training split they learn from, at most `training.baselines.MAX_FIT_ROWS` of it, in memory.
        options: of the trees.
        seed: of the features drawn for splits.
        quick: fewer trees.
    """

    def __init__(self, rows: TrainingRows, options: BoostedTreesOptions, seed: int, *, quick: bool = False) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait stand in others' way
        from sklearn.ensemble import HistGradientBoostingClassifier
        from threadpoolctl import threadpool_limits

        self.rows, self.options = rows, options
        self.statistics: Statistics = compute_statistics(rows, min_rows=options.min_rows)
        self.vocabularies = {
            name: [value for value, _ in one.vocabulary[: min(MAX_CATEGORIES, options.bins - 1)]]
            for name, one in self.statistics.texts.items()
        }
        table = fit_rows(rows, [*rows.numbers, *rows.texts])
        matrix, labels = self.matrix(table), number_column(table[LABEL])
        self.trained_rows = len(labels)
        self.seen = [np.unique(codes[np.isfinite(codes)]) for codes in matrix[:, : len(rows.texts)].T]
        validation = pa.Table.from_batches(list(rows.blocks("validate")))
        validation_matrix, validation_labels = self.matrix(validation), number_column(validation[LABEL])
        self.model = HistGradientBoostingClassifier(
            max_iter=min(options.iterations, QUICK_ITERATIONS) if quick else options.iterations,
            n_iter_no_change=options.patience,
            max_leaf_nodes=options.leaves,
            learning_rate=options.learning_rate,
            min_samples_leaf=options.min_leaf_rows,
            l2_regularization=options.regularization,
            max_features=options.feature_share,
            max_bins=options.bins,
            categorical_features=list(range(len(rows.texts))),
            early_stopping=True,
            random_state=seed,
        )
        with threadpool_limits(1 if len(labels) < ROWS_OF_ONE_THREAD else None, "openmp"):
            self.model.fit(matrix, labels, X_val=validation_matrix, y_val=validation_labels)
        said = self.model.predict_proba(validation_matrix)[:, 1]
        self.measured = {
            "trees": float(self.model.n_iter_),
            "train_log_loss": -float(self.model.train_score_[-1]),
            "validate_log_loss": log_loss(validation_labels, said),
            "validate_auc": rank_auc(validation_labels, said),
        }

    def predict(self, data: pa.Table) -> Array:
        """What the library says, float64 [rows]."""
        probabilities: Array = self.model.predict_proba(self.matrix(data))[:, 1]
        return probabilities

    def matrix(self, data: pa.Table) -> Array:
        """Texts by their place in the vocabulary, then numbers rounded to float32; float64 [rows, features].

        What is missing, infinite or in no vocabulary is NaN. Texts come first because the library puts them there.
        """
        columns = []
        for name, vocabulary in self.vocabularies.items():
            places = pc.index_in(data[name].cast(pa.string()), value_set=pa.array(vocabulary, pa.string()))
            columns.append(number_column(places))
        for name in self.rows.numbers:
            rounded = number_column(data[name]).astype(np.float32).astype(np.float64)
            columns.append(np.where(np.isfinite(rounded), rounded, np.nan))
        return np.column_stack(columns)
