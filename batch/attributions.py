"""What each feature contributed to a prediction: Shapley values, of any model that can be asked.

After Štrumbelj and Kononenko (2014): begin with a row of the background, give its features one after the other the
values of the row that is explained, in an order drawn by chance, and see by how much the prediction changes at each.
The means of these changes over many rows and orders are the contributions. The changes on one way add up to the whole
difference, so contributions and base value add up to the prediction, however few ways there are. Each order is also
gone backwards: what a feature brings early and late then evens out, and the error is smaller.

All mixed rows are asked about in one call. The same row, background and seed give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared_features.errors import ConfigurationError

Array = npt.NDArray[Any]
Predict = Callable[[pa.RecordBatch], Mapping[str, Array]]
"""From a block of features to each output's values, float64 [rows]."""

MOST_ROWS = 65_536
"""That a model is asked about for one prediction."""
SURE = 1e-9
"""Log-odds are told as if no probability were nearer to 0 or 1."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What features contributed to one output.

    Attributes:
        base: the output's mean over the background.
        prediction: of the row; ``base`` and the sum of ``contributions``.
        contributions: float64 [features].
        errors: their standard errors: how much other background rows and orders would change them; NaN for one row.
        rows: of the background that were used.
    """

    base: float
    prediction: float
    contributions: Array
    errors: Array
    rows: int


def attribute(
    predict: Predict,
    row: pa.RecordBatch,
    background: pa.Table,
    features: Sequence[str],
    *,
    log_odds: bool = False,
    seed: int = 1,
) -> dict[str, Attribution]:
    """Contributions of features to a model's outputs for one row.

    Args:
        predict: asks the model; once, about at most `MOST_ROWS` rows.
        row: the features of the row, a block of one row.
        background: rows to compare with, a column for each feature; each is used once in either direction.
        features: that the model takes, at least one.
        log_odds: of outputs that are probabilities: their logarithmic odds are told.
        seed: of the orders.

    Returns:
        By output.

    Raises:
        ConfigurationError: the background lacks a feature or has another type, or the model gives no number for a
            mixed row.
    """
    size = len(features)
    background = background.slice(0, max(1, (MOST_ROWS - 1) // (2 * size)))
    columns = [_values(name, row, background) for name in features]
    codes = np.stack([code for _, code in columns], axis=1)  # [1 + background, features]; equal values: equal codes
    count = len(codes) - 1
    one_way = np.random.default_rng(seed).permuted(np.tile(np.arange(size), (count, 1)), axis=1)
    ranks = np.argsort(np.stack([one_way, one_way[:, ::-1]], axis=1), axis=2)  # [background, 2, features]
    is_own = ranks[:, :, None, :] < np.arange(size + 1)[:, None]  # [background, 2, steps, features]
    mixed = np.where(is_own, codes[0], codes[1:, None, None, :])
    distinct, places = np.unique(mixed.reshape(-1, size), axis=0, return_inverse=True)
    taken = [values.take(pa.array(distinct[:, place])) for place, (values, _) in enumerate(columns)]
    found = {}
    for output, values in predict(pa.RecordBatch.from_arrays(taken, names=list(features))).items():
        if not np.isfinite(values).all():
            raise ConfigurationError(f"the model gives no {output} for some rows of mixed features: none can be told")
        values = _log_odds(values) if log_odds else values
        said = values[places.ravel()].reshape(count, 2, size + 1)
        changes = np.take_along_axis(np.diff(said, axis=2), ranks, axis=2).mean(axis=1)  # [background, features]
        errors = changes.std(axis=0, ddof=1) / count**0.5 if count > 1 else np.full(size, np.nan)
        base, prediction = float(said[:, 0, 0].mean()), float(said[0, 0, -1])
        found[output] = Attribution(base, prediction, changes.mean(axis=0), errors, count)
    return found


def _values(name: str, row: pa.RecordBatch, background: pa.Table) -> tuple[pa.Array, Array]:
    """The distinct values of a feature, and which of them the row and the background rows have."""
    own = row.column(name)
    if name not in background.column_names:
        raise ConfigurationError(f"the background has no column {name!r}: wanted rows of the same features")
    try:
        others = background[name].combine_chunks().cast(own.type)
    except pa.ArrowException:
        raise ConfigurationError(
            f"feature {name!r} is {own.type}, and {background[name].type} in the background: wanted rows of the same "
            "features"
        ) from None
    values = pa.concat_arrays([own, others])
    _, first, codes = np.unique(list(map(repr, values.to_pylist())), return_index=True, return_inverse=True)
    return values.take(pa.array(first)), codes.ravel()


def _log_odds(values: Array) -> Array:
    near: Array = np.clip(values, SURE, 1 - SURE)
    odds: Array = np.log(near) - np.log1p(-near)
    return odds
