"""State that an older version wrote: read, and continued with the answers that its own code gave."""

from __future__ import annotations

import json

import pytest

from shared_features.errors import HistoryError
from shared_features.state import ENCODING_VERSION, StageState
from tests.readings import saved
from tests.readings.events import SECOND, make_block
from tests.readings.kernel_rows import differences, expected, fold

VERSIONS = sorted(int(path.stem[1:]) for path in saved.FOLDER.glob("v*.json"))


def _read(version: int) -> tuple[list[StageState], dict[str, list[dict[str, object]]]]:
    parts = json.loads((saved.FOLDER / f"v{version}.json").read_text(encoding="utf-8"))
    stages = saved.plan_of(version).stages
    states = [StageState.load(s, (saved.FOLDER / f"v{version}_{s.name}.bin").read_bytes()) for s in stages]
    return states, parts


def test_every_version_up_to_this_one_has_its_files() -> None:
    assert list(range(1, ENCODING_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_saved_state_goes_on_with_equal_answers(version: int) -> None:
    states, parts = _read(version)
    assert {state.stage.name: state.position for state in states} == parts["positions"][0]
    assert {(state.epoch, state.shard) for state in states} == {(3, 5)}
    assert saved.fold(version, states, parts["later"]) == parts["wanted"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_state_that_is_read_and_written_anew_is_the_one_of_this_version(version: int) -> None:
    """Upgrading loses nothing: the old file, and the same events folded by this code, save to equal bytes."""
    states, parts = _read(version)
    folded = [StageState(state.stage, epoch=3, shard=5) for state in states]
    saved.fold(version, folded, parts["folded"])
    for upgraded, made in zip(states, folded, strict=True):
        if version == 1:  # it did not count rows without a key
            made.missing = 0
        assert upgraded.save() == made.save()
        assert upgraded.retained == made.retained


@pytest.mark.parametrize("version", VERSIONS)
def test_the_answers_in_the_files_are_those_of_this_code_from_the_first_event_on(version: int) -> None:
    _, parts = _read(version)
    states = [StageState(stage) for stage in saved.plan_of(version).stages]
    saved.fold(version, states, parts["folded"])
    assert saved.fold(version, states, parts["later"]) == parts["wanted"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_oracle_agrees_with_the_run_of_the_files(version: int) -> None:
    for stage in saved.plan_of(version).stages:
        rows = saved.events(200)
        assert differences(fold(stage, rows, cuts=[60, 130])[0], expected(stage, rows, 30 * SECOND)) == []


@pytest.mark.parametrize("damage", ["cut", "other stage", "not arrow", "empty"])
def test_what_is_no_state_of_the_stage_is_refused(damage: str) -> None:
    one, two, *_ = saved.plan_of(VERSIONS[-1]).stages
    whole = (saved.FOLDER / f"v{VERSIONS[-1]}_{one.name}.bin").read_bytes()
    data = {"cut": whole[: len(whole) // 2], "other stage": whole, "not arrow": b"no state", "empty": b""}[damage]
    with pytest.raises(HistoryError, match="state of stage"):
        StageState.load(two if damage == "other stage" else one, data)


def test_the_same_events_make_the_files_of_this_version_again() -> None:
    """The made-up run is a function of nothing: a change of its generator would need new files."""
    _, parts = _read(VERSIONS[-1])
    rows = saved.events(200)
    assert rows == parts["folded"] + parts["later"]
    assert make_block(rows).num_rows == 200
