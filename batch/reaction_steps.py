"""Reactions that remember, in batch: rows that have been predicted on go to the shards of the reactions' keys.

    ended rows ─> predict ─> by key ─> fold reactions ─> by the next key ─> fold reactions ─> … ─> ended rows

What is folded, and in which order, is what the live job does behind its predictions (`streaming.delivery`): rows of an
archive go by their places in it, others by publish time. Between two stages rows lie in files of the work folder, as
in `batch.partitions_steps`; a shard that is done is a file, which a run that was cut off finds. Each stage is a
pipeline of its own: it begins when all rows of the one before are there.

Where reactions remember by the key of the features' last stage, rows end in the shards and in the order in which the
first stage of reactions takes them: then it folds them as they end, *in place*, and they need not wait on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch import runner
from batch.backfill_rows import Asking, Predictions
from batch.counts import counted
from batch.partitions import Place, bucket_of, cut, in_fold_order
from batch.partitions_beam import SideBySide
from batch.partitions_ended import Ended, Ending
from batch.partitions_spill import Piece, Spill, count, read_piece, read_spill, write_spill
from batch.partitions_state import checkpoints, load_remembered
from batch.tables import ARCHIVED_AT, History
from shared_features.app import App
from shared_features.blocks import append_columns
from shared_features.columns import Evaluator
from shared_features.compute import BLOCK_ROWS
from shared_features.hashing import hash_column
from shared_features.kernel import key_column
from shared_features.plan import Plan, make_plan
from shared_features.reactions import ReactionStage, reaction_stages
from streaming import results
from streaming.archive_log import frames, write_frame

COMMITS = 1 << 14
"""Commits of an archive in one bucket."""

_EPOCH = 1 << 40
_MEMORY = b"R"


@dataclass(frozen=True)
class Predicted:
    """Of a plan the `Predicting`, in a worker.

    Attributes:
        work: the work folder.
        shards: into how many shards keys go.
        asking: where the models are.
        in_place: whether `folds_in_place`.
        ended: makes what takes the rows that have passed all stages of reactions.
    """

    work: str
    shards: int
    asking: Asking
    in_place: bool
    ended: Callable[[Plan], Ended]

    def __call__(self, plan: Plan) -> Predicting:
        return Predicting(plan, self)


class Predicting:
    """Predicts ended rows, folds the first stage of reactions if that goes in place, and hands the rows on.

    Args:
        plan: of the app.
        settings: see there.
    """

    def __init__(self, plan: Plan, settings: Predicted) -> None:
        self._app, self._settings = plan.app, settings
        self._predictions = Predictions(plan.app, settings.asking)
        self._first = int(settings.in_place)
        self._following = _memories(plan.app)[self._first :]
        self._ended = settings.ended(plan)

    def memory(self, shard: int) -> ReactionStage | None:
        """The stage that is folded in place."""
        return _memories(self._app, shard)[0] if self._settings.in_place else None

    def open(self, name: str, memory: ReactionStage | None) -> _Predicted:
        """Begin a bucket."""
        if not self._following:
            return _Predicted(self._predictions, memory, self._ended.open(name, None))
        path = _waiting(self._settings.work, self._first) / f"{name}.arrow"
        return _Predicted(self._predictions, memory, _Waiting(self._following[0], self._settings.shards, Spill(path)))

    def close(self) -> None:
        """Let go of the model servers."""
        self._predictions.close()
        self._ended.close()


@dataclass(frozen=True, slots=True)
class _Predicted:
    """One bucket: rows are predicted, and go on to ``then``."""

    predictions: Predictions
    memory: ReactionStage | None
    then: Ending

    def write(self, block: pa.RecordBatch) -> Iterable[tuple[Place, pa.RecordBatch]]:
        return self.then.write(self.predictions.of(block, [] if self.memory is None else [self.memory]))

    def close(self) -> Mapping[str, int]:
        return self.then.close()


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The rows of one bucket, by the place where a stage finds them."""

    stage: ReactionStage
    shards: int
    spill: Spill

    def write(self, block: pa.RecordBatch) -> tuple[()]:
        for place, rows in _placed(self.stage, block, self.shards):
            self.spill.write(place, rows)
        return ()

    def close(self) -> Mapping[str, int]:
        self.spill.close({})
        return {}


