"""The Beam steps that every batch job shares: history → admitted blocks → keyed stages → features.

    read ─> by identity ─> first of each ─┬─> by origin ─> fold ─> by plane ─> fold ─> … ─> finish ─> features
                                          └─> labels (batch.labels)

Nothing is computed here: rows are moved to the shard that owns their key, put there into one block, and handed
to `shared_features.compute.run_stage`, the very call that a notebook makes. So the result depends on the rows
only: not on splits, their order, the number of shards or the runner (contract C3).

Beam's cost is paid per element, so an element is a block (Arrow RecordBatch) or the piece of a block that goes to
one shard. A stage takes the rows that have its key; others pass by. Rows and columns that no later step reads
are dropped as soon as that is so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import TaggedOutput

from batch import coders, runner
from batch.admission import DUPLICATE, admit, first_of_each, identities
from batch.lateness import Lateness, arriving
from batch.tables import BLOCK_ROWS, History, read_split
from shared_features.aggregates import Aggregate
from shared_features.app import App
from shared_features.blocks import append_columns, concat_blocks
from shared_features.columns import ARROW_TYPES, Evaluator
from shared_features.compute import run_stage
from shared_features.expressions import Expression, Field
from shared_features.hashing import hash_column, shard_of
from shared_features.kernel import finish, key_column
from shared_features.plan import Plan, Stage, make_plan
from shared_features.state import StageState

coders.register()

WITHOUT_KEY = "without_key."
Count = tuple[str, int]
"""Something counted, and how often: ``left_out.duplicate``, 3."""

Piece = tuple[int, pa.RecordBatch]
"""Shard, and the rows of a block that belong to it."""

_ENVELOPE = ("event_type", "event_id", "event_time", "publish_time")


# -- what later steps need ----------------------------------------------------------------------------------
def _fields(expressions: Iterable[Expression | None]) -> list[str]:
    """Columns that expressions read, those inside aggregates excepted (they are read by their stage)."""
    found: dict[str, None] = {}
    for expression in expressions:
        for node in expression.walk() if expression is not None else ():
            if isinstance(node, Field):
                found.setdefault(node.column)
    return list(found)


def _stage_fields(stage: Stage) -> list[str]:
    return stage.key.columns + _fields(part for track in stage.tracks for part in (track.value, track.where))


def columns_before(plan: Plan, index: int, extra: Iterable[str] = ()) -> list[str]:
    """Columns of events that stage ``index`` or a later step reads; ``len(plan.stages)`` is `finish`.

    Args:
        extra: further columns to carry to the end.
    """
    features = (value for value in plan.app.features.values() if not isinstance(value, Aggregate))
    found = [*_ENVELOPE, *_fields(features), *extra]
    for stage in plan.stages[index:]:
        found += _stage_fields(stage)
    return list(dict.fromkeys(found))


def _types_before(plan: Plan, index: int) -> list[str]:
    later = (name for stage in plan.stages[index:] for name in stage.key.fields)
    return list(dict.fromkeys([plan.app.predict_on.name, *later]))


def needed(plan: Plan, index: int, block: pa.RecordBatch, extra: Iterable[str] = ()) -> pa.RecordBatch:
    """The rows and columns of ``block`` that stage ``index`` or a later step reads."""
    types = _types_before(plan, index)
    keep = pc.is_in(block.column("event_type"), pa.array(types, pa.string()))
    wanted = set(columns_before(plan, index, extra))
    later = tuple(f"stage.{stage.name}." for stage in plan.stages[index:])
    names = [name for name in block.schema.names if name in wanted or name.startswith(("aggregate.", *later))]
    return block.select(names).filter(keep)


# -- moving rows to their shard -----------------------------------------------------------------------------
def pieces(block: pa.RecordBatch, hashes: np.ndarray, shards: int) -> Iterator[Piece]:
    """``block`` cut by shard; rows keep their order within a piece, empty pieces are left out.

    Args:
        hashes: uint64 per row.
    """
    if block.num_rows == 0:
        return
    if shards == 1:
        yield 0, block
        return
    of = shard_of(hashes, shards)
    taken = block.take(pa.array(np.argsort(of, kind="stable")))
    ends = np.cumsum(np.bincount(of, minlength=shards))
    start = 0
    for shard, end in enumerate(ends.tolist()):
        if end > start:
            yield shard, taken.slice(start, end - start)
        start = end


def key_of(stage: Stage, block: pa.RecordBatch) -> pa.Array:
    """The key of each row, null where the row takes no part in ``stage``."""
    return key_column(stage.key, Evaluator(block))


def sliced(block: pa.RecordBatch, rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
    """``block`` in slices of at most ``rows`` rows, so that no element outgrows what a runner carries."""
    for start in range(0, block.num_rows, rows):
        yield block.slice(start, rows)


# -- steps --------------------------------------------------------------------------------------------------
class ReadEvents(beam.DoFn):
    """Split (bytes) → pieces by identity of the rows that may be folded; counts what may not."""

    def __init__(self, app: App, shards: int, columns: list[str], token: str, lateness: Lateness | None = None) -> None:
        self._app, self._shards, self._columns, self._token = app, shards, columns, token
        self._lateness = lateness

    def setup(self) -> None:
        self._plan = make_plan(self._app)

    def process(self, element: bytes) -> Iterator[Piece | TaggedOutput[Literal["counts"], Count]]:
        for block in read_split(element):
            yield from counted({"events.read": block.num_rows})
            admitted, left_out = admit(self._plan, block if self._lateness is None else arriving(block, self._lateness))
            unpublished = admitted.column("publish_time").null_count
            yield from counted({f"left_out.{reason}": count for reason, count in left_out.items()})
            yield from counted({"events.unpublished": unpublished, "events.published": admitted.num_rows - unpublished})
            stages = [name for name in admitted.schema.names if name.startswith("stage.")]
            admitted = admitted.select([*self._columns, *stages])
            yield from pieces(admitted, identities(admitted), self._shards)
            runner.report(self._token, block.num_rows, "read")


class KeepFirst(beam.DoFn):
    """All rows of one shard of identities → each identity once (contract C5)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def process(
        self, element: tuple[int, Iterable[pa.RecordBatch]]
    ) -> Iterator[pa.RecordBatch | TaggedOutput[Literal["counts"], Count]]:
        block = concat_blocks(list(element[1]))
        kept = first_of_each(block)
        yield from counted({f"left_out.{DUPLICATE}": block.num_rows - kept.num_rows})
        yield from sliced(kept)
        runner.report(self._token, block.num_rows, "first of each")


