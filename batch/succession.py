"""A snapshot for the next version of an app, from the archive of the job that runs: what need not be is not done again.

    saved state of the job  ─> stages that the new version has, too ─┐
    commits after it        ─> folded onto them                      ├─> snapshot
    all commits of it       ─> stages that are new or changed ───────┘

It holds what the job had archived when it was made, which is all that was published before the cut and some events
after it: these come again to the new job, which knows their identities. Reactions go on where those of the running job
are, if they are defined alike; others begin with nothing remembered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch import runner
from batch.admission import admit
from batch.backfill import locked
from batch.snapshot import HORIZON_S, SnapshotSummary, contents
from batch.snapshot_merge import covers, succeeded
from batch.tables import event_schema
from shared_features.app import App
from shared_features.columns import Evaluator
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.kernel import fold
from shared_features.plan import Plan, Stage, make_plan
from shared_features.reactions import reaction_stages
from shared_features.schema import TIMESTAMP
from shared_features.state import StageState
from streaming import archive as archives
from streaming.archive import Commit
from streaming.deduplication import Deduplicator
from streaming.recovery import fold_archived, react_again
from streaming.saved_state import load_state
from streaming.snapshots import NAME, Begin, at_begin, write_snapshot


def snapshot_after(
    app: App,
    previous: App,
    archive: Path,
    out: Path,
    *,
    cut: datetime,
    complete_to: datetime | None = None,
    horizon_s: int = HORIZON_S,
    progress: runner.Progress = lambda *_: None,
) -> SnapshotSummary:
    """Write the state that a job of ``app`` begins with, beside one of ``previous`` that goes on meanwhile.

    Args:
        app: the version to come.
        previous: the one that runs; it wrote the archive.
        archive: its folder.
        out, cut, horizon_s: as for `batch.snapshot.snapshot`.
        complete_to: up to which publish time the archive is known to hold everything; None takes the newest in it.
        progress: called with the share done and the step at work.

    Raises:
        ConfigurationError: these are different apps; or ``out`` cannot be written.
        FingerprintError: the archive is not of ``previous``.
        HistoryError: the archive is damaged, or not known to be complete to the cut; or it begins with a snapshot, and
            a stage has changed.
    """
    began = time.monotonic()
    old, new = make_plan(previous), make_plan(app)
    _check(app, previous, archive)
    with locked(out.parent):
        progress(0.0, "read saved state")
        deduplicator = Deduplicator(horizon_s * 1_000_000)
        saved = load_state(archive, old, deduplicator)
        begin = at_begin(archive, old, deduplicator) if saved is None else Begin(saved.states, saved.stages)
        known = -1 if saved is None else saved.commit
        kept = {stage.name: _state_of(stage, old, begin.states) for stage in new.stages if _is_kept(stage, old, new)}
        fresh = [StageState(stage) for stage in new.stages if stage.name not in kept]
        if fresh and (archive / NAME).exists():
            raise HistoryError(
                f"archive {archive} begins with a snapshot, so that it lacks what came before it, which stage "
                f"{fresh[0].stage.name!r} needs, new or changed as it is: make the snapshot from history, with --source"
            )
        events, newest_us = 0, -(2**62)
        for commit in _commits(archive, -1 if fresh else known):
            block = commit.block
            newest_us = max(newest_us, _newest(block))
            if commit.sequence > known:
                fold_archived(old, begin.states, block)
                react_again(previous, begin.stages, block)
                deduplicator.accept(block)
            if fresh:
                evaluator = Evaluator(admit(new, _as_of(new, block))[0])
                for state in fresh:
                    fold(state, evaluator)
            if fresh or commit.sequence > known:
                events += block.num_rows
            progress(0.5, f"commit {commit.sequence:,}")
        _check_complete(archive, cut, complete_to, newest_us)
        epoch = 1 + max([*(state.epoch for state in begin.states), *(stage.epoch for stage in begin.stages)])
        found = {state.stage.name: state for state in fresh} | kept
        states = [succeeded(stage, found[stage.name], epoch) for stage in new.stages]
        stages = reaction_stages(app, epoch)
        for stage in stages:
            for before in begin.stages:
                stage.take_over(before.save())
        cut_us = int(pa.scalar(cut, TIMESTAMP).value)
        write_snapshot(out, new, states, deduplicator, cut_us, str(archive), stages=stages, epoch=epoch)
    progress(1.0, "written")
    return SnapshotSummary(
        **contents(out, states, stages, deduplicator),
        reused=False,
        app=app.name,
        fingerprint=app.fingerprint,
        history=str(archive),
        cut=cut.astimezone(UTC).isoformat(),
        events=events,
        events_left_out={},
        horizon_s=horizon_s,
        seconds=round(time.monotonic() - began, 3),
        stages_kept=sorted(kept),
    )


def _check(app: App, previous: App, archive: Path) -> None:
    if app.name != previous.name:
        raise ConfigurationError(
            f"app {app.name!r} is no next version of app {previous.name!r}: wanted one of the same name"
        )
    written = archives.identity(archive)
    if written["fingerprint"] != previous.fingerprint:
        raise FingerprintError(
            f"archive {archive} was written by fingerprint {written['fingerprint']}, app {previous.spec!r} has "
            f"{previous.fingerprint}: give the version that wrote it with --previous"
        )


def _is_kept(stage: Stage, old: Plan, new: Plan) -> bool:
    """Whether the running job's state of the stage is the new version's."""
    before = next((one for one in old.stages if one.name == stage.name), None)
    if before is None or not covers(before, stage):
        return False
    ours, theirs = new.app.definitions, old.app.definitions
    parts = ("schemas", "times")
    same_events = all(ours[part][kind] == theirs[part].get(kind) for part in parts for kind in stage.key.fields)
    # Versions of the kernel, of time zones and the like stand where they are used only.
    others = (set(ours) & set(theirs)) - {"features", "predict_on", *parts}
    return same_events and all(ours[part] == theirs[part] or None in (ours[part], theirs[part]) for part in others)


def _state_of(stage: Stage, plan: Plan, states: Sequence[StageState]) -> StageState:
    return next(state for one, state in zip(plan.stages, states, strict=True) if one.name == stage.name)


def _commits(archive: Path, after: int) -> Iterator[Commit]:
    """The commits with rows; of the segments that are done with ``after`` none but the newest."""
    return (commit for commit in archives.read_commits(archive, after) if commit.block.num_rows)


def _newest(block: pa.RecordBatch) -> int:
    newest: Any = pc.max(block.column("publish_time").cast(pa.int64())).as_py()
    return -(2**62) if newest is None else int(newest)


def _as_of(plan: Plan, block: pa.RecordBatch) -> pa.RecordBatch:
    """Archived rows with the columns of a history of the plan's app; an event type that is new has no rows."""
    schema = event_schema(plan.app)
    columns = [
        block.column(field.name) if field.name in block.schema.names else pa.nulls(block.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, names=schema.names)


def _check_complete(archive: Path, cut: datetime, complete_to: datetime | None, newest_us: int) -> None:
    known = complete_to or (
        datetime.fromtimestamp(newest_us / 1e6, UTC) if newest_us > -(2**62) else datetime.fromtimestamp(0, UTC)
    )
    if known < cut:
        raise HistoryError(
            f"archive {archive} is known to be complete to {known.isoformat()} only, the cut is {cut.isoformat()}: "
            "wait until the job has archived what was published before, cut earlier, or say with --complete-to that "
            "nothing is missing"
        )
