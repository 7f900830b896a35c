"""What becomes of a folded block: predictions, outcomes and reactions as columns, the same live and in replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.app import App, Model, Rule
from shared_features.blocks import append_columns
from shared_features.columns import FEW_ROWS, Evaluator, from_arrow, is_one_of
from shared_features.reactions import ReactionStage

PREDICTED, RECORDED, FOLDED, FAILED = "predicted", "recorded", "folded", "prediction_failed"
_OUTCOMES = (PREDICTED, RECORDED, FOLDED, FAILED)


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer for the rows of a block that are predicted on.

    Attributes:
        outputs: output name to float64 [rows asked]; meaningless where refused.
        refused: index among the rows asked to the reason.
        version: the model's version, of all rows or int64 [rows asked]; 0 for a rule.
        route: where versions are promoted, by which revision of the promotion each row was routed, int64 [rows asked];
            negative where another version answered than that revision says, as the server was behind or ahead of it,
            or the candidate failed and the champion stood in.
        shadow: what a candidate in the shadow says, with its version; it may refuse rows of its own.
    """

    outputs: Mapping[str, np.ndarray]
    refused: Mapping[int, str]
    version: int | np.ndarray
    route: np.ndarray | None = None
    shadow: Answer | None = None


def asked_rows(app: App, block: pa.RecordBatch) -> np.ndarray:
    """Indices of the rows that get a prediction; int64."""
    return np.flatnonzero(is_one_of(block.column("event_type"), app.predict_on.name))


def key_values(app: App, block: pa.RecordBatch, rows: np.ndarray, by: str) -> pa.Array:
    """Of ``rows`` the values of the key named ``by``; their identities where it is ""."""
    if not by:
        values = block.column("event_id")
    else:
        (key,) = (key for key in app.all_keys if key.name == by)
        values = Evaluator(block).array(key.fields[app.predict_on.name])
    return values.take(pa.array(rows))


