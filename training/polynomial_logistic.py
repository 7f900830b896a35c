"""A logistic model of powers of its columns whose coefficients are given: there is nothing to train.

For a model that somebody has published, to be served and judged beside those trained here. It predicts

    sigmoid(intercept + Σ over p = 1 … order, Σ over columns i: coefficients[(p − 1) · columns + i] · cᵢᵖ)

in float64; inputs are float64, too, because powers of a number rounded to float32 are off in the sixth digit. A
missing number counts as 0.

Importing this module does not load TensorFlow; writing a model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared_features.errors import ConfigurationError
from training.export import describing
from training.rows import TrainingRows

KIND = "polynomial_logistic"
MOST_ORDER = 16


@dataclass(frozen=True, slots=True)
class PolynomialLogisticOptions:
    """What such a model consists of.

    Attributes:
        columns: features that are numbers, in the order of the coefficients.
        order: the highest power.
        intercept: of the sum.
        coefficients: ``order`` times as many as columns: first those of the columns, then those of their squares …
    """

    columns: tuple[str, ...]
    order: int
    intercept: float
    coefficients: tuple[float, ...]

    @staticmethod
    def from_mapping(options: Mapping[str, Any], numbers: Sequence[str]) -> PolynomialLogisticOptions:
        """Check options given as a plain mapping (from an app file or JSON).

        Args:
            options: by name; ``kind`` is passed over.
            numbers: features that are numbers or bools.

        Raises:
            ConfigurationError: one is missing, unknown, or does not fit.
        """
        names = ("columns", "order", "intercept", "coefficients")
        given = {name: value for name, value in options.items() if name != "kind"}
        if set(given) != set(names):
            raise ConfigurationError(
                f"A {KIND} model takes the options {', '.join(names)}, but has {', '.join(sorted(given)) or 'none'}: "
                "correct the app file."
            )
        columns, order, coefficients = list(given["columns"]), given["order"], list(given["coefficients"])
        strangers = [name for name in columns if name not in numbers]
        if strangers or not columns:
            raise ConfigurationError(
                f"The columns of a {KIND} model must be features that are numbers, but {strangers or 'there are none'}"
                ": correct the app file."
            )
        if type(order) is not int or not 1 <= order <= MOST_ORDER:
            raise ConfigurationError(f"The order of a {KIND} model must be 1 to {MOST_ORDER}, but is {order!r}.")
        values = [given["intercept"], *coefficients]
        if len(coefficients) != order * len(columns) or not all(_finite(value) for value in values):
            raise ConfigurationError(
                f"A {KIND} model of {len(columns)} columns and order {order} takes an intercept and "
                f"{order * len(columns)} coefficients, finite numbers, but has {len(coefficients)}: correct the app "
                "file."
            )
        return PolynomialLogisticOptions(
            tuple(columns), order, float(given["intercept"]), tuple(float(value) for value in coefficients)
        )

    def summary(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {"kind": KIND, **asdict(self)}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def write_polynomial_logistic(options: PolynomialLogisticOptions, rows: TrainingRows, folder: Path) -> None:
    """Write the model as a SavedModel, with the two signatures of `training.export`; output ``probability`` float64.

    Args:
        options: the model.
        rows: carry fingerprint and definitions.
        folder: written into; must be empty.
    """
    import tensorflow as tf

    weights = np.array(options.coefficients).reshape(options.order, len(options.columns))

    def predict(**features: Any) -> dict[str, Any]:
        columns = tf.stack([features[name] for name in options.columns], axis=1)
        columns = tf.where(tf.math.is_finite(columns), columns, tf.zeros_like(columns))
        total = tf.fill([tf.shape(columns)[0]], tf.constant(options.intercept, tf.float64))
        powers = tf.ones_like(columns)
        for row in weights:
            powers = powers * columns
            total += tf.reduce_sum(powers * tf.constant(row, tf.float64), axis=1)
        return {"probability": tf.sigmoid(total)}

    inputs = {name: tf.TensorSpec([None], tf.float64, name=name) for name in options.columns}
    signatures = {
        "serving_default": tf.function(predict).get_concrete_function(**inputs),
        "describe": describing(rows),
    }
    tf.saved_model.save(tf.Module(), str(folder), signatures=signatures)
