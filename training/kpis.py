"""An app's KPIs over rows whose label is known: the same integers as `sameriver monitor` adds live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared_features.app import App
from shared_features.outcomes import Prediction
from training.intervals import Interval


def kpi_figures(
    app: App, model: str, rows: pa.Table, labels: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """The mean of each KPI that looks at no other model than this one, and its 95 % interval by the standard error.

    Args:
        app: whose KPIs they are.
        model: that gave the probabilities.
        rows: a column for each feature, as in training rows.
        labels, probabilities: of the rows, shape [rows].

    Returns:
        By name ``rows`` that have a value, ``value``, ``low`` and ``high``; these are None where no row has one.
    """
    columns = {f"feature.{name}": _one(rows[name]) for name in app.features if name in rows.column_names}
    columns[f"prediction.{model}.probability"] = pa.array(probabilities, pa.float64())
    block = pa.RecordBatch.from_pydict(columns)
    found = {}
    for kpi in app.kpis:
        asked: Sequence[Prediction] = [node for node in kpi.value.walk() if isinstance(node, Prediction)]
        if all((node.model, node.output) == (model, "probability") for node in asked):
            units, there = kpi.units(app, block, labels)
            counted = units[there]
            value = kpi.mean(sum(counted.tolist()), len(counted))
            ends: dict[str, float | None] = {"low": None, "high": None}
            if value is not None:
                one = Interval.of(value, float(counted.var()) / 10 ** (2 * kpi.scale) / len(counted))
                ends = {"low": one.low, "high": one.high}
            found[kpi.name] = {"rows": len(counted), "value": value, **ends}
    return found


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
