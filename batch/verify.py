"""Verify: recompute what was served through the batch path and compare it bit for bit.

Five questions, each answered by count and by the first offence in full:

1. *Features*: does the batch path, given the archived events and their positions, give the very bits served?
2. *Predictions*: does the model, given those features again, answer within 1e-6? (TensorFlow's last bits vary
   with the size of a batch.) A rule must answer the same bits.
3. *Reactions*: do the conditions, given the archived predictions, fire for the same events?
4. *Routes*, where versions are promoted: did the version answer that the promotion says for the event's key?
5. *Training rows*, where a history is given: is each served row the one that ``traindata`` makes for the same
   event? A difference is allowed only if the folds really saw different events, and is named by its cause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.replay import Replay, read_served, served_chunks
from batch.skew import Causes, TrainingRows
from batch.verify_routes import Routes, compare_routes
from serving.promotion import Promotion
from shared_features.app import App, Model, Rule
from shared_features.compute import stage_order
from shared_features.errors import FingerprintError
from shared_features.lists import places
from shared_features.plan import Plan, make_plan
from shared_features.reactions import ReactionStage
from streaming import archive as archives
from streaming import results
from streaming.routes import EachVersion
from streaming.snapshots import Begin

PREDICTION_TOLERANCE = 1e-6

Predict = Callable[[pa.RecordBatch], Future[results.Answer]]
Promotions = Callable[[], Mapping[str, Sequence[Promotion]]]
"""By the name of each promoted model, all states of its versions; asked again as they change."""


@dataclass(slots=True)
class VerifyReport:
    """What was compared and what differed.

    Attributes:
        events: archived rows. predictions: rows served with a prediction. features: feature values compared.
        feature_mismatches, prediction_mismatches, reaction_mismatches: values that differ.
        routes: predictions whose version is what their promotion says. routes_aside: those of which it says nothing,
            see `batch.verify_routes`. route_mismatches: of another version.
        predictions_unchecked: predictions of a model version that is not served any more.
        training_compared: served rows found in the training rows. training_mismatches: those that differ without
            a late arrival as the cause. training_causes: differing rows by cause.
        first_mismatch: the first difference in full, or None.
    """

    events: int = 0
    predictions: int = 0
    features: int = 0
    feature_mismatches: int = 0
    prediction_mismatches: int = 0
    predictions_unchecked: int = 0
    reaction_mismatches: int = 0
    routes: int = 0
    routes_aside: int = 0
    route_mismatches: int = 0
    training_compared: int = 0
    training_mismatches: int = 0
    training_causes: dict[str, int] = field(default_factory=dict)
    first_mismatch: str | None = None

    @property
    def mismatches(self) -> int:
        """Differences that must not be: features, predictions and reactions."""
        return self.feature_mismatches + self.prediction_mismatches + self.reaction_mismatches + self.route_mismatches

    @property
    def ok(self) -> bool:
        return self.mismatches == 0 and self.training_mismatches == 0

    def as_dict(self) -> dict[str, Any]:
        """All counts, for ``--json``."""
        return {**asdict(self), "mismatches": self.mismatches}

    def take_routes(self, routes: Routes) -> None:
        """Add counts."""
        self.routes += routes.checked
        self.routes_aside += routes.aside
        self.route_mismatches += routes.mismatches
        if routes.first_mismatch is not None:
            self.note(routes.first_mismatch)

    def note(self, text: str) -> None:
        if self.first_mismatch is None:
            self.first_mismatch = text


def verify(
    app: App,
    archive: Path,
    *,
    predict: Mapping[str, Predict | EachVersion] | None = None,
    promotions: Promotions | None = None,
    training: TrainingRows | None = None,
) -> VerifyReport:
    """Compare an archive with the batch path.

    Args:
        app: the app that served; its fingerprint must be the archive's.
        archive: folder that the streaming job wrote.
        predict: by the name of each served model: asks it again; predictions of others are left unchecked.
        promotions: what the versions' promotions say; without it routes are left aside.
        training: rows that ``traindata`` makes of the full history, or None to leave them out.

    Raises:
        FingerprintError: the archive was written with other features.
        HistoryError: there is no archive, or it is damaged.
    """
    verifier = Verifier(app, archive, predict=predict, promotions=promotions)
    for served in served_chunks(archive):
        verifier.take(served)
    verifier.replay.check_identities()
    whole = None if training is None else read_served(archive)
    if training is not None and whole is not None:
        _compare_training(make_plan(app), whole, training, verifier.report)
    return verifier.report


class Verifier:
    """Compares what it is given with the batch path, chunk by chunk; its memory is the stages' state.

    Args:
        app, archive, predict, promotions: as for `verify`.
        remember, begin: see `Replay`.

    Attributes:
        report: so far.
        replay: the batch path.

    Raises:
        FingerprintError: the archive was written with other features.
        HistoryError: there is no archive.
    """

    def __init__(
        self,
        app: App,
        archive: Path,
        *,
        predict: Mapping[str, Predict | EachVersion] | None = None,
        promotions: Promotions | None = None,
        remember: bool = True,
        begin: Begin | None = None,
    ) -> None:
        written = archives.identity(archive)
        if written["fingerprint"] != app.fingerprint:
            raise FingerprintError(
                f"archive {archive} was written by fingerprint {written['fingerprint']}, the app has "
                f"{app.fingerprint}: verify it with the version of the app that wrote it"
            )
        self._app, self._predict = app, predict or {}
        self.replay = Replay(make_plan(app), archive, remember=remember, begin=begin)
        self._promotions = promotions
        self.report = VerifyReport()

    def take(self, served: pa.RecordBatch) -> None:
        """The next rows of the archive, see `batch.replay.numbered`."""
        replayed = self.replay.take(served)
        self.report.events += served.num_rows
        _compare_features(self._app, served, replayed, self.report)
        _compare_predictions(self._app, served, replayed, self._predict, self.report)
        _compare_reactions(self._app, self.replay.stages, served, replayed, self.report)
        self.report.take_routes(compare_routes(self._app, served, self._promotions() if self._promotions else {}))


def same_bits(a: pa.Array, b: pa.Array) -> np.ndarray:
    """Where two arrays of one type are equal to the bit, null equal to null only; bool, shape [rows]."""
    if pa.types.is_fixed_size_list(a.type):
        same = np.asarray(pc.equal(pc.is_null(a), pc.is_null(b)))
        for one, other in zip(places(a), places(b), strict=True):
            same = same & same_bits(one, other)
        return same
    if pa.types.is_floating(a.type):
        a, b = (pa.Array.from_buffers(pa.int64(), len(x), x.buffers(), offset=x.offset) for x in (a, b))
    equal = pc.fill_null(pc.equal(a, b), False)
    both_null = pc.and_(pc.is_null(a), pc.is_null(b))
    return np.asarray(pc.or_(equal, both_null).to_numpy(zero_copy_only=False))


def _describe(block: pa.RecordBatch, row: int) -> str:
    return f"event {block.column('event_id')[row]} at {block.column('event_time')[row]}"


def _compare_features(app: App, served: pa.RecordBatch, replayed: pa.RecordBatch, report: VerifyReport) -> None:
    asked = results.asked_rows(app, served)
    for name in (name for name in replayed.schema.names if name.startswith("stage.")):
        differs = np.flatnonzero(~same_bits(served.column(name), replayed.column(name)))
        report.feature_mismatches += len(differs)
        if len(differs):
            report.note(f"{name} of {_describe(served, int(differs[0]))} is not what the archive's rows give")
    for name in app.features:
        ours, theirs = served.column(f"feature.{name}"), replayed.column(f"feature.{name}")
        differs = np.flatnonzero(~same_bits(ours, theirs))
        report.features += len(asked)
        report.feature_mismatches += len(differs)
        if len(differs):
            row = int(differs[0])
            report.note(
                f"feature {name!r} of {_describe(served, row)}: served {ours[row]}, batch gives {theirs[row]}; "
                f"defined as {app.features[name].key}"
            )


def _compare_predictions(
    app: App,
    served: pa.RecordBatch,
    replayed: pa.RecordBatch,
    predict: Mapping[str, Predict | EachVersion],
    report: VerifyReport,
) -> None:
    rows = np.flatnonzero(pc.equal(served.column("outcome"), results.PREDICTED).to_numpy(zero_copy_only=False))
    report.predictions += len(rows)
    if not len(rows):
        return
    for model in results.models_of(app, served):
        versions = served.column(f"version.{model.name}").take(pa.array(rows))
        mine = np.asarray(versions.is_valid())
        if not mine.any():
            continue
        by_version = versions.drop_null().to_numpy()
        answer = _ask_again(app, model, replayed, rows[mine], by_version, predict.get(model.name))
        if answer is None or not answer.outputs:
            report.predictions_unchecked += int(mine.sum())
            continue
        current = by_version == answer.version
        report.predictions_unchecked += int((~current).sum())
        for name in model.outputs:
            column = served.column(f"prediction.{model.name}.{name}")
            wanted = column.take(pa.array(rows[mine])).to_numpy(zero_copy_only=False)
            off = np.abs(wanted - answer.outputs[name]) > (0.0 if isinstance(model, Rule) else PREDICTION_TOLERANCE)
            off[list(answer.refused)] = True
            differs = np.flatnonzero(off & current)
            report.prediction_mismatches += len(differs)
            if len(differs):
                i = int(differs[0])
                report.note(
                    f"prediction {name!r} of {_describe(served, int(rows[mine][i]))}: served {wanted[i]!r}, "
                    f"model {model.name!r} version {by_version[i]} now answers {answer.outputs[name][i]!r}"
                )


def _ask_again(
    app: App,
    model: Model,
    replayed: pa.RecordBatch,
    rows: np.ndarray,
    versions: np.ndarray,
    predict: Predict | EachVersion | None,
) -> results.Answer | None:
    """The model's answer for ``rows``, in requests of at most 1,024 rows; by their ``versions`` where it can be."""
    if isinstance(model, Rule):
        whole = results.apply_rule(app, model, replayed)
        position = {int(row): i for i, row in enumerate(results.asked_rows(app, replayed))}
        taken = [position[int(row)] for row in rows]
        outputs = {name: values[taken] for name, values in whole.outputs.items()}
        return results.Answer(outputs, {}, whole.version)
    if predict is None:
        return None
    if isinstance(predict, EachVersion):
        return predict.ask(results.feature_block(app, replayed, rows), versions)
    starts = range(0, len(rows), 1024)
    waiting = [predict(results.feature_block(app, replayed, rows[start : start + 1024])) for start in starts]
    answers = [future.result() for future in waiting]
    refused = {start + i: why for start, a in zip(starts, answers, strict=True) for i, why in a.refused.items()}
    outputs = {name: np.concatenate([a.outputs[name] for a in answers]) for name in model.outputs}
    return results.Answer(outputs, refused, answers[0].version)