class ToStage(beam.DoFn):
    """Block → its pieces by the key of one stage; rows without the key go to the output ``by``.

    Those of them whose event types have the key are counted as ``without_key.<stage>``.
    """

    def __init__(self, app: App, index: int, shards: int, extra: list[str]) -> None:
        self._app, self._index, self._shards, self._extra = app, index, shards, extra

    def setup(self) -> None:
        self._plan = make_plan(self._app)
        self._stage = self._plan.stages[self._index]

    def process(
        self, element: pa.RecordBatch
    ) -> Iterator[Piece | TaggedOutput[Literal["by"], pa.RecordBatch] | TaggedOutput[Literal["counts"], Count]]:
        block = needed(self._plan, self._index, element, self._extra)
        keys = key_of(self._stage, block)
        if keys.null_count:
            keyed = pc.is_valid(keys)
            aside = _without_stage(self._stage, block.filter(pc.invert(keyed)))
            of_types = pc.is_in(aside.column("event_type"), pa.array(list(self._stage.key.fields), pa.string()))
            yield from counted({f"{WITHOUT_KEY}{self._stage.name}": pc.sum(of_types).as_py() or 0})
            nulls = {
                output.column: pa.nulls(aside.num_rows, ARROW_TYPES[output.aggregate.dtype])
                for output in self._stage.outputs
            }
            aside = append_columns(aside, nulls)
            aside = needed(self._plan, self._index + 1, aside, self._extra)
            if aside.num_rows:
                past: TaggedOutput[Literal["by"], pa.RecordBatch] = TaggedOutput("by", aside)
                yield past
            block, keys = block.filter(keyed), keys.drop_null()
        yield from pieces(block, hash_column(keys), self._shards)


