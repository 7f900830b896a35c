"""Shuffled batches of training rows, the same for the same seed, in bounded memory.

Up to ``POOL_ROWS`` rows the split is held in memory, sorted by event id, and each epoch is one permutation of
it: the result depends on the rows and the seed, not on how the split was sharded. A larger split is streamed:
shards in a new order each epoch, through a pool that is filled, permuted and emptied.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from training.rows import LABEL, Batch, Packed, TrainingRows

POOL_ROWS = 1_000_000


class ShuffledBatches:
    """Batches of the training split, epoch by epoch.

    Args:
        rows: the training rows.
        batch_rows: rows in a batch; the last of an epoch may be smaller.
        seed: with the epoch it decides the order.
        sample_rows: use only these many rows, drawn evenly once; None for all. A streamed split is sampled
            by taking as many rows of each pool.
        pool_rows: rows held in memory at most (twice while a pool is filled).
        rank, workers: take only the rows of this one of several workers, out of every batch.
    """

    def __init__(
        self,
        rows: TrainingRows,
        *,
        batch_rows: int,
        seed: int,
        sample_rows: int | None = None,
        pool_rows: int = POOL_ROWS,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        self._rows = rows
        self._batch_rows = batch_rows
        self._seed = seed
        self._pool_rows = pool_rows
        self._rank, self._workers = rank, workers
        total = rows.counts["train"]
        self._share = min(1.0, (sample_rows or total) / total)
        self._held: Packed | None = None
        if total <= pool_rows:
            columns = [*(feature.name for feature in rows.features), LABEL]
            self._held = self._sampled(rows.packed(rows.table("train", columns)), 0)
        self.rows = sum(self._kept(size) for size in self._pool_sizes())

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return sum(-(-self._kept(size) // self._batch_rows) for size in self._pool_sizes())

    def epoch(self, number: int) -> Iterator[Batch]:
        """All batches of an epoch, in the order that seed and number decide."""
        random = np.random.default_rng([self._seed, number])
        for pool in self._pools(random):
            order = random.permutation(len(pool.labels))
            for start in range(0, len(order), self._batch_rows):
                yield pool.take(order[start : start + self._batch_rows][self._rank :: self._workers])

    def _pools(self, random: np.random.Generator) -> Iterator[Packed]:
        if self._held is not None:
            yield self._held
            return
        paths = self._rows.shards["train"]
        shards = [paths[index] for index in random.permutation(len(paths))]
        blocks: list[pa.RecordBatch] = []
        filled = pools = 0
        for block in self._rows.blocks("train", shards=shards):
            while block.num_rows:
                room = self._pool_rows - filled
                piece, block = block.slice(0, room), block.slice(room)
                blocks.append(piece)
                filled += piece.num_rows
                if filled == self._pool_rows:
                    yield self._sampled(self._rows.packed(pa.Table.from_batches(blocks)), pools)
                    blocks, filled, pools = [], 0, pools + 1
        if filled:
            yield self._sampled(self._rows.packed(pa.Table.from_batches(blocks)), pools)

    def _pool_sizes(self) -> list[int]:
        total = self._rows.counts["train"]
        whole, rest = divmod(total, self._pool_rows)
        return [self._pool_rows] * whole + [rest] * bool(rest)

    def _kept(self, size: int) -> int:
        return max(1, round(size * self._share))

    def _sampled(self, pool: Packed, number: int) -> Packed:
        if self._share == 1.0:
            return pool
        size = len(pool.labels)
        drawn = np.random.default_rng([self._seed, 1 << 32, number]).permutation(size)[: self._kept(size)]
        drawn.sort()
        texts = tuple((codes[drawn], values) for codes, values in pool.texts)
        return Packed(pool.numbers[drawn], texts, pool.labels[drawn])