def folds_in_place(plan: Plan, source: History, span: int | None = None) -> bool:
    """Whether rows end in the shards, and there in the order, in which the first stage of reactions takes them.

    So it is where it goes by the key of the last stage of features: rows without that key take no part in either. Not
    for an archive, where each stage has an order of its own, nor where spans of a shard are folded side by side.
    """
    key = _memories(plan.app)[0].key
    at_the_end = bool(plan.stages) and key is not None and plan.stages[-1].key.name == key.name
    return at_the_end and not source.archived and span is None


def columns_for(app: App, source: History) -> list[str]:
    """Columns of a history that predictions and reactions need, beside those of features."""
    keys = [column for stage in _memories(app) if stage.key is not None for column in stage.key.columns]
    at = [name for name in ARCHIVED_AT.names if name in source.schema.names]
    return [*(field.name for field in app.predict_on.block_fields), *keys, *at]


def fold_reactions(
    app: App,
    work: Path,
    shards: int,
    ended: Callable[[Plan], Ended],
    options: Sequence[str],
    watch: runner.Progress,
    *,
    in_place: bool,
    keep_memory: bool = False,
) -> dict[str, int]:
    """Fold what `Predicting` has put into a work folder; what was counted.

    Args:
        ended: makes, in a worker, what takes the rows that have passed all stages of reactions.
        in_place: whether the first stage is folded already.
        keep_memory: whether `memories_of` shall find what is remembered at the end.
    """
    counts: dict[str, int] = {}
    for number, stage in list(enumerate(_memories(app)))[int(in_place) :]:
        by_shard: dict[int, list[Piece]] = {}
        for path in sorted(_waiting(work, number).glob("*.arrow")):
            spilled = read_spill(path)
            for piece in spilled.pieces if spilled else ():
                by_shard.setdefault(piece.place.shard, []).append(piece)
        fold = FoldReactions(app, str(work), shards, number, ended, keep_memory=keep_memory)
        watch(0.95, f"fold {stage.name}")
        found = counted(work / f"counts-{number}", options, _folding(list(by_shard.items()), fold))
        count(counts, found)
    return counts


def _folding(shards: list[Any], fold: FoldReactions) -> Callable[[beam.Pipeline], Any]:
    return lambda pipeline: (
        pipeline | beam.Create(shards, reshuffle=len(shards) > 1) | beam.ParDo(fold).with_output_types(tuple[str, int])
    )