def _compare_reactions(
    app: App,
    stages: Sequence[ReactionStage],
    served: pa.RecordBatch,
    replayed: pa.RecordBatch,
    report: VerifyReport,
) -> None:
    """Each stage of reactions again, in the order of its positions, with the predictions that were served.

    A reaction that the app has got since is compared from its first row on: before, its column is null.
    """
    ended = pa.RecordBatch.from_pydict(results.ended_columns(served))
    for stage in stages if results.models_of(app, served) else ():
        rows = np.arange(served.num_rows)
        if stage.key is not None:
            position = f"stage.{stage.name}.position"
            if position not in served.schema.names:
                continue
            rows = stage_order(served, stage.name)[: served.num_rows - served.column(position).null_count]
        part, parts_ended = replayed.take(pa.array(rows)), ended.take(pa.array(rows))
        for name, ours in results.reactions(app, [stage], part, results.ended_columns(parts_ended)).items():
            if name not in served.schema.names:
                continue
            theirs = served.column(name).take(pa.array(rows))
            differs = np.flatnonzero(~same_bits(theirs, ours) & np.asarray(theirs.is_valid()))
            report.reaction_mismatches += len(differs)
            if len(differs):
                row = int(differs[0])
                place = _describe(served, int(rows[row]))
                report.note(f"{name} of {place}: served {theirs[row]}, replay gives {ours[row]}")


def _compare_training(plan: Plan, served: pa.RecordBatch, training: TrainingRows, report: VerifyReport) -> None:
    rows, matching = training.match(served)
    report.training_compared = len(rows)
    causes: Causes | None = None
    by_row: dict[int, dict[str, str]] = {}
    for name, value in plan.app.features.items():
        ours = served.column(f"feature.{name}").take(pa.array(rows))
        theirs = training.features.column(f"feature.{name}").take(pa.array(matching))
        for i in np.flatnonzero(~same_bits(ours, theirs)).tolist():
            causes = causes or Causes(plan, served, training)
            cause = causes.of(int(matching[i]), value)
            by_row.setdefault(i, {})[name] = cause
            if cause != "late_arrival":
                report.note(
                    f"training row of {_describe(served, int(rows[i]))} differs in feature {name!r} ({cause}): "
                    f"served {ours[i]}, traindata gives {theirs[i]}"
                )
    for found in by_row.values():
        cause = next((c for c in ("unexplained", "cold_state") if c in found.values()), "late_arrival")
        report.training_causes[cause] = report.training_causes.get(cause, 0) + 1
        report.training_mismatches += cause != "late_arrival"
