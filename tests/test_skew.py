"""The skew suite: our columns pass, the others are what the committed table says, and the documents show it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.skew import ours_stream, runs, table
from benchmarks.skew.cases import ANY, FOLDER, NO_ANSWER, Case, Value, load_case, load_cases
from benchmarks.skew.grade import FAIL, NOT_APPLICABLE, PASS, agreed, judged, right, same
from benchmarks.skew.ours import app_of
from benchmarks.skew.systems import SYSTEMS, System
from commands.bench_skew import skew
from shared_features.errors import ConfigurationError
from shared_features.plan import Plan
from shared_features.reactions import reaction_stages
from shared_features.state import StageState
from shared_features.validate import MAX_FUTURE_S
from streaming.recovery import Recovered
from tests import repository
from tests.oracle import Row, answers

CASES = {case.name: case for case in load_cases()}
GUIDE = Path("benchmarks/skew/README.md")


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """All systems over all cases, once."""
    return runs.run()


def test_this_library_passes_every_case_in_batch_and_live(result: dict[str, Any]) -> None:
    ours = result["systems"]["Sameriver"]
    for side in ("batch", "stream", "agree"):
        assert {name: one for name, one in ours[side].items() if one["verdict"] != PASS} == {}
        assert ours["counts"][side] == {PASS: len(CASES), FAIL: 0, NOT_APPLICABLE: 0}


def test_this_library_gives_the_wanted_bits_and_types(result: dict[str, Any]) -> None:
    """Others are allowed an error in the tenth digit; here every value is the double, or integer, of the case."""
    for side in ("batch", "stream"):
        for name, one in result["systems"]["Sameriver"][side].items():
            for event, got in zip(CASES[name].events, one["got"], strict=True):
                assert event.expect == ANY or same(event.expect, got), (side, name, event)


def test_every_system_fails_where_the_committed_table_says(result: dict[str, Any]) -> None:
    expected = runs.expected()
    assert list(expected) == [system.name for system in SYSTEMS]
    for system, found in result["systems"].items():
        sides = {name: [side for side in table.SIDES if found[side][name]["verdict"] == FAIL] for name in CASES}
        known = {name: one["fails"] for name, one in expected[system].items() if one["fails"]}
        assert {name: fails for name, fails in sides.items() if fails} == known, system
        assert set(expected[system]) <= set(CASES)
        assert all(one["why"].endswith(".") for one in expected[system].values())


def test_the_documents_show_this_very_table(result: dict[str, Any]) -> None:
    assert table.written(repository.ROOT / GUIDE) == table.markdown(result), "renew it: sameriver bench skew --write"
    in_readme = table.written(repository.ROOT / "README.md")
    assert in_readme in (None, table.markdown(result)), "renew it: sameriver bench skew --write"


def test_only_what_streams_can_agree_and_only_what_runs_can_restart(result: dict[str, Any]) -> None:
    for system in SYSTEMS:
        counts = result["systems"][system.name]["counts"]
        assert result["systems"][system.name]["streams"] == (system.stream is not None)
        if system.stream is None:
            assert counts["agree"] == {PASS: 0, FAIL: 0, NOT_APPLICABLE: len(CASES)}
        assert counts["batch"][NOT_APPLICABLE] == (0 if system.restarts else 2)


def test_each_cell_that_is_no_pass_has_its_reason_below(result: dict[str, Any], capsys: Any) -> None:
    numbers = table.notes(result)
    assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))
    assert all(text.endswith(".") for text in numbers)
    table.report(result)
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert all(text in shown for text in numbers)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_what_a_case_wants_is_what_the_oracle_says(case: Case) -> None:
    """The numbers of the files follow from the contract, computed slowly and without the kernel."""
    app = app_of([case])
    (aggregate,) = app.aggregates()
    folded: dict[int, Row] = {}
    identities: set[str] = set()
    for number, event in enumerate(case.events):
        refused = event.value is not None and not math.isfinite(event.value)
        refused |= event.event_id in identities or event.at_us > event.arrives_us + MAX_FUTURE_S * 1_000_000
        if not refused:
            value = event.value
            if value is not None and case.ask.value_type == "double":
                value = float(value)
            folded[number] = Row(event.key, event.at_us, number, {aggregate.key: value})
        identities.add(event.event_id)
    said = answers(list(folded.values()), [aggregate], app.lateness_us)
    for number, answer in zip(folded, said, strict=True):
        assert right(case.events[number].expect, answer.get(aggregate.key)), case.events[number]
    assert all(case.events[number].expect == ANY for number in range(len(case.events)) if number not in folded)


def test_a_job_that_forgets_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart without recovery, and shards that start empty, fail their cases: the cases are no formality."""
    cases = [CASES["restart"], CASES["reshard"]]

    def forget(plan: Plan, *_: Any, **__: Any) -> Recovered:
        return Recovered([StageState(stage) for stage in plan.stages], reaction_stages(plan.app), 0, 0)

    monkeypatch.setattr(ours_stream, "recover", forget)
    monkeypatch.setattr(ours_stream, "reshard", lambda plan, _, shards: [StageState(plan.stages[0])] * shards)
    got = ours_stream.stream(cases)
    assert judged(cases[0], got["restart"])[0] == FAIL
    assert judged(cases[1], got["reshard"])[1].startswith("event 5: wanted 2.0, got 3.0")