class Fold(beam.DoFn):
    """All rows of one shard of a stage → the same rows with the stage's aggregates."""

    def __init__(self, app: App, index: int, extra: list[str], token: str) -> None:
        self._app, self._index, self._extra, self._token = app, index, extra, token

    def setup(self) -> None:
        self._plan = make_plan(self._app)
        self._stage = self._plan.stages[self._index]

    def process(self, element: tuple[int, Iterable[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
        shard, blocks = element
        block = concat_blocks(list(blocks))
        folded = _without_stage(self._stage, run_stage(StageState(self._stage, shard=shard), block))
        yield from sliced(needed(self._plan, self._index + 1, folded, self._extra))
        runner.report(self._token, block.num_rows, f"fold by {self._stage.name}")


class Finish(beam.DoFn):
    """Block after the last stage → event_id, event_time, publish_time, ``feature.*`` of the rows predicted on."""

    def __init__(self, app: App, extra: list[str]) -> None:
        self._app, self._extra = app, extra

    def setup(self) -> None:
        self._plan = make_plan(self._app)

    def process(self, element: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        block = needed(self._plan, len(self._plan.stages), element, self._extra)
        if block.num_rows:
            done = finish(self._plan, block)
            names = dict.fromkeys(["event_id", "event_time", "publish_time", *self._extra])
            yield done.select([*names, *(f"feature.{name}" for name in self._app.features)])


class Admitted(beam.PTransform[Any, Any]):
    """Pipeline begin → (blocks of all events that may be folded, counts).

    Args:
        history: what `open_history` found; rows of an archive are free of duplicates already (C5).
        columns: columns of events to carry on, besides stage positions.
        shards: pieces that a shuffle makes of the rows.
        lateness: delays for a history that has none.
    """

    def __init__(
        self,
        app: App,
        history: History,
        columns: list[str],
        shards: int,
        token: str = "",
        lateness: Lateness | None = None,
    ) -> None:
        super().__init__()
        self._app, self._history, self._columns = app, history, columns
        self._shards, self._token, self._lateness = shards, token, lateness

    def expand(self, begin: Any) -> tuple[Any, Any]:
        read = ReadEvents(self._app, self._shards, self._columns, self._token, self._lateness)
        split = (
            begin
            | "splits" >> beam.Create(self._history.splits, reshuffle=len(self._history.splits) > 1)
            | "read" >> typed(read, Piece, counts=Count)
        )
        if self._history.archived:
            return split.main | "blocks" >> beam.Values().with_output_types(pa.RecordBatch), split.counts
        firsts = (
            split.main
            | "by identity" >> beam.GroupByKey()
            | "first of each" >> typed(KeepFirst(self._token), pa.RecordBatch, counts=Count)
        )
        counts = (split.counts, firsts.counts) | "counts" >> beam.Flatten()
        return firsts.main, counts


class HistoryFeatures(beam.PTransform[Any, Any]):
    """Blocks of events → (blocks of features, counts); one row per event predicted on, in no particular order.

    Args:
        shards: into how many shards each stage's keys go; more of them bound memory and spread over workers,
            and change nothing in the result.
        extra: columns of the event predicted on to carry along.
    """

    def __init__(self, app: App, shards: int, extra: Iterable[str] = (), token: str = "") -> None:
        super().__init__()
        self._app, self._shards, self._extra, self._token = app, shards, list(extra), token

    def expand(self, blocks: Any) -> Any:
        counts = []
        for index, stage in enumerate(make_plan(self._app).stages):
            name = stage.name
            to_stage = ToStage(self._app, index, self._shards, self._extra)
            split = blocks | f"to {name}" >> typed(to_stage, Piece, by=pa.RecordBatch, counts=Count)
            counts.append(split.counts)
            folded = (
                split.main
                | f"by {name}" >> beam.GroupByKey()
                | f"fold by {name}" >> typed(Fold(self._app, index, self._extra, self._token), pa.RecordBatch)
            )
            blocks = (folded, split.by) | f"after {name}" >> beam.Flatten()
        return blocks | "finish" >> typed(Finish(self._app, self._extra), pa.RecordBatch), counts


def typed(function: beam.DoFn, main: Any, **tagged: Any) -> Any:
    """ParDo with its outputs typed, so that each has an explicit coder."""
    transform = beam.ParDo(function).with_output_types(main, **tagged)
    return transform.with_outputs(*tagged, main="main") if tagged else transform


def counted(counts: dict[str, int]) -> Iterator[TaggedOutput[Literal["counts"], Count]]:
    for name, count in counts.items():
        if count:
            yield TaggedOutput("counts", (name, count))


def _without_stage(stage: Stage, block: pa.RecordBatch) -> pa.RecordBatch:
    """The block without the stage's positions: they were needed, or counted, for this fold alone."""
    prefix = f"stage.{stage.name}."
    return block.select([name for name in block.schema.names if not name.startswith(prefix)])
