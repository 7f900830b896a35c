"""Which rows of a history are folded: those that a live job would accept, each event once (contract C4, C5)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.bigquery_history import decode_messages, is_messages
from batch.tables import event_schema, used_types
from shared_features.decode import validate_block
from shared_features.external import require_answered
from shared_features.hashing import hash_columns
from shared_features.kernel import out_of_range
from shared_features.plan import Plan

UNUSED = "unused_event_type"
"""Count of rows whose event type the app knows, but uses for no feature and no label."""

DUPLICATE = "duplicate"
OUT_OF_RANGE = "out_of_range"


def admit(plan: Plan, block: pa.RecordBatch) -> tuple[pa.RecordBatch, Counter[str]]:
    """The rows that may be folded, cleaned, and how many may not, by reason.

    Args:
        block: rows in any order, with the columns of `batch.tables.event_schema`; or messages, which are decoded.

    Returns:
        The good rows in their order; counts by the codes of `shared_features.validate.REASONS`, or `UNUSED`.
    """
    left_out: Counter[str] = Counter()
    if is_messages(block.schema.names):
        block, left_out = decode_messages(plan.app, block)
        block = block.select(event_schema(plan.app).names)
    types = block.column("event_type")
    names = used_types(plan.app)
    unused = [name for name in plan.app.event_types if name not in names]
    if unused:
        keep = pc.invert(pc.is_in(types, pa.array(unused, pa.string())))
        left_out[UNUSED] = block.num_rows - int(pc.sum(keep).as_py() or 0)
        block = block.filter(keep)
    validated = validate_block(block, {name: plan.app.event_types[name] for name in names})
    block = validated.block
    if validated.rejected:
        left_out.update(rejected.reason for rejected in validated.rejected)
        block = block.filter(pa.array(validated.ok))
    block = require_answered(block, {name: plan.app.event_types[name] for name in names}, plan.app.spec)
    too_big = out_of_range(plan, block)
    if too_big:
        left_out[OUT_OF_RANGE] += len(too_big)
        keep = np.ones(block.num_rows, bool)
        keep[list(too_big)] = False
        block = block.filter(pa.array(keep))
    return block, +left_out


def identities(block: pa.RecordBatch) -> np.ndarray:
    """uint64 hash of each row's identity, (event type, event id)."""
    return hash_columns([block.column("event_type"), block.column("event_id")])


def first_of_each(block: pa.RecordBatch) -> pa.RecordBatch:
    """Each identity once: the row that comes first in fold order, that is by publish time.

    Rows of one identity and publish time go by event time, then by their content, so that the result does not
    depend on the order of the rows given. It has them in no particular order.
    """
    hashes = identities(block)
    found, counts = np.unique(hashes, return_counts=True)
    if len(found) == len(hashes):
        return block
    suspects = np.isin(hashes, found[counts > 1])
    once = block.filter(pa.array(~suspects))
    twice = pa.Table.from_batches([block.filter(pa.array(suspects))])
    by = [(name, "ascending") for name in ("event_type", "event_id", "publish_time", "event_time")]
    twice = twice.take(pc.sort_indices(twice, sort_keys=by)).combine_chunks().to_batches()[0]
    same_identity = _same_as_before(twice, ("event_type", "event_id"))
    same_time = same_identity & _same_as_before(twice, ("publish_time", "event_time"))
    chosen = [
        start if end == start + 1 else start + _least(twice.slice(start, end - start))
        for start, end in _groups(same_identity, same_time)
    ]
    result: pa.RecordBatch = pa.concat_batches([once, twice.take(pa.array(chosen, pa.int64()))])
    return result


def _same_as_before(block: pa.RecordBatch, names: tuple[str, ...]) -> np.ndarray:
    same = np.ones(block.num_rows, bool)
    same[:1] = False
    for name in names:
        column = block.column(name)
        before, after = column.slice(0, len(column) - 1), column.slice(1)
        both_null = pc.and_(pc.is_null(before), pc.is_null(after))
        same[1:] &= np.asarray(pc.or_(pc.equal(before, after).fill_null(False), both_null))
    return same


def _groups(same_identity: np.ndarray, same_time: np.ndarray) -> list[tuple[int, int]]:
    """For each identity the rows, from and to, that tie for the first place."""
    starts = np.flatnonzero(~same_identity)
    breaks = np.append(np.flatnonzero(~same_time), len(same_time))
    ends = breaks[np.searchsorted(breaks, starts, side="right")]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _least(rows: pa.RecordBatch) -> int:
    """Of rows that tie in everything that orders a history, the one with the least content."""
    contents: list[Any] = [repr(tuple(row.values())) for row in rows.to_pylist()]
    return contents.index(min(contents))
