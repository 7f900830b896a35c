"""The search for better options: what is tried, that a killed search goes on, workers, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared_features import Between, Model
from shared_features.errors import ConfigurationError, DefinitionError
from tests import training_rows
from training.progress import Progress
from training.tune import SPACES, tune

pytestmark = pytest.mark.tensorflow

OPTIONS = {"iterations": 6, "min_leaf_rows": 5}
MODEL = Model("boosted_trees", space={"leaves": [4, 8, 16, 31], "learning_rate": Between(0.05, 0.5, log=True)})


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = {split: training_rows.table(count, seed) for seed, (split, count) in enumerate(SIZES.items())}
    return training_rows.write(tmp_path_factory.mktemp("tune") / "rows", few)


SIZES = {"train": 1_500, "validate": 500, "test": 50}


class Killed(BaseException):
    """As SIGKILL: nothing that was meant to run afterwards does."""


def search(rows: Path, out: Path, trials: int = 7, killed_after: int = 99, **more: Any) -> dict[str, Any]:
    def tell(progress: Progress) -> None:
        if progress.detail.startswith(f"trial {killed_after} of"):
            raise Killed

    return tune(rows, "boosted_trees", out, options=OPTIONS, space=MODEL.space, trials=trials, progress=tell, **more)


def tried(report: Mapping[str, Any]) -> list[tuple[int, str, float]]:
    return [(one["number"], json.dumps(one["options"]), one["log_loss"]) for one in report["trials"]]


def test_a_search_that_was_killed_goes_on_and_ends_as_one_that_was_not(rows: Path, tmp_path: Path) -> None:
    whole = search(rows, tmp_path / "one", strategy="random")
    with pytest.raises(Killed):
        search(rows, tmp_path / "two", strategy="random", killed_after=3)
    (state,) = (tmp_path / "two").glob("search-*.json")
    assert len(json.loads(state.read_text())["tried"]) == 3
    assert tried(search(rows, tmp_path / "two", strategy="random")) == tried(whole)
    assert tried(search(rows, tmp_path / "two", strategy="random", trials=9))[:7] == tried(whole)

    assert [one["number"] for one in whole["trials"]] == list(range(7))
    assert whole["trials"][0]["options"] == {}
    for one in whole["trials"][1:]:
        assert one["options"]["leaves"] in (4, 8, 16, 31)
        assert 0.05 <= one["options"]["learning_rate"] <= 0.5
    best = min(whole["trials"], key=lambda one: one["log_loss"])
    assert whole["best"] == {**best, "options": OPTIONS | best["options"]}
    assert whole["best"]["log_loss"] < whole["defaults"]["log_loss"]

    state.write_text('{"tried": ')
    with pytest.raises(ConfigurationError, match=r"search-.* is damaged .*: remove it, and the search begins anew"):
        search(rows, tmp_path / "two", strategy="random")


def test_workers_try_side_by_side_and_the_process_learns(rows: Path, tmp_path: Path) -> None:
    """Every finished trial is known to the next; a trial that was begun and not finished is tried again."""
    report = search(rows, tmp_path, workers=2)
    assert [one["number"] for one in report["trials"]] == list(range(7))
    assert len({one["log_loss"] for one in report["trials"]}) > 4
    held = json.loads(next(tmp_path.glob("search-*.json")).read_text())
    assert held["oracle"]["ongoing_trials"] == {}
    held["tried"] = [one for one in held["tried"] if one["number"] != 4]
    trial = next(one for one in held["trials"] if int(one["trial_id"]) == 3)
    trial |= {"status": "RUNNING", "score": None}
    held["oracle"]["ongoing_trials"] = {"worker-4": trial["trial_id"]}
    next(tmp_path.glob("search-*.json")).write_text(json.dumps(held))
    again = search(rows, tmp_path)
    assert tried(again) == tried(report)

    page = (tmp_path / "tuning.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "the app&#x27;s own" in page
    assert "<td>trial 6</td>" in page
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "tuning.json").read_text()) == again


def test_what_was_running_is_tried_again_each_once(tmp_path: Path) -> None:
    from training.search import Search

    def opened() -> Search:
        return Search(tmp_path / "search.json", MODEL.space, "bayesian", 9, seed=1)

    first = opened()
    begun = [first.next() for _ in range(4)]
    assert begun[0] is not None
    first.finish(1, 0.5, 0.7, 1.0, begun[0][1])
    again = opened()  # the first one is as good as killed
    assert [again.next() for _ in range(3)] == begun[1:]
    new = again.next()
    assert new is not None
    assert new[0] == 5
    again.finish(5, float("nan"), float("nan"), 1.0, new[1])
    assert [(one.number, one.log_loss) for one in opened().tried] == [(1, 0.5), (5, None)]
    best = opened().best()
    assert best is not None
    assert best.number == 1


def test_no_trial_begins_after_the_time(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="None of 0 trials came out well"):
        search(rows, tmp_path, minutes=1e-9)


def test_a_kind_without_options_is_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"must be one of wide_and_deep, .*, but is 'polynomial_logistic'"):
        tune(rows, "polynomial_logistic", tmp_path)
    with pytest.raises(ConfigurationError, match="Model boosted_trees has no option 'units'"):
        tune(rows, "boosted_trees", tmp_path, options=OPTIONS, space={"units": [[1], [2]]}, trials=3)
    assert set(SPACES) == {"wide_and_deep", "deep", "logistic", "boosted_trees"}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"units": [[8]]}, r"the space of model 'deep' got \[\[8\]\] for 'units', wanted a list of two or more"),
        ({"dropout": 0.5}, "got 0.5 for 'dropout', wanted a list of two or more values, or Between"),
    ],
)
def test_a_wrong_space_is_refused(space: dict[str, Any], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        Model("deep", space=space)


@pytest.mark.parametrize("ends", [(2, 1), (1, 1), ("a", 2), (True, 2)])
def test_a_wrong_range_is_refused(ends: tuple[Any, Any]) -> None:
    with pytest.raises(DefinitionError, match="wanted two numbers, the smaller one first"):
        Between(*ends)
    with pytest.raises(DefinitionError, match="and above 0"):
        Between(0, 1, log=True)
