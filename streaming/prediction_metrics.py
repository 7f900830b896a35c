"""What is predicted, by model version: how many, and where their mean lies, so that drift shows on a dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

HALF_LIFE: Final = 10_000
"""Predictions after which an older one counts half in the mean."""

_VERSIONS: Final = 100  # of all models: more are counted as the newest ones only


class PredictionCounts:
    """Counts and means of one job; written by one thread, read by any through copies.

    The mean of an output is that of the newest predictions, each counting half of what one counts that came
    10,000 later; it begins with the first commit's. It is told, never compared or acted on: drift is for people and
    alerts to judge, against the day or week before.
    """

    def __init__(self) -> None:
        self.predicted: dict[tuple[str, int], int] = {}
        self.means: dict[tuple[str, int, str], float] = {}

    def add(self, block: pa.RecordBatch) -> None:
        """Count the rows of a committed block that were predicted."""
        names = block.schema.names
        for column in [name for name in names if name.startswith("version.")]:
            model = column.removeprefix("version.")
            versions = block.column(column)
            if versions.null_count == len(versions):
                continue
            numbers = versions.fill_null(-1).to_numpy()  # NumPy: a tenth of what Arrow's functions cost for one row
            outputs = {
                name.removeprefix(f"prediction.{model}."): block.column(name).to_numpy(zero_copy_only=False)
                for name in names
                if name.startswith(f"prediction.{model}.")
            }
            for version in np.unique(numbers[numbers >= 0]).tolist():
                rows = numbers == version
                self.predicted[model, version] = self.predicted.get((model, version), 0) + int(rows.sum())
                for name, values in outputs.items():
                    self._mean((model, version, name), values[rows])
        while len(self.predicted) > _VERSIONS:
            oldest = next(iter(self.predicted))
            del self.predicted[oldest]
            self.means = {key: mean for key, mean in self.means.items() if key[:2] != oldest}

    def _mean(self, key: tuple[str, int, str], values: np.ndarray) -> None:
        found = float(values.mean())
        if not np.isfinite(found):  # an output that is null for a row: no number to tell
            return
        before = self.means.get(key)
        weight = 1.0 if before is None else 1.0 - 0.5 ** (len(values) / HALF_LIFE)
        self.means[key] = found if before is None else before + (found - before) * weight

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "predictions": [[*key, number] for key, number in list(self.predicted.items())],
            "prediction_means": [[*key, mean] for key, mean in list(self.means.items())],
        }


def families(status: Mapping[str, Any]) -> Iterable[Metric]:
    """What `PredictionCounts.as_dict` says, as metrics."""
    counts = CounterMetricFamily("sameriver_predictions", "Predictions by model version", labels=["model", "version"])
    for model, version, number in status["predictions"]:
        counts.add_metric([model, str(version)], number)
    yield counts
    means = GaugeMetricFamily(
        "sameriver_prediction_mean", "Mean of the newest predictions", labels=["model", "version", "output"]
    )
    for model, version, output, mean in status["prediction_means"]:
        means.add_metric([model, str(version), output], mean)
    yield means
