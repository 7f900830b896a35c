"""Shuffled batches: every row once an epoch, the same for the same seed, however much memory there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests import processes, training_rows
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


def test_a_streamed_epoch_holds_a_pool_and_not_the_split(tmp_path: Path) -> None:
    splits = {
        split: training_rows.table(rows, 1) for split, rows in (("train", 40_000), ("validate", 50), ("test", 50))
    }
    rows = open_rows(training_rows.write(tmp_path, splits, shards=8))
    whole = rows.packed(rows.table("train")).numbers.nbytes + 2 * 4 * 40_000  # texts are codes, four bytes each

    def peak(pool_rows: int) -> int:
        tracemalloc.start()
        for _ in ShuffledBatches(rows, batch_rows=256, seed=1, pool_rows=pool_rows).epoch(1):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40_000) > whole
    assert peak(2_000) < whole / 2


def _trained(folder: Path, models: Path) -> tuple[int, float]:
    """Peak resident bytes of a training for one epoch, and the seconds that it took."""
    options = json.dumps({"epochs": 1, "batch_rows": 4096, "units": [32]})
    command = [sys.executable, "-m", "training.train", "--rows", str(folder), "--models", str(models)]
    process = subprocess.Popen(
        [*command, "--options", options, "--json"], cwd=processes.REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss * 1024, json.loads(lines[-1])["duration_s"]


@pytest.mark.soak
@pytest.mark.tensorflow
@pytest.mark.timeout(1800)
def test_two_million_rows_train_in_the_memory_of_one(tmp_path: Path) -> None:
    """Beyond a million rows, which are held, memory does not grow: 22 million rows are allowed 3 GB."""
    peaks = {}
    for millions in (1, 2):
        folder = tmp_path / str(millions)
        for split, shards in (("train", 10 * millions), ("validate", 1), ("test", 1)):
            for shard in range(shards):
                few = training_rows.table(100_000 if split == "train" else 2_000, shard + 1)
                part = training_rows.write(tmp_path / "part", {split: few})
                (folder / split).mkdir(parents=True, exist_ok=True)
                (part / split / "part-0.parquet").rename(folder / split / f"part-{shard:02d}.parquet")
        peaks[millions], seconds = _trained(folder, tmp_path / "models")
        print(f"{millions} million rows: {peaks[millions] / 1e9:.2f} GB, {seconds:.0f} s")
    assert peaks[2] < peaks[1] + 300_000_000
    assert peaks[2] < 3_000_000_000
