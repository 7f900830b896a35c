"""Where the rows of a history go: to the shard that owns their key, and there to a stretch of fold order.

A *bucket* is a day of publish time (of event time, where a history has no publish times), or, of an archive, a range of
the positions that the live job gave: buckets of a shard, one after the other, are its fold order. So a shard is folded
bucket by bucket with the state carried on, and memory holds one bucket of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.aggregates import Aggregate
from shared_features.columns import ARROW_TYPES, Evaluator
from shared_features.errors import HistoryError
from shared_features.expressions import Expression, Field
from shared_features.hashing import hash_column, shard_of
from shared_features.kernel import key_column
from shared_features.plan import Plan

DAY_US = 86_400_000_000
POSITIONS = 1 << 20
"""Positions of an archive in one bucket."""

_EPOCH = 1 << 40

SHARD_ROWS = 1_500_000
"""About so many rows are one shard's, where nobody says how many shards there are."""
FEWEST_SHARDS, MOST_SHARDS = 4, 64

WITHOUT_KEY = "without_key."

_ENVELOPE = ("event_type", "event_id", "event_time", "publish_time")


class Place(NamedTuple):
    """Where a row goes next: a step (the stages in their order, then `end_of`), a shard and a bucket."""

    step: int
    shard: int
    bucket: int


def end_of(plan: Plan) -> int:
    """The step behind the last stage, for rows that have no key any more."""
    return len(plan.stages)


def nowhere_of(plan: Plan) -> int:
    """No step: for rows that nothing needs, but whose identities may come again."""
    return len(plan.stages) + 1