class FoldReactions(SideBySide):
    """All pieces of one shard of a stage of reactions → what was counted; the rows go to the next stage, or have ended.

    Args:
        app, work, shards, ended, keep_memory: as for `fold_reactions`.
        number: which of the stages.
    """

    def __init__(
        self, app: App, work: str, shards: int, number: int, ended: Callable[[Plan], Ended], *, keep_memory: bool
    ) -> None:
        self._app, self._work, self._shards, self._number = app, work, shards, number
        self._ended_in, self._keep_memory = ended, keep_memory

    def prepare(self) -> None:
        self._ended = self._ended_in(make_plan(self._app))

    def teardown(self) -> None:
        super().teardown()
        self._ended.close()

    def work(self, element: tuple[int, list[Piece]]) -> Iterator[tuple[str, int]]:
        shard, pieces = element
        path = _waiting(self._work, self._number + 1) / f"{shard}.arrow"
        spilled = read_spill(path)
        if spilled is None:
            counts: dict[str, int] = {}
            spilled = write_spill(path, self._folded(shard, pieces, counts), counts)
        yield from spilled.counts.items()

    def _folded(
        self, shard: int, pieces: list[Piece], counts: dict[str, int]
    ) -> Iterator[tuple[Place, pa.RecordBatch]]:
        stage, *following = _memories(self._app, shard)[self._number :]
        by_bucket = sorted(pieces, key=lambda piece: (piece.place.bucket, piece.file, piece.offset))
        for bucket, of_bucket in groupby(by_bucket, key=lambda piece: piece.place.bucket):
            block = _in_order([read_piece(piece.file, piece.offset, piece.length) for piece in of_bucket])
            ending = self._ended.open(f"{stage.name}_{shard}_{bucket}", None)
            for start in range(0, block.num_rows, BLOCK_ROWS):
                part = block.slice(start, BLOCK_ROWS)
                part = append_columns(part, results.reactions(self._app, [stage], part, results.ended_columns(part)))
                if following:
                    yield from _placed(following[0], part, self._shards)
                else:
                    ending.write(part)
            count(counts, ending.close())
        if self._keep_memory:
            path = _memory(self._work, self._number, shard)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for memory in stage.save():
                    write_frame(file, _MEMORY, memory)


def memories_of(app: App, work: Path, epoch: int, *, in_place: bool) -> list[ReactionStage]:
    """The stages of an app's reactions with what all shards remember, at the first position of an epoch."""
    stages = reaction_stages(app, epoch)
    for path in checkpoints(work, len(make_plan(app).stages) - 1) if in_place else ():
        stages[1].take_over(load_remembered(path))
    for number, stage in enumerate(stages[1:]):
        for path in sorted(_memory(work, number, 0).parent.glob(f"{number}_*")):
            with path.open("rb") as file:
                stage.take_over([bytes(frame.payload) for frame in frames(file, is_last=False)])
    return stages


def _memories(app: App, shard: int = 0) -> list[ReactionStage]:
    return reaction_stages(app, shard=shard)[1:]


def _waiting(work: str | Path, number: int) -> Path:
    """Where the rows are that wait for a stage of reactions."""
    return Path(work, f"reacting-{number}")


def _memory(work: str | Path, number: int, shard: int) -> Path:
    return Path(work, "memory", f"{number}_{shard}")


def _placed(stage: ReactionStage, block: pa.RecordBatch, shards: int) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """The rows of a block by shard and bucket; those without the key pass their stage somewhere."""
    assert stage.key is not None
    yield from cut(block, hash_column(key_column(stage.key, Evaluator(block))), _buckets(block), 0, shards)


def _buckets(block: pa.RecordBatch) -> np.ndarray:
    if _is_archived(block):
        commits, _, epochs = _archived_at(block)
        found: np.ndarray = epochs * _EPOCH + commits // COMMITS
        return found
    return bucket_of(block, "")


def _in_order(blocks: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows in the order in which reactions see them."""
    tables = [pa.Table.from_batches([block]) for block in blocks]
    block = pa.concat_tables(tables, promote_options="default").combine_chunks().to_batches()[0]
    if _is_archived(block):
        commits, rows, epochs = _archived_at(block)
        return block.take(pa.array(np.lexsort((rows, commits, epochs))))
    return in_fold_order(block, "")


def _is_archived(block: pa.RecordBatch) -> bool:
    return all(name in block.schema.names for name in ARCHIVED_AT.names)


def _archived_at(block: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Commit and row of each row in its archive, and the epoch, in which archives follow each other; int64."""
    commits, rows = (block.column(name).fill_null(-1).to_numpy().astype(np.int64) for name in ARCHIVED_AT.names)
    known = [block.column(name) for name in block.schema.names if name.endswith(".epoch")]
    epochs = pc.fill_null(pc.max_element_wise(*known), 0).to_numpy() if known else np.zeros(block.num_rows)
    return commits, rows, epochs.astype(np.int64)
