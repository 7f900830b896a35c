"""What becomes of a folded block: predictions, outcomes and reactions as columns, the same live and in replay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.app import App, Model, Rule
from shared_features.blocks import append_columns
from shared_features.columns import Column, Evaluator, from_arrow
from shared_features.expressions import Expression

PREDICTED, RECORDED, FOLDED, FAILED = "predicted", "recorded", "folded", "prediction_failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer for the rows of a block that are predicted on.

    Attributes:
        outputs: output name to float64 [rows asked]; meaningless where refused.
        refused: index among the rows asked to the reason.
        version: the model's version; 0 for a rule.
    """

    outputs: Mapping[str, np.ndarray]
    refused: Mapping[int, str]
    version: int


def asked_rows(app: App, block: pa.RecordBatch) -> np.ndarray:
    """Indices of the rows that get a prediction; int64."""
    return np.flatnonzero(pc.equal(block.column("event_type"), app.predict_on.name).to_numpy(zero_copy_only=False))


def feature_block(app: App, block: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """The features of ``rows`` as columns named by feature: what a model server is sent."""
    columns = [block.column(f"feature.{name}") for name in app.features]
    taken = pa.RecordBatch.from_arrays(columns, names=list(app.features))
    return taken if len(rows) == block.num_rows else taken.take(pa.array(rows))


def apply_rule(app: App, rule: Rule, block: pa.RecordBatch) -> Answer:
    """A rule's probability for the asked rows; a null is refused, as a non-finite prediction would be."""
    rows = asked_rows(app, block)
    column = feature_evaluator(app, block, [rule.probability]).column(rule.probability)
    values = column.values.astype(np.float64)[rows]
    refused = {int(i): f"rule {rule.name!r} gives null here" for i in np.flatnonzero(~column.valid[rows])}
    return Answer({"probability": values}, refused, 0)


def feature_evaluator(app: App, block: pa.RecordBatch, uses: Iterable[Expression]) -> Evaluator:
    """An evaluator that knows the features in ``uses`` by their definitions, for rules and reactions."""
    used = {part.key for value in uses for part in value.walk()}
    known: dict[str, Column] = {
        value.key: from_arrow(block.column(f"feature.{name}"), value.dtype)
        for name, value in app.features.items()
        if value.key in used
    }
    return Evaluator(block, known)


def with_results(app: App, block: pa.RecordBatch, model: Model | None, answer: Answer | None) -> pa.RecordBatch:
    """Append how each row ended.

    Columns: ``outcome`` (``predicted``, ``recorded``, ``folded``, ``prediction_failed``), ``failure`` (why),
    ``model`` and ``model_version``, ``prediction.<model>.<output>`` (float64) and ``reaction.<name>`` (bool).

    Args:
        block: rows after `shared_features.kernel.finish`.
        model, answer: the model and its answer, or None in collect mode.
    """
    rows = asked_rows(app, block)
    outcome = np.full(block.num_rows, FOLDED, object)
    failure = np.full(block.num_rows, None, object)
    outcome[rows] = RECORDED if answer is None else PREDICTED
    columns: dict[str, pa.Array] = {}
    if model is not None and answer is not None:
        for index, reason in answer.refused.items():
            outcome[rows[index]], failure[rows[index]] = FAILED, reason
        predicted = outcome == PREDICTED
        for name in model.outputs:
            values = np.zeros(block.num_rows, np.float64)
            values[rows] = answer.outputs[name]
            columns[f"prediction.{model.name}.{name}"] = pa.array(values, mask=~predicted)
        version = np.full(block.num_rows, answer.version, np.int64)
        columns["model"] = pa.array(np.full(block.num_rows, model.name, object), pa.string(), mask=~predicted)
        columns["model_version"] = pa.array(version, mask=~predicted)
    else:
        columns["model"] = pa.nulls(block.num_rows, pa.string())
        columns["model_version"] = pa.nulls(block.num_rows, pa.int64())
    columns = {
        "outcome": pa.array(outcome, pa.string()),
        "failure": pa.array(failure, pa.string()),
        **columns,
    }
    if model is not None:
        columns |= reactions(app, block, columns)
    return append_columns(block, columns)


def reactions(app: App, block: pa.RecordBatch, results: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """``reaction.<name>``: whether the reaction fires; bool, never null, False where anything it needs is null.

    Args:
        block: rows with features.
        results: their ``outcome`` and ``prediction.<model>.<output>`` columns.
    """
    evaluator = feature_evaluator(app, block, [reaction.when for reaction in app.reactions])
    for name, column in results.items():
        if name.startswith("prediction."):
            evaluator.learn_column(name, from_arrow(column, "float64"))
    predicted = pc.equal(results["outcome"], PREDICTED).to_numpy(zero_copy_only=False)
    found = {}
    for reaction in app.reactions:
        column = evaluator.column(reaction.when)
        found[f"reaction.{reaction.name}"] = pa.array(column.values & column.valid & predicted, pa.bool_())
    return found


def count_outcomes(block: pa.RecordBatch) -> dict[str, int]:
    """Rows by outcome."""
    counted: Any = pc.value_counts(block.column("outcome"))
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
