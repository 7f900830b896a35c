"""Compaction: the same commits, bit for bit, at every instant; plain Parquet for everyone else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from batch.tables import open_history, read_split
from batch.verify import verify
from cli import main
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.plan import make_plan
from streaming import archive
from streaming.archive import Archive, Commit, compact_archive, read_commits, read_counts, segments
from streaming.compaction import Compactor, compact
from streaming.deduplication import Deduplicator
from streaming.recovery import recover
from tests import repository
from tests.repository import CodeBlock
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_verify import START_US, sales

IDENTITY = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}
DAY_US = 86_400_000_000
PUBLISHED = 1 << 40


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some segments of three publish dates, a few rows without one; with a commit that has counts only."""
    folder = tmp_path_factory.mktemp("served")
    messages = to_messages(app, sales(240))
    moved = [one._replace(publish_time_us=one.publish_time_us + DAY_US * (i // 90)) for i, one in enumerate(messages)]
    moved[40:44] = [one._replace(publish_time_us=0) for one in moved[40:44]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "SEGMENT_BYTES", 30_000)
        patch.setattr(Compactor, "start", lambda *_: True)
        serve(app, moved, folder)
        opened = Archive(folder, IDENTITY)
        opened.mark_published(opened.append(pa.RecordBatch.from_pylist([], pa.schema([])), COUNTS))
        opened.close()
    assert len(list(folder.glob("*.log"))) > 4
    return folder


COUNTS = {"received": 3, "duplicates": 3, "dead_letters": {}, "outcomes": {}}


@pytest.fixture
def folder(served: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served, tmp_path / "archive"))


def same(left: Path, right: Path) -> bool:
    """Whether two archives have the same commits, to the bit."""
    pairs = list(zip(read_commits(left), read_commits(right), strict=True))
    return all(_key(one) == _key(other) and _bits(one.block) == _bits(other.block) for one, other in pairs)


def _key(commit: Commit) -> tuple[object, ...]:
    return (commit.sequence, commit.counts, commit.published, commit.block.schema.to_string())


def _bits(block: pa.RecordBatch) -> list[list[Any]]:
    """Values with every float as its bits, so that 0.0 is not -0.0."""
    floats = [c.view(pa.int64()) if pa.types.is_float64(c.type) else c for c in block.columns]
    return [column.to_pylist() for column in floats]


def test_every_commit_comes_back_as_it_was(served: Path, folder: Path) -> None:
    done = compact_archive(folder)
    assert (done.rows, done.left) == (240, 0)
    assert not list(folder.glob("*.log"))
    assert same(served, folder)
    assert list(read_counts(folder)) == [commit.counts for commit in read_commits(served)]
    assert verify(app, folder).mismatches == 0
    assert compact_archive(folder).segments == 0


def test_state_comes_back_the_same(served: Path, folder: Path) -> None:
    compact_archive(folder)
    found = []
    for one in (served, folder):
        deduplicator, sent = Deduplicator(7 * DAY_US), list[Any]()
        recovered = recover(make_plan(app), one, deduplicator, lambda *words: sent.append(words), with_features=False)  # noqa: B023
        found.append((recovered.rows, recovered.republished, [state.save() for state in recovered.states], sent))
        assert len(deduplicator) == 240
    assert found[0] == found[1]


def test_a_job_goes_on_behind_parquet(folder: Path) -> None:
    before = len(list(read_commits(folder)))
    compact_archive(folder)
    opened = Archive(folder, IDENTITY)
    assert opened.append(pa.RecordBatch.from_pylist([], pa.schema([])), COUNTS) == before
    with pytest.raises(ConfigurationError, match="in use by another job"):
        compact_archive(folder)
    opened.close()
    assert [commit.published for commit in read_commits(folder)] == [True] * before + [False]
    assert compact_archive(folder).left == 1  # it was not published


class Crash(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def crash_at(call: int) -> Iterator[list[str]]:
    """Crash instead of the call-th thing that changes the disk; the names of those before."""
    made: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            if len(made) == call:
                raise Crash
            made.append(name)
            return real(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("replace", "unlink", "mkdir", "rmdir", "fsync"):
            patch.setattr(os, name, counted(name))
        yield made


def small(folder: Path) -> Path:
    """A closed segment with rows of two dates, and the newest one."""
    times = pa.array([DAY_US - 2, DAY_US + 1, DAY_US - 1], pa.timestamp("us", "UTC"))
    block = pa.RecordBatch.from_pydict({"event_time": times, "publish_time": times, "event_type": ["a", "b", "a"]})
    for _ in range(2):
        opened = Archive(folder, IDENTITY)
        opened.append(block, {"received": 3})
        opened.mark_published(opened.append(block, {"received": 4}))
        opened.close()
    return folder


def test_a_crash_at_any_step_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    was = small(tmp_path / "was")
    call, done = 0, False
    while not done:
        folder = Path(shutil.copytree(was, tmp_path / str(call)))
        with contextlib.suppress(Crash), crash_at(call) as made:
            compact(folder, PUBLISHED)
            done = True
        assert same(was, folder), made
        assert len(_places(folder)) == len(set(_places(folder))), made
        compact(folder, PUBLISHED)
        assert [path.suffix for path in segments(folder)] == [".parquet", ".log"]
        assert same(was, folder), made
        assert sorted(_places(folder)) == [(commit, row) for commit in range(2) for row in range(3)], made
        assert not list(folder.glob("compacting")), made
        call += 1
    assert call > 15


def _places(folder: Path) -> list[tuple[int, int]]:
    """Commit and row of everything that other readers of Parquet see."""
    frames = [pl.read_parquet(path) for path in folder.glob("parquet/**/*.parquet")]
    return [place for frame in frames for place in zip(frame["archive_commit"], frame["archive_row"], strict=True)]


def test_kill_9_of_a_real_process(served: Path, folder: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path; from streaming.compaction import compact\n"
        "real, calls = os.replace, []\n"
        "def replace(*words):\n"
        "    calls.append(real(*words))\n"
        "    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.replace = replace\n"
        f"compact(Path({str(folder)!r}), 1 << 40)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    assert list(folder.glob("*.log"))
    assert list(folder.glob("compacting"))
    assert same(served, folder)
    compact_archive(folder)
    assert not list(folder.glob("compacting"))
    assert same(served, folder)


def test_a_reader_goes_on_while_segments_become_parquet(served: Path, folder: Path) -> None:
    reading = read_commits(folder)
    found = [next(reading)]
    compact(folder, PUBLISHED)
    found += list(reading)
    assert [_key(commit) for commit in found] == [_key(commit) for commit in read_commits(served)]


def test_what_was_not_published_stays(folder: Path) -> None:
    firsts = [int(path.stem) for path in segments(folder)]
    done = compact(folder, firsts[2] - 1)
    assert done.segments == 2
    assert sorted(int(path.stem) for path in folder.glob("*.log")) == firsts[2:]
    assert compact(folder, firsts[3] - 2).segments == 0


def test_a_job_compacts_beside_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a segment is large; and, however small, when its day is over."""
    now_s = [1_000_000.0]
    opened = Archive(tmp_path, IDENTITY, clock=lambda: now_s[0])
    block = pa.RecordBatch.from_pydict({"n": pa.array([1, 2])})
    opened.mark_published(opened.append(block, {}))
    opened.mark_published(opened.append(block, {}))
    assert len(segments(tmp_path)) == 1
    now_s[0] += 86_400
    opened.append(block, {})
    opened.mark_published(2)
    opened._compactor.wait()
    assert [path.suffix for path in segments(tmp_path)] == [".parquet", ".log"]
    monkeypatch.setattr(archive, "SEGMENT_BYTES", 100)
    opened.append(block, {})
    opened.close()
    assert [len(list(tmp_path.glob(name))) for name in ("*.log", "commits/*")] == [2, 1]
    assert [commit.block.num_rows for commit in read_commits(tmp_path)] == [2, 2, 2, 2]


def test_columns_that_come_and_go(tmp_path: Path) -> None:
    pairs = pa.list_(pa.int8(), 2)
    blocks = [
        pa.RecordBatch.from_pydict({"a.x": [1, None], "a.y": [-0.0, 0.0]}),
        pa.RecordBatch.from_pydict({"a.y": ["text", "another type"], "b": pa.array([[1, 2], None], pairs)}),
        pa.RecordBatch.from_pydict({"a.x": pa.array([], pa.int64()), "a.y": pa.array([], pa.float64())}),
        pa.RecordBatch.from_pydict({"a.x": [3, 4], "a.y": [1e-300, None]}, metadata={"says": "something"}),
        pa.RecordBatch.from_pydict({"n": pa.nulls(2), "t": pa.array([1, 2], pa.timestamp("us"))}),
        pa.RecordBatch.from_pydict({"a.x": [5, 6], "a.y": [2.5, 3.5]}),
    ]  # fmt: skip
    opened = Archive(tmp_path, IDENTITY)
    for number, block in enumerate(blocks):
        opened.mark_published(opened.append(block, {"received": number}))
    opened.close()
    assert compact_archive(tmp_path).rows == 10
    commits = list(read_commits(tmp_path))
    assert [commit.counts["received"] for commit in commits] == [0, 1, 2, 3, 4, 5]
    for commit, block in zip(commits, blocks, strict=True):
        assert commit.block.schema.equals(block.schema, check_metadata=True)
        assert _bits(commit.block) == _bits(block)
    assert len(list(tmp_path.glob("parquet/publish_date=1970-01-01/*.parquet"))) == 4


def test_readers_go_by_name_where_a_model_came(tmp_path: Path) -> None:
    """As docs/operations.md tells them to."""
    opened = Archive(tmp_path, IDENTITY)
    for columns in ({"prediction.a.p": [0.5]}, {"prediction.a.p": [0.25], "prediction.b.p": [1.0], "version.b": [1]}):
        opened.mark_published(opened.append(pa.RecordBatch.from_pydict({"n": [1], **columns}), {}))
    opened.close()
    compact_archive(tmp_path)
    seen = duckdb.read_parquet(str(tmp_path / "parquet/*/*.parquet"), union_by_name=True)
    assert seen.aggregate('sum("prediction.a.p"), sum("prediction.b.p")').fetchall() == [(0.75, 1.0)]
    lazy = pl.scan_parquet(tmp_path / "parquet", missing_columns="insert", extra_columns="ignore")
    assert lazy.select(pl.col("prediction.a.p").sum()).collect().item() == 0.75
    assert pd.read_parquet(tmp_path / "parquet")["prediction.a.p"].to_list() == [0.5, 0.25]


def test_a_damaged_file_is_one_sentence(served: Path, folder: Path) -> None:
    compact_archive(folder)
    files = sorted(folder.glob("parquet/**/*.parquet"))[:2] + sorted(folder.glob("commits/*"))[:2]
    chosen = random.Random(7)
    for path in files:
        whole = path.read_bytes()
        for at in chosen.sample(range(len(whole)), 8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chosen.randrange(8)]) + whole[at + 1 :])
            _reads_the_same_or_refuses(served, folder, path, sure="parquet/" in str(path))
        for end in (0, 3, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:end])
            _reads_the_same_or_refuses(served, folder, path, sure=True)
        path.unlink()
        with pytest.raises(HistoryError, match=r"is not there: restore it|a segment is missing"):
            same(served, folder)
        path.write_bytes(whole)
    assert same(served, folder)


def _reads_the_same_or_refuses(served: Path, folder: Path, damaged: Path, *, sure: bool) -> None:
    said = None
    try:
        assert same(served, folder)
    except HistoryError as error:
        said = str(error)
    assert said is not None or not sure
    assert said is None or (str(damaged) in said and "restore it from a copy" in said)


def test_everyone_reads_it_as_plain_parquet(served: Path, folder: Path) -> None:
    compact_archive(folder)
    wanted = [block for block in (commit.block for commit in read_commits(served)) if block.num_rows]
    after_us = START_US + 100_000_000
    times = pa.Table.from_batches(wanted)["event_time"].cast(pa.int64())
    expected = pc.sum(pc.greater(times, after_us)).as_py()
    files = str(folder / "parquet" / "**" / "*.parquet")
    rows = duckdb.read_parquet(files, hive_partitioning=True, union_by_name=True)
    after = rows.filter(f"epoch_us(event_time) > {after_us}")
    (found,) = after.aggregate("count(*), count(DISTINCT publish_date), any_value(typeof(publish_date))").fetchall()
    assert found[0] == expected
    assert found[1:] == (2, "DATE")
    lazy = pl.scan_parquet(folder / "parquet", hive_partitioning=True)
    later = pl.lit(after_us).cast(pl.Datetime("us", "UTC"))
    assert lazy.filter(pl.col("event_time") > later).select(pl.len()).collect().item() == expected
    by_date = lazy.group_by("publish_date").len().collect()
    assert sorted(by_date["len"].to_list()) == [60, 90, 90]
    frame = pd.read_parquet(
        folder / "parquet", filters=[("event_time", ">", pd.Timestamp(after_us, unit="us", tz="UTC"))]
    )
    assert len(frame) == expected
    for path in folder.glob("parquet/**/*.parquet"):
        assert pl.read_parquet(path, columns=["event_time"])["event_time"].is_sorted()


def test_it_is_a_history_with_positions(folder: Path) -> None:
    """Batch jobs take the folder as it is."""
    compact_archive(folder)
    history = open_history(folder / "parquet", make_plan(app))
    assert history.archived
    assert sum(block.num_rows for split in history.splits for block in read_split(split)) == 240


BLOCKS = [block for block in repository.code_blocks("python") if f"run by tests/{Path(__file__).name}" in block.before]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.label)
def test_what_the_guide_says_runs(
    block: CodeBlock,
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(served, tmp_path / "var" / "archive" / "shop"))
    compact_archive(folder)
    script = tmp_path / "block.py"
    script.write_text(block.code)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))
    assert "predicted" in capsys.readouterr().out


def test_the_command_compacts_and_tells_what_it_did(folder: Path) -> None:
    words = ["archive", "compact", "--app", "tests/shop", "--archive", str(folder)]
    done = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert (done["rows"], done["left"]) == (240, 0)
    again = CliRunner().invoke(main, words).stdout
    assert again.startswith("0 rows of 0 segments")
    said = CliRunner().invoke(main, ["status", "--app", "tests/shop", "--archive", str(folder), "--json"]).stdout
    assert (json.loads(said)["received"], json.loads(said)["balanced"]) == (243, True)
    missing = CliRunner().invoke(main, [*words[:-1], str(folder / "none")])
    assert missing.exit_code == 2
    assert "was not found" in missing.stderr
