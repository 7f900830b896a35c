"""`verify --follow`: every commit once, as it comes, whatever becomes of its segment; the first difference at once."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from batch.follow import Follower, FollowMonitoring
from cli import main
from serving.promotion import Promotion
from shared_features.errors import ConfigurationError, HistoryError
from streaming import archive as archives
from streaming.archive import Archive, Commit, compact_archive, read_commits
from streaming.compaction import Compactor, compact
from streaming.following import follow_commits
from tests import repository
from tests.processes import REPOSITORY, Started, wait_until
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_verify import sales

IDENTITY = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> list[Commit]:
    """What a job commits of some sales."""
    folder = tmp_path_factory.mktemp("served")
    serve(app, to_messages(app, sales(120)), folder)
    blocks = [commit.block for commit in read_commits(folder)]
    rows = pa.Table.from_batches(blocks).combine_chunks().to_batches()[0]
    return [Commit(i, {}, rows.slice(i * 10, 10), published=False) for i in range(12)]


def wrong(commit: Commit) -> Commit:
    """The commit with one feature that is not what the kernel gives."""
    block = commit.block
    place = block.schema.get_field_index("feature.sum_10s")
    changed = pc.add(block.column(place), 0.5)
    return Commit(commit.sequence, {}, block.set_column(place, block.schema.field(place), changed), published=False)


def taken(following: Iterator[Commit | None]) -> list[int]:
    """The sequence numbers of what has come."""
    found = []
    while (commit := next(following)) is not None:
        found.append(commit.sequence)
    return found


def test_each_commit_comes_once_over_segments_restarts_and_compaction(
    tmp_path: Path, commits: list[Commit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_BYTES", 20_000)
    monkeypatch.setattr(Compactor, "start", lambda *_: True)
    job = Archive(tmp_path, IDENTITY)
    following = follow_commits(tmp_path)
    assert next(following) is None
    for number in range(4):
        job.append(commits[number].block, {})
    assert taken(following) == [0, 1, 2, 3]
    assert next(following) is None
    job.append(commits[4].block, {})
    log = max(tmp_path.glob("*.log"))
    whole = log.read_bytes()
    log.write_bytes(whole[:-1])  # as it is while it is being written
    assert taken(following) == []
    log.write_bytes(whole)
    assert taken(following) == [4]
    job.close()
    job = Archive(tmp_path, IDENTITY)
    for number in range(5, 9):
        job.append(commits[number].block, {})
        job.mark_published(number)
    compact(tmp_path, 8)  # beside the job; some were read as a log, the others are Parquet now
    assert list(tmp_path.glob("commits/*.parquet"))
    assert taken(following) == [5, 6, 7, 8]
    for number in range(9, 12):
        job.append(commits[number].block, {})
    job.mark_published(11)
    job.close()
    assert taken(following) == [9, 10, 11]
    compact_archive(tmp_path)
    assert taken(following) == []
    assert taken(follow_commits(tmp_path)) == list(range(12))


def test_a_segment_that_is_missing_is_told(
    tmp_path: Path, commits: list[Commit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(Compactor, "start", lambda *_: True)
    job = Archive(tmp_path, IDENTITY)
    for commit in commits[:4]:
        job.append(commit.block, {})
    job.close()
    sorted(tmp_path.glob("*.log"))[1].unlink()
    with pytest.raises(HistoryError, match="lacks the segment of commit 1"):
        taken(follow_commits(tmp_path))
    with pytest.raises(HistoryError, match="was not found"):
        next(follow_commits(tmp_path / "nowhere"))


def test_the_first_difference_is_told_once_and_counted_and_remembered(tmp_path: Path, commits: list[Commit]) -> None:
    job = Archive(tmp_path, IDENTITY)
    with closing(Follower(app, tmp_path)) as follower:
        monitoring = FollowMonitoring(follower)
        for commit in commits[:6]:
            job.append(commit.block, {})
        assert follower.step()
        assert not follower.step()
        assert (follower.report.mismatches, follower.caught_up, follower.commits) == (0, True, 6)
        assert b'sameriver_verify_mismatches_total{of="features"} 0.0' in monitoring.metrics()
        assert monitoring.status()["failure"] is None
        with pytest.raises(ConfigurationError, match="is being followed already: stop that one"):
            Follower(app, tmp_path)
    job.append(wrong(commits[6]).block, {})
    for again in range(2):
        with closing(Follower(app, tmp_path)) as follower:
            assert follower.resumed_after == 5 + again
            monitoring, said = FollowMonitoring(follower), list[str]()
            follower.run(threading.Event(), until_mismatch=True, told=said.append)
        (text,) = said
        assert "feature 'sum_10s' of event" in text
        differing = follower.report.feature_mismatches
        assert f'sameriver_verify_mismatches_total{{of="features"}} {float(differing)}'.encode() in monitoring.metrics()
        assert monitoring.status()["failure"] == "mismatch"
    job.append(commits[7].block, {})
    job.close()
    for anew in (False, True):
        with closing(Follower(app, tmp_path, anew=anew)) as follower:
            assert follower.resumed_after == (-1 if anew else 6)
            follower.step()
            assert (follower.report.events, follower.report.feature_mismatches) == (80, differing)


def test_who_may_not_write_follows_from_the_beginning(
    tmp_path: Path, commits: list[Commit], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Archive(tmp_path, IDENTITY)
    job.append(commits[0].block, {})
    job.close()
    monkeypatch.setattr("batch.follow.take_lock", refuse)
    with closing(Follower(app, tmp_path)) as follower:
        assert follower.step()
    assert "where it is will not be remembered" in caplog.text
    assert not list(tmp_path.glob("verify/*.state"))


def refuse(path: Path) -> None:
    raise OSError(30, "Read-only file system", str(path))


def test_routes_are_compared_too(tmp_path: Path, commits: list[Commit]) -> None:
    """A promotion that is made while it is followed counts from then on."""
    promoted: dict[str, list[Promotion]] = {}
    job = Archive(tmp_path, IDENTITY)
    with closing(Follower(app, tmp_path, promotions=lambda: promoted)) as follower:
        for number, (revision, version) in enumerate([(1, 3), (2, 3), (2, 4)]):
            if number == 1:
                promoted["big_sale"] = [Promotion(revision=2, champion=3)]
            job.append(routed(commits[number].block, revision, version), {})
            follower.step()
        report = follower.report
        asked = report.routes_aside
        assert 0 < asked < 10
        assert report.routes > 0 < report.route_mismatches < report.routes
        assert b'sameriver_verify_mismatches_total{of="routes"}' in FollowMonitoring(follower).metrics()
        assert "of its promotion says 3" in str(report.first_mismatch)
    job.close()


def routed(block: pa.RecordBatch, revision: int, version: int) -> pa.RecordBatch:
    """The rows as if a promotion had chosen the version that answered."""
    place, mask = block.schema.get_field_index("version.big_sale"), block.column("version.big_sale").is_null()
    columns = [pc.if_else(mask, None, pa.scalar(value, pa.int64())) for value in (version, revision)]
    return block.set_column(place, "version.big_sale", columns[0]).append_column("route.big_sale", columns[1])


def test_the_command_beside_a_job(tmp_path: Path, commits: list[Commit], start_process: Callable[..., Started]) -> None:
    job = Archive(tmp_path, IDENTITY)
    job.append(commits[0].block, {})
    command = ["-m", "cli", "verify", "--app", "tests/shop", "--archive", tmp_path, "--follow", "--json"]
    process = start_process(command)
    url = process.wait_for_line("metrics at ").split()[-1]
    for commit in commits[1:5]:
        job.append(commit.block, {})
    wait_for(url, "sameriver_verify_events_total 50.0")
    assert httpx.get(url.replace("/metrics", "/healthz"), timeout=120).status_code == 200
    job.append(wrong(commits[5]).block, {})
    process.wait_for_line("mismatch: feature 'sum_10s'")
    assert httpx.get(url.replace("/metrics", "/healthz"), timeout=120).status_code == 503
    job.append(commits[6].block, {})
    wait_for(url, "sameriver_verify_events_total 70.0")  # it goes on
    job.close()
    assert process.stop(signal.SIGINT) == 1
    assert json.loads(process.lines[-1])["feature_mismatches"] > 0


def wait_for(url: str, line: str) -> None:
    wait_until(lambda: line in httpx.get(url, timeout=120).text, what=line)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--until-mismatch"], "--until-mismatch goes with --follow"),
        (["--anew"], "--anew goes with --follow"),
        (["--follow", "--history", "h"], "do not go together"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], words: str) -> None:
    shown = CliRunner().invoke(main, ["verify", "--app", "tests/shop", *options])
    assert shown.exit_code == 2
    assert words in shown.output


def test_the_commands_of_the_guide_run(tmp_path: Path, commits: list[Commit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMERIVER_VERIFY_APP", str(REPOSITORY / "tests" / "shop"))
    job = Archive(tmp_path / "var" / "archive" / "shop", IDENTITY)
    for commit in commits[:3]:
        job.append(commit.block, {})
    (block,) = [block for block in repository.code_blocks("sh") if block.path == Path("docs/verify.md")]
    codes = []
    for line in block.code.splitlines():
        if "--follow" in line:
            job.append(wrong(commits[3]).block, {})
        codes.append(CliRunner().invoke(main, line.split()[1:], auto_envvar_prefix="SAMERIVER").exit_code)
    job.close()
    assert codes == [0, 0, 1]


def test_every_metric_is_in_the_guide(tmp_path: Path, commits: list[Commit]) -> None:
    job = Archive(tmp_path, IDENTITY)
    job.append(commits[0].block, {})
    job.close()
    with closing(Follower(app, tmp_path)) as follower:
        told = FollowMonitoring(follower).metrics().decode()
    names = {line.split("{")[0].split()[0] for line in told.splitlines() if not line.startswith("#")}
    guide = repository.text(Path("docs/verify.md"))
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []
