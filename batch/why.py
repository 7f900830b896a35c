"""Why a prediction is what it is: the row, the events in every window, and all of it computed once more.

Of each keyed stage the archived events of the row's key are read, as far as its windows reach, and folded again in the
order of their positions, which gives the very bits of the live job (contract C1 to C3): what lies before every window
cannot have been the newest event of the key once an event inside one was folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.archive_rows import Wanted, find_rows, together
from batch.verify import same_bits
from batch.why_windows import Around
from shared_features import hashing
from shared_features.app import App
from shared_features.columns import Evaluator
from shared_features.compute import run_stage, stage_order
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.kernel import finish, key_column
from shared_features.plan import Plan, Stage, make_plan
from shared_features.schema import ENVELOPE
from shared_features.state import StageState
from streaming import archive as archives
from streaming import results, snapshots
from streaming.archive_parquet import COMMIT_COLUMN, ROW_COLUMN

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The archived row of a prediction.

    Attributes:
        row: a block of one row, with all of its columns.
        model: whose prediction it is; "" in collect mode.
    """

    row: pa.RecordBatch
    model: str

    @property
    def commit(self) -> int:
        """The commit that made it durable."""
        return int(self.row.column(COMMIT_COLUMN)[0].as_py())

    @property
    def version(self) -> int:
        """The version of the model that answered; 0 of a rule and in collect mode."""
        return int(self.row.column(f"version.{self.model}")[0].as_py()) if self.model else 0


@dataclass(frozen=True, slots=True)
class StageEvidence:
    """What a keyed stage knew at the row.

    Attributes:
        stage: the stage.
        key: the row's value of the stage's key; None where it has none.
        around: the events of the key, None without a key.
    """

    stage: Stage
    key: Any
    around: Around | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """A row with what made it.

    Attributes:
        found: the row as it was served.
        again: the row with features that were computed now; a block of one row.
        aggregates: the value of each aggregate, by its key.
        stages: in the order of the plan.
        snapshot_cut_us: events published before are not in the archive, but in the snapshot that it begins with.
    """

    found: Found
    again: pa.RecordBatch
    aggregates: dict[str, Any]
    stages: list[StageEvidence]
    snapshot_cut_us: int | None = None

    def differing(self, app: App) -> list[str]:
        """Features whose bits are not the served ones."""
        pairs = {name: (self.found.row.column(f"feature.{name}"), self.feature(name)) for name in app.features}
        return [name for name, (ours, theirs) in pairs.items() if not same_bits(ours.cast(theirs.type), theirs)[0]]

    def feature(self, name: str) -> pa.Array:
        """A feature as it was computed now, shape [1]."""
        return self.again.column(f"feature.{name}")


def find_prediction(
    app: App,
    archive: Path,
    prediction_id: str,
    *,
    event_id: str | None = None,
    day: date | None = None,
    progress: Progress | None = None,
) -> Found:
    """The archived row of a prediction; the newest segments are looked at first.

    Args:
        app: whose fingerprint must be the archive's.
        archive: folder of the archive.
        prediction_id: as in the message; a hash, so that every row has to be tried unless the next two are given.
        event_id: the event's identity, which the message has, too: it is compared as text, which is faster.
        day: publish date (UTC) of the event: other days are not read.

    Raises:
        ConfigurationError: this is no prediction id, or no prediction of the archive has it.
        FingerprintError: the archive was written with other features.
        HistoryError: there is no archive, or it is damaged.
    """
    written = archives.identity(archive)
    if written["fingerprint"] != app.fingerprint:
        raise FingerprintError(
            f"archive {archive} was written by fingerprint {written['fingerprint']}, the app has {app.fingerprint}: "
            "ask the version of the app that wrote it"
        )
    if len(prediction_id) != 32 or prediction_id.strip("0123456789abcdef"):
        raise ConfigurationError(
            f"prediction id {prediction_id!r} cannot be one: wanted 32 hexadecimal digits, as in the message"
        )
    perhaps = [f"version.{model.name}" for model in app.models]
    models: list[str] = []

    def match(block: pa.RecordBatch) -> np.ndarray:
        keep = np.zeros(block.num_rows, np.bool_)
        row, model = _row_of(app, block, prediction_id, event_id)
        if row >= 0:
            keep[row] = True
            models.append(model)
        return keep

    wanted = Wanted(["event_type", "event_id", "outcome"], match, perhaps=perhaps, day=day)
    for block in find_rows(archive, wanted, newest_first=True, progress=progress):
        return Found(block, models[-1])
    told = [f"of event {event_id!r}"] if event_id is not None else []
    told += [f"published on {day}"] if day is not None else []
    raise ConfigurationError(
        f"prediction {prediction_id} {' '.join([*told, ''])}is not in archive {archive}: look at the id, and at the "
        "archive that belongs to the job which published it"
    )