def feature_block(app: App, block: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """The features of ``rows`` as columns named by feature: what a model server is sent."""
    columns = [block.column(f"feature.{name}") for name in app.features]
    taken = pa.RecordBatch.from_arrays(columns, names=list(app.features))
    return taken if len(rows) == block.num_rows else taken.take(pa.array(rows))


def apply_rule(app: App, rule: Rule, block: pa.RecordBatch) -> Answer:
    """A rule's probability for the asked rows; a null is refused, as a non-finite prediction would be."""
    rows = asked_rows(app, block)
    column = feature_evaluator(app, block).column(rule.probability)
    values = column.values.astype(np.float64)[rows]
    refused = {int(i): f"rule {rule.name!r} gives null here" for i in np.flatnonzero(~column.valid[rows])}
    return Answer({"probability": values}, refused, 0)


def feature_evaluator(app: App, block: pa.RecordBatch) -> Evaluator:
    """An evaluator that knows the features by their definitions, for rules and reactions."""
    return Evaluator(block, stored=app.stored_features)


def with_results(
    app: App, block: pa.RecordBatch, answers: Mapping[str, Answer] | None, stages: Sequence[ReactionStage]
) -> pa.RecordBatch:
    """Append how each row ended.

    Columns: ``outcome`` (``predicted``, ``recorded``, ``folded``, ``prediction_failed``), ``failure`` (why); of each
    model ``version.<model>`` (int64) and ``prediction.<model>.<output>`` (float64), null unless predicted; and the
    columns of `reactions`. A row is predicted when every model has answered; one that a model refuses has failed.

    Args:
        block: rows after `shared_features.kernel.finish`.
        answers: by the name of each model of the app, or None in collect mode.
        stages: see `reactions`; changed in place.
    """
    rows = asked_rows(app, block)
    outcome = np.full(block.num_rows, _OUTCOMES.index(FOLDED))
    outcome[rows] = _OUTCOMES.index(RECORDED if answers is None else PREDICTED)
    failures: dict[int, str] = {}
    for name, answer in (answers or {}).items():
        for index, reason in answer.refused.items():
            failures.setdefault(int(rows[index]), reason if len(app.models) == 1 else f"{name}: {reason}")
    outcome[list(failures)] = _OUTCOMES.index(FAILED)
    columns = {"outcome": pa.array(_OUTCOMES).take(pa.array(outcome)), "failure": pa.nulls(block.num_rows, pa.string())}
    if failures:
        columns["failure"] = pa.array([failures.get(row) for row in range(block.num_rows)], pa.string())
    if answers is None:
        return append_columns(block, columns)
    failed = outcome != _OUTCOMES.index(PREDICTED)
    for model in app.models:
        answer = answers[model.name]
        version = np.zeros(block.num_rows, np.int64)
        version[rows] = answer.version
        columns[f"version.{model.name}"] = pa.array(version, mask=failed)
        for name in model.outputs:
            values = np.zeros(block.num_rows, np.float64)
            values[rows] = answer.outputs[name]
            columns[f"prediction.{model.name}.{name}"] = pa.array(values, mask=failed)
        columns |= _promotion_columns(model, answer, rows, failed)
    return append_columns(block, columns | reactions(app, stages, block, columns))


def _promotion_columns(model: Model, answer: Answer, rows: np.ndarray, failed: np.ndarray) -> dict[str, pa.Array]:
    """``route.<model>``, and what a candidate in the shadow said: ``shadow.<model>`` (its version) and its outputs."""
    found: dict[str, pa.Array] = {}
    if answer.route is not None:
        route = np.zeros(len(failed), np.int64)
        route[rows] = answer.route
        found[f"route.{model.name}"] = pa.array(route, mask=failed)
    if answer.shadow is not None:
        silent = np.ones(len(failed), bool)
        silent[rows] = False
        silent[rows[list(answer.shadow.refused)]] = True
        version = np.zeros(len(failed), np.int64)
        version[rows] = answer.shadow.version
        found[f"shadow.{model.name}"] = pa.array(version, mask=silent)
        for name in model.outputs:
            values = np.zeros(len(failed), np.float64)
            values[rows] = answer.shadow.outputs[name]
            found[f"shadow.{model.name}.{name}"] = pa.array(values, mask=silent)
    return found


def with_same_columns(blocks: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Blocks that differ, if at all, in the columns of promotions: as a promotion changes between them."""
    if all(block.schema.equals(blocks[0].schema) for block in blocks):
        return list(blocks)
    schema = pa.unify_schemas([block.schema for block in blocks])
    return [
        pa.RecordBatch.from_arrays(
            [
                block.column(one.name) if one.name in block.schema.names else pa.nulls(block.num_rows, one.type)
                for one in schema
            ],
            schema=schema,
        )
        for block in blocks
    ]


def reactions(
    app: App, stages: Sequence[ReactionStage], block: pa.RecordBatch, results: Mapping[str, pa.Array]
) -> dict[str, pa.Array]:
    """The columns of `shared_features.reactions.ReactionStage.fold`, of all ``stages``.

    Args:
        stages: in the state in which the row before the block's first has left them; changed in place.
        block: rows with features.
        results: their ``outcome`` and ``prediction.<model>.<output>`` columns.
    """
    if not app.reactions:
        return {}
    evaluator = feature_evaluator(app, block)
    for name, column in results.items():
        if name.startswith("prediction."):
            evaluator.learn_column(name, from_arrow(column, "float64"))
    predicted = is_one_of(results["outcome"], PREDICTED)
    found: dict[str, pa.Array] = {}
    for stage in stages:
        found |= stage.fold(evaluator, predicted)
    return found


def ended_columns(block: pa.RecordBatch) -> dict[str, pa.Array]:
    """The columns of an archived block that `reactions` needs beside its features."""
    names = [name for name in block.schema.names if name == "outcome" or name.startswith("prediction.")]
    return {name: block.column(name) for name in names}


def models_of(app: App, block: pa.RecordBatch) -> list[Model]:
    """The models that the block was given to, in the app's order; none in collect mode."""
    return [model for model in app.models if f"version.{model.name}" in block.schema.names]


def count_outcomes(block: pa.RecordBatch) -> dict[str, int]:
    """Rows by outcome."""
    if block.num_rows <= FEW_ROWS:
        return dict(Counter(block.column("outcome").to_pylist()))
    counted: Any = pc.value_counts(block.column("outcome"))
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
