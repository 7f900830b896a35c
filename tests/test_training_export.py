"""Versioned folders of models, and what options a model takes; without TensorFlow."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_features.errors import ConfigurationError
from training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.export import SUMMARY, latest_version, read_summary, staged_name, staged_version, versions, write_summary
from training.options import WideAndDeepOptions
from training.progress import run_command

NUMBERS, TEXTS = ("delay", "hour"), ("shop", "carrier")


def test_a_version_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    home = tmp_path / "wide_and_deep"
    with staged_version(tmp_path, "wide_and_deep") as staged:
        (staged.folder / "saved_model.pb").write_bytes(b"1")
        assert versions(home) == []  # being written, not there
        assert staged.publish() == (1, home / "1")
    assert [path.name for path in home.iterdir()] == ["1"]
    with contextlib.suppress(RuntimeError), staged_version(tmp_path, "wide_and_deep") as staged:
        (staged.folder / "saved_model.pb").write_bytes(b"half")
        raise RuntimeError("trained no further")
    assert [path.name for path in home.iterdir()] == ["1"]


def test_the_next_version_is_the_next_number_whatever_else_lies_there(tmp_path: Path) -> None:
    home = tmp_path / "m"
    for name in ("2", "10", "reports", ".staged-old"):
        (home / name).mkdir(parents=True)
    (home / "99").write_text("a file")
    with staged_version(tmp_path, "m") as staged:
        assert staged.publish()[0] == 11
    assert versions(home) == [2, 10, 11]
    assert latest_version(tmp_path, "m") == home / "11"


def test_trainers_at_the_same_time_get_versions_of_their_own(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    found: list[tuple[int, str]] = []

    def publish(name: str) -> None:
        with staged_version(tmp_path, "m") as staged:
            (staged.folder / "who").write_text(name)
            together.wait(timeout=120)
            version, path = staged.publish()
            found.append((version, (path / "who").read_text()))

    threads = [threading.Thread(target=publish, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert sorted(version for version, _ in found) == list(range(1, 9))
    assert sorted(name for _, name in found) == [str(number) for number in range(8)]


def test_folders_that_hold_no_model_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Model m needs a version in .*, but there is none: run .*train"):
        latest_version(tmp_path, "m")
    with pytest.raises(ConfigurationError, match="cannot be read: train it"):
        read_summary(tmp_path)
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match=r"a folder that can be written, but .* cannot"),
        staged_version(tmp_path / "file", "m"),
    ):
        pass


def test_a_checkpoint_is_whole_or_damaged_and_then_named(tmp_path: Path) -> None:
    state = Checkpoint(epoch=2, done=9, worse=1, measured=[{"auc": 0.5}], best=(0.25, [np.ones(3)]))
    write_checkpoint(tmp_path / "c.npz", [], state)
    assert [path.name for path in tmp_path.iterdir()] == ["c.npz"]
    found = read_checkpoint(tmp_path / "c.npz", [])
    assert found is not None
    assert (found.epoch, found.done, found.worse, found.measured, found.best[0]) == (2, 9, 1, [{"auc": 0.5}], 0.25)
    whole = (tmp_path / "c.npz").read_bytes()
    for damaged in (b"", b"PK", whole[: len(whole) // 2], whole.replace(b'{"epoch"', b'["epoch"')):
        (tmp_path / "c.npz").write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"c.npz is damaged .*: remove it, and the training begins anew"):
            read_checkpoint(tmp_path / "c.npz", [])
    assert read_checkpoint(tmp_path / "none.npz", []) is None


def test_what_a_killed_training_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    home = tmp_path / "m"
    home.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = str(os.getpid())
    for name in ("folder", "checkpoint"):
        for owner in (mine, str(ended.pid)):
            path = home / staged_name(name).replace(f"-{mine}-", f"-{owner}-")
            path.mkdir() if name == "folder" else path.write_bytes(b"half")
    with staged_version(tmp_path, "m"):
        pass
    assert {path.name for path in home.iterdir()} == {staged_name("folder"), staged_name("checkpoint")}


def test_what_the_operating_system_refuses_is_told_to_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: object) -> dict[str, object]:
        Path("/dev/full").write_text("x")
        return {}

    def missing(_: object) -> dict[str, object]:
        return {"text": Path("/dev/full/model").read_text()}

    for work, said in (
        (full, "A disk has no room left: mend that, and give the same command again."),
        (missing, "/dev/full/model cannot be used (Not a directory): mend that, and give the same command again."),
    ):
        assert run_command(work, str, as_json=True) == 2
        shown = capsys.readouterr()
        assert json.loads(shown.out) == {"error": said, "kind": "ConfigurationError"}
        assert shown.err == f"error: {said}\n"


def test_the_summary_comes_back(tmp_path: Path) -> None:
    write_summary(tmp_path, {"auc": 0.9})
    assert read_summary(tmp_path) == {"auc": 0.9}
    with pytest.raises(ValueError, match="JSON"):
        write_summary(tmp_path, {"auc": float("nan")})
    assert (tmp_path / SUMMARY).name == "sameriver.json"


def test_options_come_from_an_app_file_or_json() -> None:
    given = {
        "crosses": [["shop", "hour"]],
        "units": (32, 16),
        "embeddings": ["shop"],
        "baseline": "delay",
        "dropout": 0,
    }
    options = WideAndDeepOptions.from_mapping(given, NUMBERS, TEXTS)
    assert options.crosses == (("shop", "hour"),)
    assert (options.units, options.embeddings, options.dropout) == ((32, 16), ("shop",), 0.0)
    assert WideAndDeepOptions.from_mapping({}, NUMBERS, TEXTS) == WideAndDeepOptions()
    again = WideAndDeepOptions.from_mapping(json.loads(json.dumps(options.summary())), NUMBERS, TEXTS)
    assert again == options


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": 3}, "no option 'layers'; it has crosses,"),
        ({"crosses": [["shop", "moon"]]}, "'moon' is none of delay, hour, shop, carrier"),
        ({"crosses": [["shop", "shop"]]}, "pairs of two different features, but is"),
        ({"crosses": "shop"}, "a list of pairs"),
        ({"embeddings": ["delay"]}, "a list out of the texts shop, carrier"),
        ({"baseline": "shop"}, "one of the numbers delay, hour"),
        ({"units": [64, 0]}, "whole numbers above 0"),
        ({"dropout": 1.0}, "from 0 to below 1"),
        ({"learning_rate": "fast"}, "a number of 0 or more, but is 'fast'"),
        ({"epochs": 0}, "a whole number of 1 or more"),
        ({"buckets": True}, "a whole number of 1 or more"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        WideAndDeepOptions.from_mapping(given, NUMBERS, TEXTS)


def test_training_is_imported_without_tensorflow() -> None:
    code = (
        "import sys, training.train, training.evaluate, training.export, training.options; "
        "print([name for name in ('tensorflow', 'keras', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.strip() == "[]"
