"""The archived events again, by the batch path, chunk by chunk: memory does not grow with the archive."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.skew import COMMIT_ROW
from shared_features.columns import Evaluator
from shared_features.compute import run_stage
from shared_features.errors import HistoryError
from shared_features.kernel import finish
from shared_features.plan import Plan
from streaming import archive as archives
from streaming.snapshots import Begin, at_begin

CHUNK_ROWS = 100_000
"""Rows that are compared together, unless one commit has more."""

_SERVED = ("feature.", "prediction.", "reaction.", "started.", "outcome", "failure", "version.", "route.", "shadow.")


def served_chunks(archive: Path, rows: int = CHUNK_ROWS) -> Iterator[pa.RecordBatch]:
    """All archived rows in commit order, at least ``rows`` at a time but for the last ones, numbered by `COMMIT_ROW`.

    Raises:
        HistoryError: there is no archive, or it is damaged.
    """
    held: list[pa.RecordBatch] = []
    first = count = 0
    for commit in archives.read_commits(archive):
        if commit.block.num_rows:
            held.append(commit.block)
            count += commit.block.num_rows
        if count >= rows:
            yield numbered(held, first)
            held, first, count = [], first + count, 0
    if held:
        yield numbered(held, first)


def numbered(blocks: list[pa.RecordBatch], first: int) -> pa.RecordBatch:
    """Rows of several commits as one block, numbered from ``first`` on by `COMMIT_ROW`; absent columns are null."""
    table = pa.concat_tables([pa.Table.from_batches([block]) for block in blocks], promote_options="default")
    numbers = pa.array(np.arange(first, first + table.num_rows))
    return table.append_column(COMMIT_ROW, numbers).combine_chunks().to_batches()[0]


class Replay:
    """The state of the batch path after the chunks that it was given, in commit order.

    Args:
        plan: of the app that served.
        archive: for finding out whose identities stand in it twice.
        remember: whether identities are kept for that, 8 bytes each; without end, for who follows a live job.
        begin: what the first chunk is folded onto; None: what the archive's first commit was.

    Attributes:
        states, stages: of the keyed stages, and of the reactions, which whoever compares them folds.
        positions: where a stage had several shards, the next position of each, by stage and shard.
    """

    def __init__(self, plan: Plan, archive: Path, *, remember: bool = True, begin: Begin | None = None) -> None:
        self._plan, self._archive, self._remember = plan, archive, remember
        self.states, self.stages = at_begin(archive, plan) if begin is None else begin
        self._identities: list[np.ndarray] = []
        self.positions: dict[tuple[str, int], int] = {}

    def take(self, served: pa.RecordBatch) -> pa.RecordBatch:
        """The chunk's events with the features and positions that batch gives them, row by row."""
        if self._remember:
            self._identities.append(Evaluator(served).identities())
        block = served.select([name for name in served.schema.names if not name.startswith(_SERVED)])
        for state in self.states:
            block = run_stage(state, block)
        replayed = finish(self._plan, block)
        order = np.argsort(replayed.column(COMMIT_ROW).to_numpy(), kind="stable")
        replayed = replayed.take(pa.array(order))
        for state in self.states:
            replayed = self._by_shard(state.stage.name, served, replayed)
        return replayed

    def _by_shard(self, stage: str, served: pa.RecordBatch, replayed: pa.RecordBatch) -> pa.RecordBatch:
        """The rows numbered shard by shard, where the stage had several: here it has one."""
        name = f"stage.{stage}."
        shards = served.column(name + "shard")
        if not len(shards.drop_null().filter(pc.not_equal(shards.drop_null(), 0))) and (stage, 0) not in self.positions:
            return replayed
        keyed = np.flatnonzero(np.asarray(shards.is_valid()))
        of = shards.drop_null().to_numpy()
        order = np.lexsort((served.column(name + "position").drop_null().to_numpy(), of))
        positions = np.zeros(served.num_rows, np.int64)
        start = 0
        for shard, count in enumerate(np.bincount(of).tolist()):
            first = self.positions.get((stage, shard), 0)
            positions[keyed[order[start : start + count]]] = first + np.arange(count)
            self.positions[stage, shard] = first + count
            start += count
        mine = replayed.schema.names.index(name + "position")
        numbers = pa.array(positions, mask=~np.asarray(shards.is_valid()))
        replayed = replayed.set_column(mine, name + "position", numbers)
        return replayed.set_column(replayed.schema.names.index(name + "shard"), name + "shard", shards)

    def check_identities(self) -> None:
        """After the last chunk.

        Raises:
            HistoryError: an identity comes twice; the archive holds each once.
        """
        hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *self._identities]))
        again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(again):
            return
        seen: set[tuple[str, str]] = set()  # of equal hashes, which different identities could have, too
        for served in served_chunks(self._archive):
            rows = np.flatnonzero(np.isin(Evaluator(served).identities(), again))
            part = served.select(["event_type", "event_id"]).take(pa.array(rows))
            for event_type, event_id in zip(part[0].to_pylist(), part[1].to_pylist(), strict=True):
                if (event_type, event_id) in seen:
                    raise HistoryError(
                        f"event {event_id} of type {event_type} stands twice in the archive, wanted it once"
                    )
                seen.add((event_type, event_id))


def read_served(archive: Path) -> pa.RecordBatch | None:
    """All archived rows as one block, see `served_chunks`; None if there are none."""
    return next(served_chunks(archive, sys.maxsize), None)
