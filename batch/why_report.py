"""The answer to "why this prediction?" as plain values, for JSON and for tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from batch.attributions import Predict
from batch.verify import PREDICTION_TOLERANCE
from batch.why import Evidence, StageEvidence
from batch.why_contributions import Compared, contributions
from batch.why_windows import Around, WindowRows, window_rows
from batch.why_words import over, said
from serving.in_process import InputTensor
from shared_features.aggregates import Aggregate
from shared_features.app import App, Model, Rule
from shared_features.columns import Evaluator
from shared_features.expressions import Field
from streaming import results


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model says to the same features now.

    Attributes:
        version: that answered; 0 for a rule.
        outputs: output name to value.
        tensors: what it was given, by input; empty for a rule.
        predict: asks it about other rows; None for a rule.
    """

    version: int
    outputs: dict[str, float]
    tensors: dict[str, InputTensor] = field(default_factory=dict)
    predict: Predict | None = None


Ask = Callable[[Model, int, pa.RecordBatch], Asked | None]
"""From a model, the version that was served and a block of features: the answer, or None if nobody can be asked."""


def explain(
    app: App,
    prediction_id: str,
    evidence: Evidence,
    ask: Ask,
    *,
    events: int | None = None,
    compared: Compared | None = None,
) -> dict[str, Any]:
    """All that is known of a prediction.

    Args:
        app: the app that served.
        prediction_id: as asked for.
        evidence: the row, the events of its windows, and its features computed again.
        ask: see `Ask`; rules are computed here.
        events: at most so many of each window's events, the latest; None for all.
        compared: with which rows, for what features contributed; None leaves that out.

    Returns:
        JSON-able values. ``same`` is whether all of it came out again: features to the bit, predictions of models
        within 1e-6, those of rules to the bit; predictions that nobody could be asked for count as None.
    """
    row = evidence.found.row
    differing = evidence.differing(app)
    windows = [one for stage in evidence.stages for one in _windows(app, stage, evidence, events)]
    predictions = _predictions(app, evidence, ask, compared)
    checked = [one["same"] for one in predictions if one["same"] is not None]
    return {
        "prediction_id": prediction_id,
        "app": app.name,
        "fingerprint": app.fingerprint,
        "model": evidence.found.model,
        "model_version": evidence.found.version,
        "event": {name: _plain(row.column(name)) for name in ("event_type", "event_id", "event_time", "publish_time")},
        "outcome": _plain(row.column("outcome")),
        "commit": evidence.found.commit,
        "snapshot_cut": _instant(evidence.snapshot_cut_us),
        "stages": [_stage(one, row) for one in evidence.stages],
        "features": [_feature(app, name, evidence, name in differing) for name in app.features],
        "windows": windows,
        "predictions": predictions,
        "reactions": [
            reaction.name
            for reaction in app.reactions
            if f"reaction.{reaction.name}" in row.schema.names and row.column(f"reaction.{reaction.name}")[0].as_py()
        ],
        "same": not differing and all(checked),
    }


def _plain(values: pa.Array, row: int = 0) -> Any:
    value = values[row].as_py()
    return value.isoformat() if isinstance(value, datetime) else value


def _instant(us: int | None) -> str | None:
    return None if us is None else pa.scalar(us, pa.timestamp("us", tz="UTC")).as_py().isoformat()


def _stage(one: StageEvidence, row: pa.RecordBatch) -> dict[str, Any]:
    name = f"stage.{one.stage.name}."
    told = {part: _plain(row.column(name + part)) for part in ("epoch", "shard", "position", "late")}
    return {"stage": one.stage.name, "key": one.key, **told}


def _feature(app: App, name: str, evidence: Evidence, differs: bool) -> dict[str, Any]:
    value = app.features[name]
    evaluator = Evaluator(evidence.found.row)
    nodes = {node.key: node for node in _outside_aggregates(value)}
    return {
        "feature": name,
        "served": _plain(evidence.found.row.column(f"feature.{name}")),
        "again": _plain(evidence.feature(name)),
        "same": not differs,
        "definition": said(value.definition),
        "fields": {
            f"{node.event_type}.{node.field}": _plain(evaluator.array(node))
            for node in nodes.values()
            if isinstance(node, Field)
        },
        "aggregates": {
            said(node.definition): _value(evidence.aggregates[node.key])
            for node in nodes.values()
            if isinstance(node, Aggregate)
        },
    }


