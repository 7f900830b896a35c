"""Predictions by model version and their mean, as a job's metrics tell them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from streaming.prediction_metrics import HALF_LIFE, PredictionCounts


def block(versions: list[int | None], values: list[float | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "version.late": pa.array(versions, pa.int64()),
            "prediction.late.probability": pa.array(values, pa.float64()),
            "prediction.later.probability": pa.array([9.0] * len(values)),
        }
    )


def test_predictions_are_counted_by_version_and_rows_without_one_are_left_out() -> None:
    counts = PredictionCounts()
    counts.add(block([3, None, 4, 3], [0.25, None, 1.0, 0.75]))
    counts.add(block([None], [None]))
    assert counts.as_dict() == {
        "predictions": [["late", 3, 2], ["late", 4, 1]],
        "prediction_means": [["late", 3, "probability", 0.5], ["late", 4, "probability", 1.0]],
    }


def test_an_older_prediction_counts_half_after_the_half_life() -> None:
    counts = PredictionCounts()
    counts.add(block([1], [1.0]))
    counts.add(block([1] * HALF_LIFE, [0.0] * HALF_LIFE))
    assert counts.means["late", 1, "probability"] == pytest.approx(0.5)
    counts.add(block([1], [None]))
    assert counts.means["late", 1, "probability"] == pytest.approx(0.5)


def test_only_so_many_versions_are_remembered() -> None:
    counts = PredictionCounts()
    for version in range(120):
        counts.add(block([version], [0.5]))
    assert (len(counts.predicted), len(counts.means), min(counts.predicted)) == (100, 100, ("late", 20))
