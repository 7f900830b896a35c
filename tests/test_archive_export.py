"""What an archive holds gets to tables and files once: in whatever way an export is cut off, and beside a job."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from batch import bigquery, export
from batch.backfill import backfill
from batch.backfill_rows import Asking
from batch.bigquery_service import Endpoints
from batch.bigquery_writer import BigQueryDestination
from batch.export import Export, Exported
from batch.parquet_files import opened, parquet_files
from batch.parquet_writer import ParquetDestination
from batch.tables import open_history, read_split
from batch.writers import Destination, Written
from cli import main
from shared_features.blocks import flatten
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.plan import make_plan
from streaming import archive_log
from streaming.archive import Archive, compact_archive, read_commits
from streaming.job import create_topics
from streaming.messages import plain
from streaming.topics import Endpoint
from tests import processes
from tests.bigquery_server import environment
from tests.processes import Started
from tests.serving_steps import Served, serve, to_messages
from tests.shop.app import app
from tests.test_verify import sales

SHOP = str(Path(__file__).parent / "shop")
ROWS = 120
IDENTITY = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Served]:
    """An archive of a job that has stopped, and what it published."""
    folder = tmp_path_factory.mktemp("live")
    return folder, serve(app, to_messages(app, sales(ROWS)), folder)


@pytest.fixture
def folder(live: tuple[Path, Served], tmp_path: Path) -> Path:
    return Path(shutil.copytree(live[0], tmp_path / "archive"))


@pytest.fixture
def dataset(bigquery_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in environment(bigquery_endpoints).items():
        monkeypatch.setenv(name, value)
    return "bq://sameriver.archive_export"


def exported(folder: Path, to: str, what: str = "archive") -> Exported:
    running = Export(app, folder, what, to)
    try:
        return running.catch_up()
    finally:
        running.close()


def table(to: str) -> pa.Table:
    """All rows at the destination, with the columns that both kinds have, in the archive's order."""
    if to.startswith("bq://"):
        found = pa.Table.from_batches(bigquery.read_table(to))
        found = found.rename_columns([name.replace("__", ".") for name in found.schema.names])
    else:
        parts = []
        for path in parquet_files(to)[1]:
            with opened(path) as file:
                parts.append(flatten(file.read()))
        found = pa.concat_tables(parts)
    return found.sort_by([("archive_commit", "ascending"), ("archive_row", "ascending")])


@pytest.mark.parametrize("place", ["files", "table", "bucket"])
def test_every_event_is_there_once_and_is_a_history(
    place: str, folder: Path, dataset: str, tmp_path: Path, storage_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage_address)
    to = {"table": f"{dataset}.events", "files": str(tmp_path / "out"), "bucket": "gs://lake/archive/shop"}[place]
    first = exported(folder, to)
    assert (first.written, first.resumed_after) == (Written(rows=ROWS), -1)
    again = exported(folder, to)
    assert (again.written, again.commits, again.resumed_after) == (Written(), 0, first.last)
    commits = pa.Table.from_batches([commit.block for commit in read_commits(folder)])
    found = table(to)
    for name in ("event_type", "event_id", "sale.amount", "visit.length", "stage.shop.position", "feature.sum_10s"):
        assert found[name].combine_chunks().equals(commits[name].combine_chunks()), name
    shops = zip(found["sale.shop"].to_pylist(), found["visit.shop"].to_pylist(), strict=True)
    assert found["key.shop"].to_pylist() == [visit if sale is None else sale for sale, visit in shops]
    history = open_history(to, make_plan(app))
    assert history.archived
    read = pa.Table.from_batches([block for split in history.splits for block in read_split(split)])
    assert sorted(read["event_id"].to_pylist()) == sorted(commits["event_id"].to_pylist())