def _value(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _outside_aggregates(value: Any) -> Iterator[Any]:
    """The nodes of an expression, those within aggregates left out: they belong to other events."""
    yield value
    if not isinstance(value, Aggregate):
        for part in value.parts():
            yield from _outside_aggregates(part)


def _windows(app: App, one: StageEvidence, evidence: Evidence, events: int | None) -> Iterator[dict[str, Any]]:
    """Each different window over the same values once, with the features that it made."""
    if one.around is None:
        return
    groups: dict[tuple[Any, ...], list[Aggregate]] = {}
    for output in one.stage.outputs:
        aggregate: Aggregate = output.aggregate
        condition = None if aggregate.where is None else aggregate.where.key
        span = (aggregate.window_us, aggregate.window_events, aggregate.closed, aggregate.include_self)
        groups.setdefault((aggregate.value.key, condition, *span), []).append(aggregate)
    behind = one.around.behind_us()
    for group in groups.values():
        first = group[0]
        found = window_rows(first, one.around)
        keys = {aggregate.key for aggregate in group}
        used_by = [
            name for name, value in app.features.items() if any(node.key in keys for node in _outside_aggregates(value))
        ]
        values = one.around.evaluator.array(first.value)
        yield {
            "stage": one.stage.name,
            "key": one.key,
            "value": said(first.value.definition),
            "where": None if first.where is None else said(first.where.definition),
            "over": over(first.window_us, first.window_events),
            "include_self": first.include_self,
            **_edges(found, one.around),
            "features": used_by,
            "aggregates": {
                said(aggregate.definition): _value(evidence.aggregates[aggregate.key]) for aggregate in group
            },
            "count": len(found.rows),
            "late": int((behind[found.rows] > 0).sum()),
            "events": _events(one, found.rows, values, behind, events),
            "too_late_count": len(found.too_late),
            "too_late": _events(one, found.too_late, values, behind, events),
        }


def _edges(found: WindowRows, around: Around) -> dict[str, Any]:
    times = around.block.column("event_time")
    begin = None if found.from_us is None else pa.scalar(found.from_us, times.type).as_py().isoformat()
    return {"from": begin, "from_included": found.from_included, "to": _plain(times, around.row)}


def _events(
    one: StageEvidence, rows: np.ndarray, values: pa.Array, behind: np.ndarray, most: int | None
) -> list[dict[str, Any]]:
    assert one.around is not None
    block, name = one.around.block, f"stage.{one.stage.name}."
    told = []
    for row in (rows if most is None else rows[max(0, len(rows) - most) :]).tolist():
        envelope = {part: _plain(block.column(part), row) for part in ("event_type", "event_id", "event_time")}
        place = {part: _plain(block.column(name + part), row) for part in ("epoch", "shard", "position")}
        told.append(
            {
                **envelope,
                "value": _plain(values, row),
                **place,
                "behind_s": int(behind[row]) / 1e6,
                "late": _plain(block.column(name + "late"), row),
            }
        )
    return told


def _predictions(app: App, evidence: Evidence, ask: Ask, compared: Compared | None) -> list[dict[str, Any]]:
    row, told = evidence.found.row, []
    if row.column("outcome")[0].as_py() != results.PREDICTED:
        return []
    features = results.feature_block(app, evidence.again, np.zeros(1, np.int64))
    for model in results.models_of(app, row):
        version = int(row.column(f"version.{model.name}")[0].as_py())
        if isinstance(model, Rule):
            answer = results.apply_rule(app, model, evidence.again)
            asked: Asked | None = Asked(0, {name: float(values[0]) for name, values in answer.outputs.items()})
        else:
            asked = ask(model, version, features)
        tolerance = 0.0 if isinstance(model, Rule) else PREDICTION_TOLERANCE
        outputs: list[dict[str, Any]] = []
        checked = asked is not None and asked.version == version
        for name in model.outputs:
            served = float(row.column(f"prediction.{model.name}.{name}")[0].as_py())
            again = None if asked is None else asked.outputs[name]
            apart = None if again is None else abs(again - served)
            outputs.append({"output": name, "served": served, "again": again, "apart": apart})
        told.append(
            {
                "model": model.name,
                "version": version,
                "asked_version": None if asked is None else asked.version,
                "outputs": outputs,
                "same": all(one["apart"] <= tolerance for one in outputs) if checked else None,
                "tensors": {} if asked is None else {name: _tensor(one) for name, one in asked.tensors.items()},
                "contributions": None
                if asked is None or asked.predict is None or compared is None
                else contributions(model, asked.version, asked.predict, features, [*asked.tensors], compared),
            }
        )
    return told


def _tensor(one: InputTensor) -> dict[str, Any]:
    """A tensor as JSON: NaN, which stands for a missing number, has no other name there than null."""
    return {"dtype": one.dtype, "shape": list(one.shape), "values": _without_nan(one.values)}


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
