"""Figures of parts of the test rows: where a model is good in all, and bad for some.

A slice is one value of a feature (``origin = JFK``), missing included, or one month of event time. Small ones are left
out: what has fewer than ``MIN_ROWS`` rows or ``MIN_OF_OUTCOME`` of either outcome says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import ConfigurationError
from training.intervals import auc_difference, auc_interval, mean_interval, row_losses
from training.metrics import calibration_error
from training.rows import ENVELOPE, LABEL

Array = npt.NDArray[Any]

MIN_ROWS = 200
MIN_OF_OUTCOME = 20
MOST_VALUES = 12
MOST_DISTINCT_NUMBERS = 60
MONTH = "month"


def slices_of(test: pa.Table, features: Sequence[str]) -> Iterator[tuple[str, str, Array]]:
    """(feature, value, rows) of each slice: the months, then of each feature its most frequent values.

    Args:
        test: with ``event_time`` and the features.
        features: texts, or numbers of at most ``MOST_DISTINCT_NUMBERS`` different values.

    Raises:
        ConfigurationError: no such feature, or one of too many numbers.
    """
    for feature in [MONTH, *features]:
        values = _texts(test, feature)
        counts = pc.value_counts(values)
        found = sorted(
            ((-count.as_py(), value.as_py()) for value, count in zip(counts.field(0), counts.field(1), strict=True)),
            key=lambda one: (one[0], str(one[1])),
        )
        kept = found if feature == MONTH else found[:MOST_VALUES]
        for _, value in sorted(kept, key=lambda one: one[1]) if feature == MONTH else kept:
            mask = pc.is_null(values) if value is None else pc.fill_null(pc.equal(values, value), False)
            yield feature, "missing" if value is None else value, np.flatnonzero(mask.to_numpy(zero_copy_only=False))


def slice_figures(
    test: pa.Table, features: Sequence[str], labels: Array, probabilities: Array, champion: Array | None = None
) -> list[dict[str, Any]]:
    """AUC, log loss, Brier score and calibration of each slice that is large enough.

    Args:
        test: as for `slices_of`.
        features: as for `slices_of`.
        labels: bool [rows].
        probabilities: of the model, float64 [rows].
        champion: of the model that it is compared with.

    Returns:
        For each slice ``feature``, ``value``, ``rows``, ``positives``; ``auc``, ``log_loss``, ``brier`` and ``bias``
        (mean prediction minus share of positives), each with ``value``, ``low`` and ``high``; ``calibration_error``;
        and with a champion ``against_champion``: the differences of auc, log_loss and brier.
    """
    found = []
    for feature, value, rows in slices_of(test, features):
        truth, said = labels[rows], probabilities[rows]
        if len(rows) < MIN_ROWS or min(truth.sum(), (~truth).sum()) < MIN_OF_OUTCOME:
            continue
        one: dict[str, Any] = {
            "feature": feature,
            "value": value,
            "rows": len(rows),
            "positives": float(truth.mean()),
            "auc": asdict(auc_interval(truth, said)),
            "log_loss": asdict(mean_interval(row_losses("log_loss", truth, said))),
            "brier": asdict(mean_interval(row_losses("brier", truth, said))),
            "bias": asdict(mean_interval(said - truth)),
            "calibration_error": calibration_error(truth, said),
        }
        if champion is not None:
            one["against_champion"] = differences(truth, said, champion[rows])
        found.append(one)
    return found


def differences(labels: Array, probabilities: Array, champion: Array) -> dict[str, dict[str, float]]:
    """auc, log_loss and brier of a model minus those of the champion on the same rows, with intervals."""
    losses = {
        name: asdict(mean_interval(row_losses(name, labels, probabilities) - row_losses(name, labels, champion)))
        for name in ("log_loss", "brier")
    }
    return {"auc": asdict(auc_difference(labels, probabilities, champion)), **losses}


def _texts(test: pa.Table, feature: str) -> pa.Array:
    """The values of a feature as texts; null is missing."""
    if feature == MONTH:
        return pc.strftime(test["event_time"], "%Y-%m").combine_chunks()
    known = [name for name in test.column_names if name not in (*ENVELOPE, LABEL)]
    if feature not in known:
        raise ConfigurationError(
            f"A slice needs a feature, but {feature!r} is none of {', '.join(known)}: name another."
        )
    column = test[feature].combine_chunks()
    plain = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    if not pa.types.is_string(plain.type) and len(pc.unique(plain)) > MOST_DISTINCT_NUMBERS:
        raise ConfigurationError(
            f"A slice needs a text, or a number of at most {MOST_DISTINCT_NUMBERS} values, but {feature!r} has more: "
            "name another feature."
        )
    return plain.cast(pa.string())
