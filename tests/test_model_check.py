"""The check of a pull request's model, and the year in which the world changes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from benchmarks.model_check import WORST, compare
from benchmarks.year import world
from tests import repository
from tests.repository import ROOT


def told(**figures: float) -> dict[str, Any]:
    return {"figures": dict.fromkeys(WORST, 0.5) | figures, "kpis": {"missed": 0.1}, "fingerprint": "f"}


@pytest.mark.parametrize(
    ("head", "broken"),
    [
        (told(), []),
        (told(auc=0.9, log_loss=0.1), []),
        (told(auc=0.496, log_loss=0.509), []),
        (told(auc=0.49), ["auc"]),
        (told(log_loss=0.52, calibration_error=0.6), ["log_loss", "calibration_error"]),
    ],
)
def test_what_is_worse_by_too_much_is_named(head: dict[str, Any], broken: list[str]) -> None:
    table, found = compare(head, told())
    assert found == broken
    assert table.count("✗") == len(broken)
    assert "| KPI missed | 0.1000 | 0.1000 |" in table
    assert "others: what is live must be trained again" in compare({**head, "fingerprint": "g"}, told())[0]


def test_the_workflow_does_what_make_does() -> None:
    steps = yaml.safe_load(repository.text(Path(".github/workflows/model.yml")))["jobs"]["compare"]["steps"]
    made = [words for step in steps for words in re.findall(r"make (.+?) ARGS", step.get("run", ""))]
    assert made == ["setup model", "setup model"]
    assert re.search(
        r"^model: setup .*\n\t.*-m benchmarks.model_check", repository.text(Path("Makefile")), re.MULTILINE
    )


def test_the_world_changes_in_july_and_not_before() -> None:
    def flights(day: str) -> tuple[pa.Table, list[float]]:
        times = pa.array([f"{day}T{hour}:00:00Z" for hour in (12, 14, 14)]).cast(pa.timestamp("us", "UTC"))
        departed = pa.array([{"flight_id": "a", "departure_delay": 60.0}, None, None])
        landed = [{"flight_id": "a", "arrival_delay": 50.0, "air_time": 60.0}]
        landed += [{"flight_id": "b", "arrival_delay": None, "air_time": 300.0}]
        arrived = pa.array([None, *landed])
        kinds = pa.array(["departed", "arrived", "arrived"])
        table = pa.table({"event_type": kinds, "event_time": times, "departed": departed, "arrived": arrived})
        changed = world.changed(table)
        return table, pc.struct_field(changed["arrived"].combine_chunks(), "arrival_delay").to_pylist()

    assert flights("2013-06-30")[1] == [None, 50.0, None]
    assert flights("2013-07-02")[1] == [None, 50.0 - 55.0, None]


@pytest.mark.soak
def test_a_sample_is_trained_on_and_compared(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.model_check", "--out"]
    subprocess.run([*command, str(tmp_path / "base.json")], check=True, cwd=ROOT)
    again = [*command, str(tmp_path / "head.json"), "--against", str(tmp_path / "base.json")]
    done = subprocess.run(again, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("base.json", "head.json"))
    assert before == after  # the same code makes the same model
    assert before["figures"]["auc"] > 0.85


@pytest.mark.soak
def test_the_year_has_its_alarm_its_retraining_and_its_recovery(tmp_path: Path) -> None:
    picture = tmp_path / "year.png"
    command = [sys.executable, "-m", "benchmarks.year", "--work", str(tmp_path / "work"), "--plot", str(picture)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    found = json.loads(done.stdout)
    before, changed, after = found["auc"].values()
    assert picture.stat().st_size > 20_000
    assert changed["version 1 alone"] < before["served"] - 0.2
    assert after["served"] > after["version 1 alone"] + 0.15
    alarms = [one["judged_at"] for one in found["alarms"] if one["on"] and one["judged_at"] > found["change"]]
    assert alarms[0] < "2013-07-15"
