"""Shuffled batches: every row once an epoch, the same for the same seed, however much memory there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import training_rows
from training.batches import ShuffledBatches
from training.rows import open_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {split: training_rows.table(500, seed) for seed, split in enumerate(("train", "validate", "test"), 1)}
    return training_rows.write(tmp_path_factory.mktemp("rows"), splits, shards=4)


def _delays(batches: ShuffledBatches, epoch: int) -> np.ndarray:
    return np.concatenate([numbers[:, 0] for numbers, _, _ in batches.epoch(epoch)])


@pytest.mark.parametrize("pool_rows", [500, 120], ids=["in memory", "streamed"])
def test_an_epoch_has_every_row_once_in_an_order_that_seed_and_epoch_decide(folder: Path, pool_rows: int) -> None:
    rows = open_rows(folder)
    batches = ShuffledBatches(rows, batch_rows=64, seed=7, pool_rows=pool_rows)
    first, second = _delays(batches, 1), _delays(batches, 2)
    expected = np.sort(rows.packed(rows.table("train")).numbers[:, 0])
    np.testing.assert_array_equal(np.sort(first), expected)
    np.testing.assert_array_equal(np.sort(second), expected)
    assert not np.array_equal(first, second, equal_nan=True)
    again = ShuffledBatches(rows, batch_rows=64, seed=7, pool_rows=pool_rows)
    np.testing.assert_array_equal(_delays(again, 2), second)
    other = ShuffledBatches(rows, batch_rows=64, seed=8, pool_rows=pool_rows)
    assert not np.array_equal(_delays(other, 1), first, equal_nan=True)
    assert batches.batches == len(list(batches.epoch(1)))
    assert batches.rows == 500


def test_in_memory_the_order_does_not_depend_on_the_shards(folder: Path, tmp_path: Path) -> None:
    splits = {split: training_rows.table(500, seed) for seed, split in enumerate(("train", "validate", "test"), 1)}
    one_shard = open_rows(training_rows.write(tmp_path, splits))
    first = next(ShuffledBatches(open_rows(folder), batch_rows=32, seed=1).epoch(1))
    second = next(ShuffledBatches(one_shard, batch_rows=32, seed=1).epoch(1))
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("pool_rows", [500, 120], ids=["in memory", "streamed"])
def test_a_sample_is_drawn_once_and_of_the_size_asked_for(folder: Path, pool_rows: int) -> None:
    batches = ShuffledBatches(open_rows(folder), batch_rows=16, seed=1, sample_rows=100, pool_rows=pool_rows)
    assert batches.rows == 100
    assert len(_delays(batches, 1)) == 100
    assert batches.batches == len(list(batches.epoch(1)))
    if pool_rows == 500:
        np.testing.assert_array_equal(np.sort(_delays(batches, 1)), np.sort(_delays(batches, 2)))
