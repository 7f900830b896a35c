"""Several workers train one model: the same as one worker, also where one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_features.errors import ConfigurationError
from tests import processes, training_rows, training_worker
from tests.processes import free_port, wait_until
from training.batches import ShuffledBatches
from training.rows import open_rows
from training.together import PLACE, Alone, OneMachine, WorkerLostError, place, together

OPTIONS = json.dumps({"crosses": [["shop", "carrier"]], "units": [16], "epochs": 3, "dropout": 0.0})


def test_workers_share_each_batch(tmp_path: Path) -> None:
    rows = open_rows(training_rows.write(tmp_path / "rows"))
    options: dict[str, Any] = {"batch_rows": 256, "seed": 3}
    whole = list(ShuffledBatches(rows, **options).epoch(2))
    parts = [list(ShuffledBatches(rows, **options, rank=rank, workers=3).epoch(2)) for rank in range(3)]
    assert len(whole) == 24
    assert {len(part) for part in parts} == {24}
    for number, (numbers, _, labels) in enumerate(whole):
        for rank in range(3):
            np.testing.assert_array_equal(parts[rank][number][0], numbers[rank::3])
            np.testing.assert_array_equal(parts[rank][number][2], labels[rank::3])


def test_vectors_are_added_in_the_order_of_the_workers(tmp_path: Path) -> None:
    """The sum of 1e8, 1 and -1e8 in float32 depends on the order; here on nothing else."""
    vectors = [np.array([1e8, rank, 2.0], np.float32) * sign for rank, sign in enumerate((1, 1, -1))]
    sums: dict[int, Any] = {}

    def work(rank: int) -> None:
        workers = OneMachine(rank, 3, str(tmp_path / "workers"))
        sums[rank] = [workers._add_up(vectors[rank]) for _ in range(3)][-1]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    wanted = (vectors[0] + vectors[1]) + vectors[2]
    assert {tuple(found.tolist()) for found in sums.values()} == {tuple(wanted.tolist())}


def test_a_killed_worker_is_started_again_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    log = tmp_path / "log"
    log.touch()
    code = "import sys; from training.several import main; sys.exit(main(module='tests.training_worker'))"
    started = processes.start(["-c", code, "--workers", "2", "--models", str(tmp_path), "--log", str(log)])
    wait_until((tmp_path / "line" / ".checkpoint-x.npz").exists, what="a step is done")
    begun = [line.split() for line in log.read_text().splitlines()]
    os.kill(next(int(pid) for rank, pid, _ in begun if rank == "1"), signal.SIGKILL)
    assert started.wait() == 0, started.tail()
    begun = [line.split() for line in log.read_text().splitlines()]
    assert sorted((rank, held) for rank, _, held in begun) == [
        (str(rank), held) for rank in range(2) for held in ("False", "True")
    ]
    said = [line for line in started.lines if "all start again from the last epoch" in line]
    assert len(said) == 1
    assert float(started.lines[-1]) == pytest.approx(training_worker.descend(), abs=1e-6)


def test_a_worker_that_is_alone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.together.CONNECT_S", 0.1)
    with pytest.raises(WorkerLostError, match="the first worker is not there"):
        OneMachine(1, 2, str(tmp_path / "nobody"))


@pytest.mark.parametrize(
    ("cluster", "task", "found"),
    [
        ({}, {}, (0, 1)),
        ({"worker": ["a:1"]}, {"type": "worker", "index": 0}, (0, 1)),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, (1, 2)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, {"type": "worker", "index": 1}, (2, 3)),
    ],
)
def test_the_place_in_a_cluster(
    monkeypatch: pytest.MonkeyPatch, cluster: Any, task: Any, found: tuple[int, int]
) -> None:
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert place() == found


@pytest.mark.parametrize("text", ["{", "[]", '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "ps"}}'])
def test_a_cluster_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigurationError, match="TF_CONFIG must name the cluster's workers"):
        place()


def test_one_worker_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TF_CONFIG", PLACE):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(together(), Alone)
    assert together().add_up(3) == 3


# -- with TensorFlow ----------------------------------------------------------------------------------------------


def summary(home: Path) -> dict[str, Any]:
    """What is kept with the model."""
    path = home / "wide_and_deep" / "1" / "assets.extra" / "sameriver.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def arguments(rows: Path, home: Path) -> list[str]:
    return ["--rows", str(rows), "--models", str(home), "--options", OPTIONS, "--seed", "3", "--json"]


@pytest.mark.soak
def test_two_workers_train_what_one_trains(tmp_path: Path) -> None:
    """On one machine, one worker killed in mid-training; and as a cluster by TF_CONFIG, by TensorFlow's collectives.

    The one worker adds up, too: Keras treats gradients of embeddings in another way where nothing is added up.
    """
    rows = training_rows.write(tmp_path / "rows", shards=2)
    one = processes.start(["-m", "training.several", "--workers", "1", *arguments(rows, tmp_path / "one")])
    assert one.wait() == 0, one.tail()

    two = processes.start(["-m", "training.several", "--workers", "2", *arguments(rows, tmp_path / "two")])
    two.wait_for_line("epoch 1 of 3: validation", 300)
    inner = subprocess.run(["pgrep", "-P", str(two.process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(inner.stdout.split()[-1]), signal.SIGKILL)
    two.wait_for_line("going on after epoch 1 of 3", 300)
    assert two.wait() == 0, two.tail()

    ports = [free_port(), free_port()]
    members = []
    for index in range(2):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        told = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        command = ["-m", "training.train", *arguments(rows, tmp_path / "cluster")]
        members.append(processes.start(command, env={"TF_CONFIG": told}))
    for member in members:
        assert member.wait() == 0, member.tail()
    assert json.loads(members[1].lines[-1]) == {"worker": 2, "workers": 2}

    alone = summary(tmp_path / "one")
    for name in ("two", "cluster"):
        found = summary(tmp_path / name)
        assert found["workers"] == 2
        assert found["recipe"] != alone["recipe"]
        assert found["epochs"][0]["train_log_loss"] == pytest.approx(alone["epochs"][0]["train_log_loss"], abs=1e-5)
        for split in ("validate", "test"):
            for figure in ("auc", "log_loss"):
                assert found["metrics"][split][figure] == pytest.approx(alone["metrics"][split][figure], abs=2e-4)
