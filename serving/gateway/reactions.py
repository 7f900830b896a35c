"""Which reactions a prediction calls for: the reactions' own conditions, computed by the library's own evaluator.

A reaction travels on a topic of its own and may come before or after its prediction, so whoever answers with both has
to know which ones to wait for. The condition is computed of the event, the prediction's outputs and, where it looks
at aggregates, the features that came with the prediction (`sameriver stream --with-features`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from shared_features.aggregates import Aggregate
from shared_features.app import App
from shared_features.blocks import concat_blocks
from shared_features.columns import ARROW_TYPES, Column, Evaluator, from_arrow
from shared_features.expressions import Expression


class DueReactions:
    """Computes which reactions of an app fire.

    Attributes:
        features: names of the features that messages must carry for it; empty for most apps.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        wanted = {node.key for node in _aggregates(app)}
        self._needed: dict[str, Expression] = {
            name: value for name, value in app.features.items() if value.key in wanted
        }
        self.features = list(self._needed)

    def of(self, rows: Sequence[pa.RecordBatch], records: Sequence[Mapping[str, Any]]) -> list[frozenset[str] | None]:
        """The names of the reactions due, for each event with its prediction.

        Args:
            rows: each event as a block of one.
            records: each prediction, as ``prediction.avsc`` has it, without unions.

        Returns:
            For each the names; None where they cannot be known, because the features did not come along.
        """
        if not self._app.reactions:
            return [frozenset()] * len(rows)
        known = [
            index
            for index, record in enumerate(records)
            if record["model"] and all(name in record["features"] for name in self._needed)
        ]
        found: list[frozenset[str] | None] = [
            None if record["model"] else frozenset() for record in records  # no model, no reaction
        ]  # fmt: skip
        if known:
            fired = self._fired(concat_blocks([rows[index] for index in known]), [records[index] for index in known])
            for position, index in enumerate(known):
                found[index] = frozenset(name for name, flags in fired.items() if flags[position])
        return found

    def _fired(self, block: pa.RecordBatch, records: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
        columns: dict[str, Column] = {}
        for name, value in self._needed.items():
            values = pa.array([record["features"][name] for record in records], ARROW_TYPES[value.dtype])
            columns[value.key] = from_arrow(values, value.dtype)
        evaluator = Evaluator(block, columns)
        for model in self._app.models:
            for output in model.outputs:
                values = [
                    record["outputs"].get(output) if record["model"] == model.name else None for record in records
                ]
                array = pa.array(values, pa.float64())
                evaluator.learn_column(f"prediction.{model.name}.{output}", from_arrow(array, "float64"))
        fired = {}
        for reaction in self._app.reactions:
            column = evaluator.column(reaction.when)
            fired[reaction.name] = (column.values & column.valid).tolist()
        return fired


def _aggregates(app: App) -> list[Aggregate]:
    """The aggregates that some reaction's condition looks at: each of them is a feature."""
    return [node for reaction in app.reactions for node in reaction.when.walk() if isinstance(node, Aggregate)]
