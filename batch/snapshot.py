"""A snapshot: state and identities as of a cut in publish time, for a live job to begin with (contract C9)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch import runner
from batch.backfill import locked
from batch.backfill_rows import Asking
from batch.parquet_files import opened, parquet_files
from batch.partitions_ended import Ended
from batch.partitions_run import folded, settled, starting
from batch.partitions_state import checkpoints, load_checkpoint
from batch.partitions_steps import ADMITTED
from batch.reaction_steps import Predicted, columns_for, fold_reactions, folds_in_place, memories_of
from batch.snapshot_merge import merged
from batch.tables import History, open_history
from shared_features.app import App
from shared_features.errors import HistoryError
from shared_features.fingerprint import canonical
from shared_features.plan import Plan, make_plan
from shared_features.reactions import ReactionStage, remembers
from shared_features.schema import TIMESTAMP
from shared_features.state import StageState
from streaming.deduplication import Deduplicator
from streaming.snapshots import read_snapshot, write_snapshot

HORIZON_S = 7 * 86_400
"""For how long identities are kept, seconds of event time: what the streaming job wants by default."""


@dataclasses.dataclass(frozen=True)
class SnapshotSummary:
    """What a snapshot holds.

    Attributes:
        file: where it is. reused: whether it was there already, made of the same.
        app, fingerprint, history: of what.
        cut: all that was published before is in it; ISO 8601, UTC.
        events, events_left_out: read; not folded, by reason.
        keys, retained: keys and events held, by stage.
        remembered: for how many values of its key a reaction remembers something, by reaction.
        identities: known of the last ``horizon_s`` seconds of event time.
        bytes, seconds: its size, and how long it took, wall clock.
        stages_kept: whose state is that of the version before.
    """

    file: str
    reused: bool
    app: str
    fingerprint: str
    history: str
    cut: str
    events: int
    events_left_out: dict[str, int]
    keys: dict[str, int]
    retained: dict[str, int]
    remembered: dict[str, int]
    identities: int
    horizon_s: int
    bytes: int
    seconds: float
    stages_kept: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return dataclasses.asdict(self)


def contents(
    file: Path, states: Sequence[StageState], stages: Sequence[ReactionStage], deduplicator: Deduplicator
) -> dict[str, Any]:
    """What a summary says of what is in a snapshot's file."""
    return {
        "file": str(file),
        "keys": {state.stage.name: state.keys for state in states},
        "retained": {state.stage.name: state.retained for state in states},
        "remembered": {name: number for stage in stages for name, number in stage.remembered.items()},
        "identities": len(deduplicator),
        "bytes": file.stat().st_size,
    }


class Nothing:
    """What is done with rows behind the last stage: nothing, the state is wanted."""

    def __init__(self, plan: Plan) -> None:
        """As `batch.partitions_ended.Ended` is made."""

    def memory(self, shard: int) -> None:
        """Nothing is remembered."""

    def open(self, name: str, memory: None = None) -> NoRows:  # noqa: ARG002
        """Begin a bucket."""
        return NoRows()

    def close(self) -> None:
        """Nothing is held."""


