"""The part of a "why" that says what each feature contributed, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.attributions import Attribution, Predict, attribute
from shared_features.app import Model
from shared_features.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Compared:
    """What a prediction is compared with.

    Attributes:
        background: from a model and a version to rows of training; ConfigurationError if none are known.
        most: of these rows.
        log_odds: tell of logarithmic odds, not of probabilities.
    """

    background: Callable[[Model, int], pa.Table]
    most: int
    log_odds: bool = False


def contributions(
    model: Model, version: int, predict: Predict, row: pa.RecordBatch, inputs: Sequence[str], compared: Compared
) -> dict[str, Any]:
    """What features contributed to a model's outputs.

    Args:
        model, version: that answers.
        predict: asks it.
        row: the features, a block of one row.
        inputs: the features that the model takes.
        compared: with what.

    Returns:
        ``scale``, and ``outputs``: each with ``base``, its mean over so many ``rows`` of the background, ``prediction``
        and ``features``, the greatest contribution first; or ``reason``, why there is nothing to tell.
    """
    try:
        background = compared.background(model, version).slice(0, compared.most)
        found = attribute(predict, row, background, inputs, log_odds=compared.log_odds)
    except ConfigurationError as error:
        return {"reason": str(error)}
    usual = {name: _usual(background[name]) for name in inputs}
    outputs = [_output(name, one, row, inputs, usual) for name, one in found.items() if name in model.outputs]
    scale = "log-odds" if compared.log_odds else "output"
    return {"scale": scale, "outputs": outputs}


def _output(
    output: str, found: Attribution, row: pa.RecordBatch, inputs: Sequence[str], usual: dict[str, Any]
) -> dict[str, Any]:
    errors = [None if np.isnan(error) else error for error in found.errors.tolist()]
    features = [
        {
            "feature": name,
            "value": row.column(name)[0].as_py(),
            "usual": usual[name],
            "contribution": contribution,
            "standard_error": error,
        }
        for name, contribution, error in zip(inputs, found.contributions.tolist(), errors, strict=True)
    ]
    features.sort(key=lambda one: -abs(one["contribution"]))
    summed = {"base": found.base, "prediction": found.prediction}
    return {"output": output, "rows": found.rows, **summed, "features": features}


def _usual(column: pa.ChunkedArray) -> Any:
    """The median of numbers, the most frequent of other values; None for a list, or where most values are missing."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        return None
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        middle = pc.quantile(column, 0.5, interpolation="lower")[0].as_py()
        return None if 2 * column.null_count > len(column) else middle
    counted = pc.value_counts(column)
    return counted.field("values")[int(np.argmax(counted.field("counts")))].as_py()
