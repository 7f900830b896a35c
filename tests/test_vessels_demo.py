"""The vessels' commands: a world of any size by settings, and at length the whole demo."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cli
from tests import processes


def run(*arguments: str | Path, exit_code: int = 0) -> str:
    """What a command prints, standard error too."""
    done = CliRunner().invoke(cli.main, [str(one) for one in arguments])
    assert done.exit_code == exit_code, done.output
    return done.output


def test_data_takes_the_settings_of_the_app_s_history(tmp_path: Path) -> None:
    out = tmp_path / "history"
    command = ["data", "vessels", "--with", "vessels=20", "--with", "hours=2.5", "--with", "rated=0", "--out", str(out)]
    summary = json.loads(run(*command, "--json").splitlines()[-1])
    assert summary["simulated"]
    assert sum(count for name, count in summary["counts"].items() if name.startswith("vessels_")) == 20
    assert pq.read_table(out).num_rows == summary["events"]["position"]
    assert "found, " in run(*command)


@pytest.mark.parametrize(
    ("app", "setting", "said"),
    [
        ("vessels", "vessels", "--with got 'vessels': wanted NAME=VALUE"),
        ("vessels", "ships=3", "has no setting 'ships', only vessels, hours, seed, rated"),
        ("flights", "vessels=3", "has no setting 'vessels', only none"),
        ("vessels", "vessels=two", "setting 'vessels' got 'two': wanted a whole number, such as 300"),
        ("vessels", "hours=0", "wanted 1 to 900,000 vessels, up to 2,400 hours"),
    ],
)
def test_settings_that_do_not_exist(app: str, setting: str, said: str, tmp_path: Path) -> None:
    assert said in run("data", app, "--with", setting, "--out", tmp_path / "history", exit_code=2)


@pytest.mark.soak
def test_the_demo_loses_nothing_and_serves_what_was_trained(tmp_path: Path) -> None:
    command: list[str | Path] = ["-m", "cli", "demo", "--app", "vessels", "--quick", "--json"]
    process = processes.start(command, cwd=tmp_path, env={"PUBSUB_EMULATOR_HOST": None})
    try:
        code = process.wait(900)
    finally:
        process.kill()
    assert code == 0, process.lines[-30:]
    result = json.loads(process.lines[-1])
    assert (result["lost"], result["mismatches"], result["training_mismatches"]) == (0, 0, 0)
    assert result["predictions"] > 100_000
    assert result["reactions"] > 100
    assert result["map"]["hours"] > 100
    picture = tmp_path / result["map"]["picture"]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