class NoRows:
    """A bucket of which nothing is written."""

    def write(self, block: pa.RecordBatch) -> tuple[()]:  # noqa: ARG002
        """Let the rows go."""
        return ()

    def close(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {}


def snapshot(
    app: App,
    history: str | Path,
    out: Path,
    *,
    cut: datetime,
    complete_to: datetime | None = None,
    horizon_s: int = HORIZON_S,
    asking: Asking | None = None,
    shards: int | None = None,
    runner_options: Sequence[str] = (),
    progress: runner.Progress | None = None,
) -> SnapshotSummary:
    """Fold all that was published before ``cut`` and write the state of every stage, and the identities, to ``out``.

    Args:
        app: whose state.
        history: as for `batch.backfill.backfill`; with publish times, or an archive's rows.
        out: the file. Beside it, while it is made, is a folder from which a run that was cut off goes on.
        cut: aware datetime, in publish time.
        complete_to: up to which publish time the history is known to hold everything; None takes the newest publish
            time in it, where it says so without being read.
        horizon_s: for how long identities are kept, seconds of event time.
        asking: where the models are that predict, where reactions remember; None: these begin with nothing remembered.
        shards: into how many shards keys go while they are folded; the snapshot has one.
        runner_options: Beam's; see `runner.run`.
        progress: called with the share done and the step at work.

    Raises:
        HistoryError: the history is not known to be complete to the cut, or cannot be read.
        ConfigurationError: ``out`` cannot be written.
    """
    started = time.monotonic()
    watch = progress or _silent
    plan = make_plan(app)
    source = open_history(history, plan, until=cut)
    _check_complete(source, cut, complete_to)
    cut_us = int(pa.scalar(cut, TIMESTAMP).value)
    origin: dict[str, Any] = {
        "fingerprint": app.fingerprint,
        "history": source.uri,
        "version": source.version,
        "cut_us": cut_us,
        "horizon_s": horizon_s,
    }
    if asking is not None and remembers(app):
        origin |= {"models": asking.versions, "reactions": [reaction.definition for reaction in app.reactions]}
    else:
        asking = None
    run = hashlib.blake2b(canonical(origin).encode(), digest_size=8).hexdigest()
    scratch, told = out.with_name(f"_work-{run}"), out.with_name(f"{out.name}.json")
    with locked(out.parent):
        held = _told(told, out)
        if held is not None and source.version is not None and held["run"] == run:
            watch(1.0, "done before")
            return SnapshotSummary(**{**held["summary"], "reused": True, "seconds": 0.0})
        columns: list[str] = []
        source, shards = settled(scratch, source, shards)
        ended: Callable[[Plan], Ended] = Nothing
        in_place = False
        if asking is not None:
            in_place = folds_in_place(plan, source)
            ended = Predicted(str(scratch), shards, asking, in_place, Nothing)
            columns = columns_for(app, source)
        counts = folded(plan, source, scratch, ended, columns, shards, runner_options, watch, keep_state=True)
        if asking is not None:
            fold_reactions(app, scratch, shards, Nothing, runner_options, watch, in_place=in_place, keep_memory=True)
        watch(0.97, "put states together")
        epoch, deduplicator = _identities(scratch, horizon_s)
        states = [_state(plan, scratch, index, epoch) for index in range(len(plan.stages))]
        stages = memories_of(app, scratch, epoch, in_place=in_place)
        write_snapshot(out, plan, states, deduplicator, cut_us, source.uri, stages=stages, epoch=epoch)
        summary = SnapshotSummary(
            **contents(out, states, stages, deduplicator),
            reused=False,
            app=app.name,
            fingerprint=app.fingerprint,
            history=source.uri,
            cut=cut.astimezone(UTC).isoformat(),
            events=counts.get("events.read", 0),
            events_left_out=starting("left_out.", counts),
            horizon_s=horizon_s,
            seconds=round(time.monotonic() - started, 3),
        )
        told.write_text(json.dumps({"run": run, "summary": summary.as_dict()}, indent=1) + "\n", "utf-8")
        shutil.rmtree(scratch)
    watch(1.0, "written")
    return summary


def _told(told: Path, out: Path) -> dict[str, Any] | None:
    """What was written of a snapshot that is there."""
    try:
        held: dict[str, Any] = json.loads(told.read_bytes())
        return held if read_snapshot(out).fingerprint == held["summary"]["fingerprint"] else None
    except (OSError, ValueError, KeyError, HistoryError):
        return None


def _check_complete(source: History, cut: datetime, complete_to: datetime | None) -> None:
    known = complete_to or newest_publish_time(source)
    if known is None:
        raise HistoryError(
            f"history {source.uri} does not say up to which publish time it is complete: wanted that to be "
            f"{cut.isoformat()} or later; say so with --complete-to"
        )
    if known < cut:
        raise HistoryError(
            f"history {source.uri} is known to be complete to {known.isoformat()} only, the cut is "
            f"{cut.isoformat()}: wait until it holds all that was published before, cut earlier, or say with "
            "--complete-to that nothing is missing"
        )


def newest_publish_time(source: History) -> datetime | None:
    """The greatest publish time in a history of Parquet files, by their statistics; None if it is not known."""
    if source.version is None or "files" not in source.version:
        return None
    found = []
    for path in parquet_files(source.uri)[1]:
        with opened(path) as file:
            metadata = file.metadata
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
            column = next((one for one in columns if one.path_in_schema == "publish_time"), None)
            statistics = None if column is None else column.statistics
            if statistics is None or not statistics.has_min_max:
                return None
            found.append(statistics.max)
    return max(found).astimezone(UTC) if found else None


def _identities(scratch: Path, horizon_s: int) -> tuple[int, Deduplicator]:
    """The epoch that follows, and the identities of the horizon."""
    files = sorted((scratch / ADMITTED).glob("*.arrow"))
    newest_us, epoch = -(2**62), 0
    for batch in _batches(files):
        newest_us = max(newest_us, int(pc.max(batch.column("event_time").cast(pa.int64())).as_py()))
        for name in (name for name in batch.schema.names if name.endswith(".epoch")):
            epoch = max(epoch, pc.max(batch.column(name)).as_py() or 0)
    deduplicator = Deduplicator(horizon_s * 1_000_000)
    for batch in _batches(files):
        times = batch.column("event_time").cast(pa.int64()).to_numpy()
        deduplicator.accept(batch.filter(pa.array(times >= newest_us - horizon_s * 1_000_000)))
    return epoch + 1, deduplicator


def _batches(files: Sequence[Path]) -> Any:
    for path in files:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            yield from (batch for batch in reader if batch.num_rows)


def _state(plan: Plan, scratch: Path, index: int, epoch: int) -> StageState:
    stage, found = plan.stages[index], []
    for path in checkpoints(scratch, index):
        saved = load_checkpoint(path, stage)
        assert saved is not None
        found.append(saved.state)
    return merged(stage, found or [StageState(stage)], epoch)


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""