def _row_of(app: App, block: pa.RecordBatch, prediction_id: str, event_id: str | None) -> tuple[int, str]:
    """Which row of the block has the prediction, and of which model; -1 if none has."""
    kind = app.predict_on.name
    of_type = pc.equal(block.column("event_type"), kind)
    if event_id is not None:
        of_type = pc.and_(of_type, pc.equal(block.column("event_id"), event_id))
    versions: dict[str, pa.Array] = {
        model.name: block.column(f"version.{model.name}") for model in results.models_of(app, block)
    }
    recorded = pc.equal(block.column("outcome"), results.RECORDED)
    versions[""] = pc.if_else(recorded, pa.scalar(0, pa.int64()), pa.scalar(None, pa.int64()))
    for model, column in versions.items():
        for version in column.filter(of_type).drop_null().unique().to_pylist():
            rows = pc.indices_nonzero(pc.and_(of_type, pc.equal(column, version)).fill_null(False))
            ids = block.column("event_id").take(rows)
            found = hashing.prediction_ids(app.name, kind, ids, model, version, app.fingerprint)
            at = found.index(prediction_id).as_py()
            if at >= 0:
                return int(rows[at].as_py()), model
    return -1, ""


def gather_evidence(app: App, archive: Path, found: Found, *, progress: Progress | None = None) -> Evidence:
    """Read the events that the row's windows reach, and compute the row's features from them again.

    Raises:
        HistoryError: the archive is damaged, or does not hold the row in its own stage.
    """
    plan = make_plan(app)
    stages: list[StageEvidence] = []
    columns: dict[str, pa.Array] = {}
    at_us = int(found.row.column("event_time").cast(pa.int64())[0].as_py())
    for number, stage in enumerate(plan.stages):
        if progress is not None:
            progress(number / len(plan.stages), f"events of the same {stage.name}")
        key = key_column(stage.key, Evaluator(found.row))[0].as_py()
        block = found.row if key is None else _events_of_key(archive, stage, key, found)
        row = _place_of(block, found)
        begin = _begin(archive, plan, number, at_us)
        folded = run_stage(begin, block.slice(0, row + 1))
        columns |= {output.column: folded.column(output.column).slice(row, 1) for output in stage.outputs}
        around = Around(block, Evaluator(block), row, stage.lateness_us, stage.longest_us)
        stages.append(StageEvidence(stage, key, None if key is None else around))
    own = [name for name in found.row.schema.names if not name.startswith("feature.")]
    again = pa.RecordBatch.from_arrays([*found.row.select(own).columns, *columns.values()], names=[*own, *columns])
    values = {
        output.aggregate.key: columns[output.column][0].as_py() for stage in plan.stages for output in stage.outputs
    }
    return Evidence(found, finish(plan, again), values, stages, snapshot_cut_us(archive))


def snapshot_cut_us(archive: Path) -> int | None:
    """The cut of the snapshot that an archive begins with; None if it begins with nothing."""
    path = archive / snapshots.NAME
    return snapshots.read_snapshot(path).cut_us if path.exists() else None


def _begin(archive: Path, plan: Plan, number: int, at_us: int) -> StageState:
    """The state that the archive's rows are folded onto: of its snapshot, where the row's windows reach into that."""
    stage, path = plan.stages[number], archive / snapshots.NAME
    newest_us = snapshots.read_snapshot(path).newest_us if path.exists() else None
    if newest_us is None or not (stage.counts_events or at_us - stage.longest_us <= newest_us):
        return StageState(stage)
    return snapshots.at_begin(archive, plan).states[number]


def _events_of_key(archive: Path, stage: Stage, key: Any, found: Found) -> pa.RecordBatch:
    """Events of one key in the order of their positions: what the row's windows reach, and what came too late."""
    at_us = int(found.row.column("event_time").cast(pa.int64())[0].as_py())
    since_us = None if stage.counts_events else at_us - stage.longest_us
    position = [f"stage.{stage.name}.{name}" for name in ("epoch", "shard", "position", "late")]
    deciding = list(dict.fromkeys(["event_type", *stage.key.columns]))

    def match(block: pa.RecordBatch) -> np.ndarray:
        same = pc.equal(key_column(stage.key, Evaluator(block)), key)
        return np.asarray(same.fill_null(False))

    columns = [*(field.name for field in ENVELOPE), *position, *stage.columns]
    before = Wanted(deciding, match, columns, since_us=since_us)
    after = Wanted(deciding, match, columns, since_us=since_us, until_us=at_us)
    parts = list(find_rows(archive, before, begun_by=found.commit))
    parts += find_rows(archive, after, begun_after=found.commit)
    block = together(parts)
    if block is None or block.column(position[2]).null_count:
        raise HistoryError(
            f"archive {archive} does not hold the events of {stage.name} {key!r}: restore it from a copy"
        )
    block = block.take(pa.array(stage_order(block, stage.name)))
    row = _place_of(block, found)
    needed = np.asarray(pc.less_equal(block.column("event_time").cast(pa.int64()), at_us))
    needed[: row + 1] = True
    return block.filter(pa.array(needed))


def _place_of(block: pa.RecordBatch, found: Found) -> int:
    """Where the row stands in a block that holds it."""
    same = pc.and_(
        pc.equal(block.column(COMMIT_COLUMN), found.commit),
        pc.equal(block.column(ROW_COLUMN), found.row.column(ROW_COLUMN)[0]),
    )
    places = np.flatnonzero(np.asarray(same))
    if len(places) != 1:
        raise HistoryError(f"the archive holds row {found.commit} of a key {len(places)} times, wanted it once")
    return int(places[0])
