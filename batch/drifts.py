"""Live drift: features and predictions against training, by window of time, model and version.

Each prediction is compared with what its own version saw in training, so that a new version begins with its own
measure. Windows are those of `batch.quality`, and so is what comes too late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from batch.drift import Drift, FieldDrift, Limits
from batch.quality import OUTPUT, Integers, Served
from shared_features.app import App
from shared_features.columns import is_one_of
from shared_features.schema import TIMESTAMP
from streaming.results import PREDICTED

PREDICTION = "prediction"
"""What the model's own output is called among the features."""

Reference = Callable[[str, int], Mapping[str, Any] | None]
"""What a model's version says of its training, see `training.sketches.read_reference`; None if it says nothing."""

SCHEMA = pa.schema(
    [("window", TIMESTAMP), ("model", pa.string()), ("version", pa.int64()), ("feature", pa.string())]
    + [("rows", pa.int64()), *((name, pa.float64()) for name in ("missing", "trained_missing", "outside"))]
    + [(name, pa.float64()) for name in ("psi", "chance", "ks", "ks_chance")]
)


class Drifts:
    """Counts features and predictions, each against its version's training.

    Args:
        app: whose features they are.
        window_us: length of a window, microseconds.
        reference: asked once for each version.
    """

    def __init__(self, app: App, window_us: int, reference: Reference) -> None:
        self.app, self._window_us, self._reference = app, window_us, reference
        self._models = [model.name for model in app.models if OUTPUT in model.outputs]
        self._statistics: dict[tuple[str, int], Mapping[str, Any] | None] = {}
        self._counting: dict[Served, Drift] = {}
        self._settled: dict[Served, list[FieldDrift]] = {}

    def fold(self, block: pa.RecordBatch, newest_us: Integers) -> None:
        """Take in an archive's next rows; see `batch.quality.Quality.fold`."""
        times = block.column("event_time").cast(pa.int64()).to_numpy()
        keep = is_one_of(block.column("outcome"), PREDICTED) & (times >= newest_us - self.app.lateness_us)
        for model in self._models:
            if f"prediction.{model}.{OUTPUT}" in block.schema.names:
                self._add(block.filter(pa.array(keep)), model)
        ended_us = int(newest_us[-1]) - self.app.lateness_us - self._window_us
        for served in [one for one in self._counting if one.window_us < ended_us]:
            self._settled[served] = self._counting.pop(served).result()

    def of(self, served: Served) -> list[FieldDrift]:
        """Of one window, model and version."""
        if served in self._counting:
            return self._counting[served].result()
        return self._settled.get(served, [])

    def rows(self) -> Iterator[dict[str, Any]]:
        """The table, see `SCHEMA`."""
        for served in sorted({*self._settled, *self._counting}):
            for one in self.of(served):
                found = {"window": served.window_us, "model": served.model, "version": served.version}
                yield {**found, **{name: getattr(one, name) for name in SCHEMA.names[3:]}}

    def _add(self, block: pa.RecordBatch, model: str) -> None:
        rows = block.filter(block.column(f"version.{model}").is_valid())
        if not rows.num_rows:
            return
        windows = rows.column("event_time").cast(pa.int64()).to_numpy() // self._window_us * self._window_us
        pairs, which = np.unique(
            np.stack([windows, rows.column(f"version.{model}").to_numpy()]), axis=1, return_inverse=True
        )
        for place, (window, version) in enumerate(pairs.T.tolist()):
            statistics = self._of_training(model, version)
            if statistics is None:
                continue
            served = Served(window, model, version)
            if served not in self._counting:
                self._counting[served] = Drift(statistics, [*statistics["numbers"], *statistics["texts"]], Limits())
            mine = rows.filter(pa.array(which.ravel() == place))
            # In Parquet an archive's lists are of any size.
            columns = {
                name: mine.column(f"feature.{name}").cast(one.arrow_type) for name, one in self.app.features.items()
            }
            self._counting[served].add({**columns, PREDICTION: mine.column(f"prediction.{model}.{OUTPUT}")})

    def _of_training(self, model: str, version: int) -> Mapping[str, Any] | None:
        if (model, version) not in self._statistics:
            found = self._reference(model, version)
            if found is not None:
                numbers = {**found["numbers"], PREDICTION: found["predictions"][OUTPUT]}
                found = {"numbers": numbers, "texts": found["texts"]}
            self._statistics[model, version] = found
        return self._statistics[model, version]
