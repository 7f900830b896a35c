"""The commands of docs/explore.md run, on a month of real flights."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli import main
from tests import histories, repository


def test_sql_and_profiles_of_the_guide(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    history, training = tmp_path / "var" / "history" / "flights", tmp_path / "var" / "training" / "flights" / "train"
    for folder in (history, training):
        folder.mkdir(parents=True)
    shutil.copy(histories.flights(tmp_path_factory) / "2013-01.parquet", history)
    departed = pq.read_table(history / "2013-01.parquet", columns=["departed"]).flatten()
    departed = departed.filter(pc.is_valid(departed["departed.flight_id"]))
    delay = departed["departed.departure_delay"]
    columns = {"origin": departed["departed.origin"], "departure_delay": delay, "label": pc.greater(delay, 15)}
    pq.write_table(pa.table(columns), training / "2013-01.parquet")
    said = []
    for block in repository.code_blocks("sh"):
        if block.path == Path("docs/explore.md") and "tests/test_explore_doc.py" in block.before:
            for line in block.code.splitlines():
                done = CliRunner().invoke(main, shlex.split(line)[1:])
                assert done.exit_code == 0, (line, done.output)
                said.append(done.output)
    assert len(said) == 8
    assert {line.split()[0] for line in said[1].splitlines()[1:]} == {"EWR", "JFK", "LGA"}
    assert len(list((tmp_path / "flights-csv").glob("part-*.csv"))) == 1
    assert (tmp_path / "delays.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "profile.html").read_text().count("<section>") == 3