def test_cases_are_small_and_say_why() -> None:
    assert len(CASES) == 30
    for case in CASES.values():
        rows = json.loads(next(FOLDER.glob(f"*-{case.name}.json")).read_text("utf-8"))["events"]
        assert 3 <= len(rows) <= 10
        assert case.about.endswith(".")
        assert all(event.why.endswith(".") for event in case.events)


def _case() -> Case:
    return CASES["plain"]


def test_judging() -> None:
    wanted = _case().wanted
    assert judged(_case(), wanted) == (PASS, "")
    assert judged(_case(), wanted[:2]) == (FAIL, "gave 2 values for 4 events")
    assert judged(_case(), ValueError("no\nway")) == (FAIL, "raised ValueError: no")
    assert judged(_case(), [2.0, NO_ANSWER, 4.0, 6.0])[1] == "event 2: wanted 3.0, got no answer. Two events."
    assert agreed(_case(), wanted, [2.0, 3.0, 4.0, 6.000000000000001])[0] == FAIL
    assert agreed(_case(), wanted, ValueError("no"))[0] == FAIL
    assert agreed(_case(), wanted, wanted[:1]) == (FAIL, "batch gave 4 values, stream 1")


@pytest.mark.parametrize(
    ("wanted", "got", "verdict"),
    [
        (1.0, 1.0 + 1e-12, True),
        (1.0, 1.0 + 1e-6, False),
        (0.0, None, False),
        (None, 0.0, False),
        (None, None, True),
        (None, NO_ANSWER, False),
        (2**53 + 1, float(2**53), False),
        (3, 3.0, True),
        (1.0, float("nan"), False),
        (ANY, NO_ANSWER, True),
    ],
)
def test_a_value_is_right_or_not(wanted: Value, got: Value, verdict: bool) -> None:
    assert right(wanted, got) is verdict


def test_the_same_is_the_same_bits() -> None:
    assert same(None, None)
    assert same(float("nan"), float("nan"))
    assert not same(0.0, -0.0)
    assert not same(1, 1.0)
    assert not same(None, 0.0)


@pytest.mark.parametrize(
    ("ask", "row", "complaint"),
    [
        ({"operation": "median"}, {}, "median"),
        ({"value_type": "int"}, {}, "wanted double or long"),
        ({"colour": "red"}, {}, "names .'colour'. are not known"),
        ({}, {"expect": "none"}, "wanted a value of type double and an expectation"),
        ({"value_type": "long"}, {"value": 1.5}, "wanted a value of type long"),
        ({}, {"at": "2024-11-05T10:00:00"}, "has no zone"),
        ({}, {"do": "dance"}, "wanted restart, or reshard"),
    ],
)
def test_a_case_that_cannot_be_read_is_named(
    tmp_path: Path, ask: dict[str, Any], row: dict[str, Any], complaint: str
) -> None:
    written = {
        "title": "",
        "about": "",
        "ask": {"operation": "mean", "over": "1h"} | ask,
        "events": [row if "do" in row else {"at": "10:00:00", "value": 1, "expect": 1, "why": ""} | row],
    }
    file = tmp_path / "10-wrong.json"
    file.write_text(json.dumps(written))
    with pytest.raises(ConfigurationError, match=rf"case .*10-wrong.json cannot be read .*{complaint}"):
        load_case(file)
    file.write_text("{")
    with pytest.raises(ConfigurationError, match=r"cannot be read \(JSONDecodeError"):
        load_case(file)


def test_a_folder_without_cases_and_a_system_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no case: wanted files such as 12-tie.json"):
        load_cases(tmp_path)
    with pytest.raises(ConfigurationError, match=r"system 'R' is not known: wanted some of Sameriver, pandas"):
        runs.run(systems=["R"])


def test_an_adapter_that_raises_has_failed_and_says_so() -> None:
    broken = System("broken", ("no-such-package",), batch="tests.test_skew:broken_adapter")
    found = runs.run(among=[broken])["systems"]["broken"]
    assert found["counts"]["batch"] == {PASS: 0, FAIL: 28, NOT_APPLICABLE: 2}
    assert found["batch"]["tie"]["seen"] == "raised KeyError: 'mean'"
    assert found["versions"] == {"no-such-package": "not installed"}


def broken_adapter(case: Case) -> list[Value]:
    """An adapter that knows no operation."""
    raise KeyError(case.ask.operation)


def test_the_adapter_of_the_guide_runs(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [one for one in repository.code_blocks("python") if one.path == GUIDE]
    file = tmp_path / "skew_guide.py"
    file.write_text(block.code.replace('["Sameriver", "mine"]', '["mine"]'))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, module)
    spec.loader.exec_module(module)
    assert re.search(r"\b2\d / 28\b", capsys.readouterr().out)


def test_the_command_prints_one_json_object_last() -> None:
    done = CliRunner().invoke(skew, ["--system", "pandas", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["systems"]) == ["pandas"]
    assert found["systems"]["pandas"]["batch"]["late"]["verdict"] == FAIL


def test_the_table_goes_between_the_marks(tmp_path: Path) -> None:
    result = runs.run(systems=["pandas"])
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{table.BEGIN}\nold\n{table.END}\n\nbelow\n")
    table.write(result, page)
    assert page.read_text() == f"above\n\n{table.BEGIN}\n{table.markdown(result)}{table.END}\n\nbelow\n"
    assert table.written(page) == table.markdown(result)
    page.write_text("no marks")
    with pytest.raises(ConfigurationError, match="has no place for the table"):
        table.write(result, page)
    assert table.written(page) is None