@pytest.mark.parametrize("what", ["predictions", "reactions"])
@pytest.mark.parametrize("place", ["files", "table"])
def test_what_was_published_is_there_once(
    place: str, what: str, folder: Path, live: tuple[Path, Served], dataset: str, tmp_path: Path
) -> None:
    to = f"{dataset}.{what}" if place == "table" else str(tmp_path / "out")
    done = exported(folder, to, what)
    topic = "shop-predictions" if what == "predictions" else "shop-reaction-praise"
    sent = [plain(message.data) for message in live[1].sent[topic]]
    assert done.written == Written(rows=len(sent))
    identity = f"{what[:-1]}_id"
    rows = {row[identity]: row for row in table(to).to_pylist()}
    assert set(rows) == {record[identity] for record in sent}
    for record in sent:
        row = rows[record[identity]]
        assert row["event_id"] == record["event_id"]
        if what == "predictions":
            assert row["output.probability"] == record["outputs"]["probability"]
            assert {"shop": row["key.shop"], "till": row["key.till"]} == {"till": None, **record["key"]}
            assert row["reaction.praise"] == (record["reactions"] == ["praise"])
        else:
            assert (json.loads(row["payload"]), json.loads(row["key"])) == (record["payload"], record["key"])


def test_an_export_follows_a_job_and_its_compaction(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been read is not read again."""
    to = str(tmp_path / "out")
    running = Export(app, folder, "archive", to)
    with pytest.raises(ConfigurationError, match=r"is being exported to .* already: stop that one"):
        Export(app, folder, "archive", to)
    before = running.catch_up().last
    block = next(iter(read_commits(folder))).block
    opened = Archive(folder, IDENTITY)
    sequence, starts, frames = opened.append(block, {}), list[int](), archive_log.frames

    def looking(file: Any, *, is_last: bool, start: int = 0) -> Iterator[archive_log.Frame]:
        starts.append(start)
        return frames(file, is_last=is_last, start=start)

    monkeypatch.setattr(archive_log, "frames", looking)
    assert running.catch_up().last == before  # it is not published: it could still be another one after a crash
    opened.mark_published(sequence)
    assert running.catch_up().last == sequence
    assert starts.count(0) == 1  # of the segment that is new
    opened.close()
    compact_archive(folder)
    assert running.catch_up().written == Written(rows=ROWS + block.num_rows)
    running.close()
    assert exported(folder, to).written == Written()
    assert len(list(Path(to).rglob("archive-*/*.parquet"))) == 2


def test_a_copy_of_the_archive_goes_on_where_the_destination_is(
    folder: Path, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small pieces, stopped after the first: another copy, without notes, does the rest."""
    monkeypatch.setattr(export, "PIECE_BYTES", 1)
    to = f"{dataset}.copies"
    running = Export(app, folder, "archive", to)
    part = running.catch_up(stopped=lambda: True)
    running.close()
    assert 0 < part.written.rows < ROWS
    other = folder.with_name("copy")
    shutil.copytree(folder, other, ignore=lambda *_: [export.NOTES])
    done = exported(other, to)
    assert done.resumed_after == part.last
    assert part.written + done.written == Written(rows=ROWS)
    assert table(to).num_rows == ROWS


KILLED = """
import os, signal, sys
from batch import writers
from cli import main

def opened(uri, shape, real=writers.open_destination):
    destination = real(uri, shape)
    kind = type(destination)
    commit = kind.commit
    def killed(self, tokens):
        if sys.argv[1] == "after":
            commit(self, tokens)
        os.kill(os.getpid(), signal.SIGKILL)
    kind.commit = killed
    return destination

import batch.export
batch.export.open_destination = opened
main(sys.argv[2:])
"""


@pytest.mark.parametrize("place", [pytest.param("files", marks=pytest.mark.soak), "table"])
def test_a_kill_between_append_and_commit_or_after_it_loses_and_doubles_nothing(
    place: str, folder: Path, dataset: str, tmp_path: Path
) -> None:
    """`kill -9` with the rows appended and the token noted, before the service is told to commit and after it."""
    to = f"{dataset}.killed" if place == "table" else str(tmp_path / "out")
    arguments = ["archive", "export", "--app", SHOP, "--archive", str(folder), "--what", "predictions", "--to", to]
    for moment in ("before", "after"):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, moment, *arguments], cwd=processes.REPOSITORY, capture_output=True, text=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(list((folder / export.NOTES).glob("*.json"))) == 1
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    ids = table(to)["prediction_id"].to_pylist()
    assert len(ids) == len(set(ids)) == len(exported_ids(folder))
    assert not list((folder / export.NOTES).glob("*.json"))


