"""Shuffled batches: every row once an epoch, the same for the same seed, however much memory there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_features import load_app
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


VESSELS = ["vessels=6800", "hours=30", "rated=1.0"]
SPLITS = ["--since", "2024-06-15", "--validate-from", "2024-06-16T03:00:00", "--test-from", "2024-06-16T04:30:00"]


def _run(module: str, *arguments: str | Path) -> tuple[dict[str, Any], int]:
    """The last line that a command says, and its greatest resident memory in bytes."""
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    process = subprocess.Popen(command, cwd=processes.REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        lines = output.read().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return json.loads(lines[-1]), used.ru_maxrss * 1024


@pytest.mark.soak
@pytest.mark.tensorflow
def test_22_million_positions_train_in_three_gigabytes(tmp_path: Path) -> None:
    """A tenth of the world's vessels, ten times. In `make test`, test_training_model trains on two million rows."""
    history, rows = tmp_path / "history", tmp_path / "rows"
    _run("cli", "data", "vessels", "--out", history, *(part for one in VESSELS for part in ("--with", one)))
    made, _ = _run("cli", "traindata", "--app", "vessels", "--history", history, "--out", rows, *SPLITS)
    for shard in list((rows / "train").glob("*.parquet")):
        for copy in range(9):
            shard.with_stem(f"{shard.stem}-{copy}").hardlink_to(shard)
    assert 10 * made["rows"]["train"] > 21_900_000
    options = json.dumps(dict(load_app("vessels").models[0].options) | {"epochs": 1})
    trained, peak = _run("training.train", "--rows", rows, "--models", tmp_path / "models", "--options", options)
    print(f"peak {peak / 1e9:.2f} GB, {trained['duration_s']:.0f} s")
    assert peak < 3_000_000_000