def shards_for(rows: int | None) -> int:
    """Into how many shards the keys of so many rows go."""
    return max(FEWEST_SHARDS, min(MOST_SHARDS, -(-(rows or 0) // SHARD_ROWS)))


def columns_before(plan: Plan, step: int, extra: Iterable[str] = ()) -> list[str]:
    """Columns of events that a step or a later one reads.

    Args:
        extra: further columns, carried to the end.
    """
    features = (value for value in plan.app.features.values() if not isinstance(value, Aggregate))
    found = [*_ENVELOPE, *_fields(features), *extra]
    for stage in plan.stages[step:]:
        found += stage.columns
    return list(dict.fromkeys(found))


def _fields(expressions: Iterable[Expression | None]) -> list[str]:
    """Columns that expressions read, those inside aggregates excepted (they are read by their stage)."""
    nodes = (node for expression in expressions if expression is not None for node in expression.walk())
    return list(dict.fromkeys(node.column for node in nodes if isinstance(node, Field)))


def route(
    plan: Plan, block: pa.RecordBatch, after: int, shards: int, ending: Collection[str]
) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """The rows of ``block`` by the place where each goes next, in their order.

    Args:
        after: the step that they come from; -1 for none: then rows that nothing needs go to `nowhere_of`. Rows that
            come from a stage and end go there uncut.
        ending: event types whose rows go to the end.
    """
    left = np.ones(block.num_rows, np.bool_)
    evaluator = Evaluator(block)
    for number in range(after + 1, len(plan.stages)):
        stage = plan.stages[number]
        keys = key_column(stage.key, evaluator)
        mine = left & keys.is_valid().to_numpy(zero_copy_only=False) if keys.null_count else left
        if mine.any():
            yield from _cut(block, mine, hash_column(keys), number, stage.name, shards)
            left = left & ~mine
            if not left.any():
                return
    ended = left & np.logical_or.reduce([evaluator.is_type(name) for name in ending])
    if after >= 0:
        if ended.any():
            yield Place(end_of(plan), 0, 0), block if ended.all() else block.filter(pa.array(ended))
        return
    if ended.any():
        yield from _cut(block, ended, evaluator.identities(), end_of(plan), "", shards)
    left &= ~ended
    if left.any():
        yield Place(nowhere_of(plan), 0, 0), block.filter(pa.array(left))


def _cut(
    block: pa.RecordBatch, rows: np.ndarray, hashes: np.ndarray, step: int, stage: str, shards: int
) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """Some rows of a block by shard and bucket."""
    if not rows.all():
        chosen = np.flatnonzero(rows)
        block, hashes = block.take(pa.array(chosen)), hashes[chosen]
    yield from cut(block, hashes, bucket_of(block, stage), step, shards)


def cut(
    block: pa.RecordBatch, hashes: np.ndarray, bucket_numbers: np.ndarray, step: int, shards: int
) -> Iterator[tuple[Place, pa.RecordBatch]]:
    """The rows of a block by shard, as their keys' hashes say, and bucket; in their order."""
    buckets, which = np.unique(bucket_numbers, return_inverse=True)
    places = len(buckets) * shards
    of = which * shards + shard_of(hashes, shards).astype(np.int64)
    # Of 16 bits NumPy sorts by digits, in a fifth of the time.
    order = np.argsort(of.astype(np.uint16) if places < 1 << 16 else of, kind="stable")
    taken = block.take(pa.array(order))
    start = 0
    for place, count in enumerate(np.bincount(of, minlength=places).tolist()):
        if count:
            bucket, shard = divmod(place, shards)
            yield Place(step, shard, int(buckets[bucket])), taken.slice(start, count)
            start += count


def bucket_of(block: pa.RecordBatch, stage: str) -> np.ndarray:
    """The bucket of each row for a stage; int64, shape [rows]. ``""`` is the step behind the last one."""
    if f"stage.{stage}.position" in block.schema.names:
        epoch, position = _positions(block, stage)
        found: np.ndarray = epoch * _EPOCH + position // POSITIONS
    else:
        found = fold_times(block) // DAY_US
    return found


def fold_times(block: pa.RecordBatch) -> np.ndarray:
    """The time that orders each row in history: publish time, or event time where it is null; microseconds, int64."""
    times = block.column("publish_time")
    if times.null_count:
        times = pc.coalesce(times, block.column("event_time"))
    found: np.ndarray = times.cast(pa.int64()).to_numpy()
    return found


def in_fold_order(block: pa.RecordBatch, stage: str) -> pa.RecordBatch:
    """The rows as a stage folds them (contract C1): see `shared_features.compute.fold_order`, and much faster.

    History is in order, or nearly so: texts are compared only where times are equal.

    Raises:
        HistoryError: some rows have a publish time and others have none.
    """
    if f"stage.{stage}.position" in block.schema.names:
        epoch, position = _positions(block, stage)
        return _taken(block, np.lexsort((position, epoch)))
    if block.column("publish_time").null_count not in (0, block.num_rows):
        raise HistoryError(
            f"history has {block.column('publish_time').null_count} of {block.num_rows} rows without a publish_time: "
            "wanted it on all rows or on none; fill it in or drop the column"
        )
    times = fold_times(block)
    order = np.argsort(times, kind="stable")
    times = times[order]
    same = times[1:] == times[:-1]
    if same.any():
        tied = np.zeros(len(order), np.bool_)
        tied[1:] = same
        tied[:-1] |= same
        rows = order[tied]
        names = ["event_type", "event_id"]
        texts = pa.table({"time": times[tied], **{name: block.column(name).take(pa.array(rows)) for name in names}})
        sorted_rows = pc.sort_indices(texts, sort_keys=[(name, "ascending") for name in ("time", *names)])
        order[tied] = rows[sorted_rows.to_numpy()]
    return _taken(block, order)


def _taken(block: pa.RecordBatch, order: np.ndarray) -> pa.RecordBatch:
    if np.array_equal(order, np.arange(len(order))):
        return block
    return block.take(pa.array(order))


def _positions(block: pa.RecordBatch, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and position of each row in a stage; int64."""
    epoch, position = (block.column(f"stage.{stage}.{name}") for name in ("epoch", "position"))
    return epoch.to_numpy().astype(np.int64), position.to_numpy()


def conformed(plan: Plan, blocks: list[pa.RecordBatch], step: int) -> pa.RecordBatch:
    """Blocks that came to a step by different ways, as one: aggregates of stages that a row passed by are null."""
    schemas = {block.schema for block in blocks}
    if len(schemas) > 1:
        wanted: dict[str, pa.DataType] = {}
        for schema in schemas:
            wanted |= {field.name: field.type for field in schema}
        blocks = [_with_nulls(block, wanted) for block in blocks]
    block: pa.RecordBatch = blocks[0] if len(blocks) == 1 else pa.concat_batches(blocks)
    missing = {
        output.column: pa.nulls(block.num_rows, ARROW_TYPES[output.aggregate.dtype])
        for stage in plan.stages[:step]
        for output in stage.outputs
        if output.column not in block.schema.names
    }
    for name, column in missing.items():
        block = block.append_column(name, column)
    return block


def _with_nulls(block: pa.RecordBatch, wanted: dict[str, pa.DataType]) -> pa.RecordBatch:
    columns = [
        block.column(name) if name in block.schema.names else pa.nulls(block.num_rows, kind)
        for name, kind in wanted.items()
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(wanted))


def without_key(plan: Plan, block: pa.RecordBatch) -> dict[str, int]:
    """Rows of a key's event types whose key is null, by stage."""
    evaluator = Evaluator(block)
    found = {}
    for stage in plan.stages:
        keys = key_column(stage.key, evaluator)
        if keys.null_count:
            of_types = np.zeros(block.num_rows, np.bool_)
            for event_type in stage.key.fields:
                of_types |= evaluator.is_type(event_type)
            found[f"{WITHOUT_KEY}{stage.name}"] = int(np.count_nonzero(of_types & np.asarray(keys.is_null())))
    return found