def exported_ids(folder: Path) -> list[str]:
    to = folder.parent / "whole"
    exported(folder, str(to), "predictions")
    return [str(one) for one in table(str(to))["prediction_id"].to_pylist()]


def test_a_process_follows_until_it_is_told_to_stop(folder: Path, start_process: Callable[..., Started]) -> None:
    to = str(folder.parent / "out")
    arguments = ["--app", SHOP, "--archive", folder, "--to", to, "--follow", "--every", "0.2", "--json"]
    running = start_process(["-m", "cli", "archive", "export", *arguments])
    processes.wait_until(lambda: count(to) == ROWS, what="the archive's rows at the destination")
    opened = Archive(folder, IDENTITY)
    block = next(iter(read_commits(folder))).block
    opened.mark_published(opened.append(block, {}))
    opened.close()
    processes.wait_until(lambda: count(to) == ROWS + block.num_rows, what="the new rows at the destination")
    running.process.send_signal(signal.SIGTERM)
    assert running.wait() == 0
    assert json.loads(running.wait_for_line('"written"'))["written"]["rows"] == ROWS + block.num_rows


def count(to: str) -> int:
    try:
        return int(table(to).num_rows)
    except (HistoryError, pa.ArrowInvalid):  # nothing there yet
        return 0


@pytest.mark.parametrize("place", ["files", "table"])
def test_a_destination_that_was_away_for_a_while_is_tried_again(
    place: str, folder: Path, dataset: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer to a commit is lost once after it has been done, and once before."""
    to = f"{dataset}.away" if place == "table" else str(folder.parent / "out")
    kind: Any = BigQueryDestination if place == "table" else ParquetDestination
    faults, commit = ["", "after", "", "", "before"], kind.commit

    def lossy(self: Destination, tokens: Sequence[bytes]) -> Written:
        fault = faults.pop(0) if faults else ""
        done: Written = Written() if fault == "before" else commit(self, tokens)
        if fault:
            raise HistoryError("BigQuery cannot be reached")
        return done

    monkeypatch.setattr(kind, "commit", lossy)
    opened = Archive(folder, IDENTITY)
    block = next(iter(read_commits(folder))).block
    running = Export(app, folder, "archive", to)

    class FourBlocks(threading.Event):
        """Between two looks at the archive something comes; it is time to stop after the fourth."""

        added = 0

        def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
            if self.added < 4:
                opened.mark_published(opened.append(block, {}))
            self.added += 1
            return self.added > 8

    export.follow(running, 0.0, FourBlocks(), lambda _: None)
    running.close()
    opened.close()
    assert (faults, caplog.text.count("it is tried again")) == ([], 2)
    assert exported(folder, to).commits == 0
    places = table(to).select(["archive_commit", "archive_row"])
    rows = ROWS + 4 * block.num_rows
    assert places.num_rows == rows == len(places.group_by(["archive_commit", "archive_row"]).aggregate([]))


def test_rows_that_are_refused_are_kept_with_the_reason(folder: Path, tmp_path: Path) -> None:
    running = Export(app, folder, "archive", str(tmp_path / "out"))
    running._reject([], next(iter(read_commits(folder))).block.slice(0, 2), ["too large", "out of range"])
    running.close()
    kept = [json.loads(line) for line in running.rejected.read_text().splitlines()]
    assert [one["reason"] for one in kept] == ["too large", "out of range"]
    assert all(one["to"] == str(tmp_path / "out") and one["row"]["event_type"] for one in kept)


def test_events_of_refused_rows_become_dead_letters(
    folder: Path, dataset: str, start_process: Callable[..., Started]
) -> None:
    """A row of more than 10 MB; looked at by the commands, and not sent again: it was folded."""
    broker = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on").line.rsplit(" ", 1)[-1]
    create_topics(app, Endpoint("sameriver", broker))
    opened = Archive(folder, IDENTITY)
    block = next(iter(read_commits(folder))).block.slice(0, 3)
    place = block.schema.get_field_index("sale.kind")
    block = block.set_column(place, block.schema.field(place), pa.array(["a", "x" * 11_000_000, None]))
    opened.mark_published(opened.append(block, {}))
    opened.close()

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--app", SHOP, "--emulator", broker, "--json"], catch_exceptions=False)

    to = f"{dataset}.refusing"
    done = run("archive", "export", "--archive", str(folder), "--to", to)
    assert json.loads(done.stdout.splitlines()[-1])["written"] == asdict(Written(rows=ROWS + 2, rejected=1))
    (letter,) = json.loads(run("deadletters", "list").stdout.splitlines()[-1])["dead_letters"]
    assert (letter["reason"], letter["detail"].startswith(f"archive to {to}: ")) == ("export_refused", True)
    assert "exceeds the 10485760-byte size cap" in letter["detail"]
    shown = json.loads(run("deadletters", "show", letter["id"]).stdout.splitlines()[-1])
    assert json.loads(shown["data"])["event_id"] == block.column("event_id")[1].as_py()
    assert "it was folded already" in run("deadletters", "replay").stderr
    assert not list(folder.glob("export/*.rejected.jsonl"))


def test_what_a_place_has_of_one_kind_says_nothing_of_another(folder: Path, dataset: str, tmp_path: Path) -> None:
    for to in (f"{dataset}.mixed", str(tmp_path / "mixed")):
        assert exported(folder, to, "reactions").written.rows > 0
        assert exported(folder, to).written == Written(rows=ROWS)
        assert exported(folder, to, "reactions").written == exported(folder, to).written == Written()


@pytest.mark.soak
@pytest.mark.parametrize("place", ["files", "table"])
def test_kills_at_any_moment_lose_and_double_nothing(
    place: str, folder: Path, dataset: str, start_process: Callable[..., Started]
) -> None:
    """An archive that grows, and an export that is killed with -9 six times."""
    to = f"{dataset}.often_killed" if place == "table" else str(folder.parent / "out")
    arguments = ["--app", SHOP, "--archive", folder, "--to", to, "--follow", "--every", "0.1"]
    opened = Archive(folder, IDENTITY)
    block = next(iter(read_commits(folder))).block
    rows, chance = ROWS, random.Random(7)
    for _ in range(6):
        before, running = count(to), start_process(["-m", "cli", "archive", "export", *arguments])
        ends: float | None = None  # at some moment after it has written something
        while ends is None or time.monotonic() < ends:
            for _ in range(10):
                opened.mark_published(opened.append(block, {}))
            rows += 10 * block.num_rows
            if ends is None and count(to) > before:
                ends = time.monotonic() + chance.uniform(0.0, 2.0)
            time.sleep(0.05)
        running.process.kill()
        running.process.wait()
    opened.close()
    assert exported(folder, to).resumed_after > 0
    places = table(to).select(["archive_commit", "archive_row"])
    assert places.num_rows == rows == len(places.group_by(["archive_commit", "archive_row"]).aggregate([]))


def test_a_backfill_and_the_stream_write_one_table(folder: Path, dataset: str, tmp_path: Path) -> None:
    """Predictions of the same events have the same ids and values: whoever comes second adds nothing."""
    to = f"{dataset}.shared"
    first = exported(folder, to, "predictions")
    history = tmp_path / "history"
    exported(folder, str(history))
    rules = Asking("", None, {})
    again = backfill(app, history, to, asking=rules, work=tmp_path / "work")
    assert (again.rows_added, again.rows_there, again.rows_differing) == (0, first.written.rows, 0)
    other = f"{dataset}.backfilled"
    assert backfill(app, history, other, asking=rules, work=tmp_path / "work").rows_added == first.written.rows
    assert exported(folder, other, "predictions").written == Written(existing=first.written.rows)


def test_what_cannot_be_exported_is_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, folder.with_name("archive2"))
    written = json.loads((folder / "archive.json").read_text())
    (folder / "archive.json").write_text(json.dumps({**written, "fingerprint": "0" * 32}))
    with pytest.raises(
        FingerprintError, match=r"was written by fingerprint 0{32}, app 'shop' has .*: give the app's own"
    ):
        Export(app, folder, "archive", str(tmp_path))
    done = CliRunner().invoke(
        main, ["archive", "export", "--app", SHOP, "--archive", str(tmp_path / "no"), "--to", "x"]
    )
    assert done.exit_code == 2
    assert "was not found" in done.output
