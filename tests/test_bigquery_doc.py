"""The commands of docs/bigquery.md, in their order, on what a job archived, against emulators."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from batch import bigquery
from batch.bigquery_service import Endpoints
from batch.files import open_files
from cli import main
from tests import repository
from tests.bigquery_server import environment
from tests.histories import block_of
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_traindata import EVENTS

BLOCKS = [block for block in repository.code_blocks("sh") if f"run by tests/{Path(__file__).name}" in block.before]


def test_the_commands_do_what_the_page_says(
    bigquery_endpoints: Endpoints, storage_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(bigquery_endpoints).items():
        monkeypatch.setenv(name, value)
    shop = str(Path(__file__).parent / "shop")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    monkeypatch.setenv("SAMERIVER_ARCHIVE_EXPORT_APP", shop)
    monkeypatch.setenv("SAMERIVER_TRAINDATA_APP", shop)
    monkeypatch.chdir(tmp_path)
    serve(app, to_messages(app, block_of(EVENTS)), tmp_path / "var" / "archive" / "shop")
    lines = [line for block in BLOCKS for line in block.code.splitlines()]
    assert len(lines) == 9
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "sameriver"
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, f"{line}\n{done.output}"
    rows = {name: count(f"bq://my-project.river.{name}") for name in ("events", "predictions", "reactions", "training")}
    assert rows["events"] == len(EVENTS)
    assert rows["events"] > rows["predictions"] > rows["reactions"] > 0
    assert rows["training"] > 0
    assert list((tmp_path / "rows-csv").rglob("*.csv"))
    assert any(name.endswith(".tfrecord") for name in open_files("gs://lake/training").names())


def count(uri: str) -> int:
    return sum(batch.num_rows for batch in bigquery.read_table(uri))
