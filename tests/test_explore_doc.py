"""The commands of docs/explore.md run, on some flights."""

from __future__ import annotations

import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli import main
from tests import repository


def test_sql_and_profiles_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    history, training = tmp_path / "var" / "history" / "flights", tmp_path / "var" / "training" / "flights" / "train"
    flights = {
        "origin": ["EWR", "JFK", "LGA", "EWR"] * 50,
        "carrier": ["UA", "B6"] * 100,
        "departure_delay": [float(i % 60 - 10) for i in range(200)],
    }
    departed = pa.table(flights)
    events = {
        "event_type": ["departed"] * 200,
        "event_id": [str(i) for i in range(200)],
        "departed": departed.to_struct_array().combine_chunks(),
    }
    for folder, rows in ((history, pa.table(events)), (training, departed)):
        folder.mkdir(parents=True)
        late = pc.greater(departed["departure_delay"], 15)
        pq.write_table(rows.append_column("label", late) if folder == training else rows, folder / "2013-01.parquet")
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
    assert (tmp_path / "profile.html").read_text().count("<section>") == 4
