"""Saved state is a shortcut: with it, without it or with a bad one, a restart knows the same."""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batch.verify import verify
from shared_features.plan import make_plan
from streaming import saved_state
from streaming.archive import Archive, compact_archive, read_commits
from streaming.deduplication import Deduplicator
from streaming.recovery import Recovered, recover
from streaming.saved_state import StateSaver
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_verify import sales

IDENTITY = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}
PLAN = make_plan(app)
HORIZON_US = 7 * 86_400_000_000


class Idle:
    """A delivery that has nothing to wait for."""

    def wait_until_empty(self) -> bool:
        return True


def come_back(folder: Path, horizon_us: int = HORIZON_US) -> tuple[Recovered, Deduplicator, list[Any]]:
    deduplicator, sent = Deduplicator(horizon_us), list[Any]()
    recovered = recover(PLAN, folder, deduplicator, lambda *words: sent.append(words), with_features=False)
    return recovered, deduplicator, sent


def known(folder: Path, horizon_us: int = HORIZON_US) -> Any:
    """All that a restart knows."""
    recovered, deduplicator, sent = come_back(folder, horizon_us)
    states = [state.save() for state in recovered.states]
    return states, remembered(deduplicator), deduplicator.newest_us, sent


def remembered(deduplicator: Deduplicator) -> list[tuple[int, str, str]]:
    """The identities that a deduplicator knows: tile, event type, event id."""
    sink = pa.BufferOutputStream()
    deduplicator.save(sink)
    with pa.ipc.open_stream(sink.getvalue()) as reader:
        names = (reader.schema.metadata or {})[b"event_types"].decode().split("\0")
        rows = reader.read_all().to_pylist()
    return sorted((row["tile"], names[row["event_type"]], row["event_id"]) for row in rows)


def save(folder: Path) -> None:
    """As a job does that has just come back."""
    recovered, deduplicator, _ = come_back(folder)
    opened = Archive(folder, IDENTITY)
    delivery: Any = Idle()
    saver = StateSaver(PLAN, opened, delivery, deduplicator, lambda: recovered.states, recovered)
    saver.between_works()
    saver.close()
    opened.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_state, "SAVE_ROWS", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An archive with state saved in its midst."""
    messages = to_messages(app, sales(200))
    serve(app, messages[:120], tmp_path / "archive")
    save(tmp_path / "archive")
    serve(app, messages[110:], tmp_path / "archive")
    return tmp_path / "archive"


def without(folder: Path) -> Path:
    bare = Path(shutil.copytree(folder, folder.parent / "bare", dirs_exist_ok=True))
    shutil.rmtree(bare / "state", ignore_errors=True)
    return bare


def test_a_restart_knows_the_same_and_folds_less(folder: Path) -> None:
    assert known(folder) == known(without(folder))
    assert (come_back(folder)[0].rows, come_back(without(folder))[0].rows) == (80, 200)
    assert verify(app, folder).mismatches == 0
    assert verify(app, folder).events == 200


@pytest.mark.parametrize("seed", range(2))
def test_wherever_it_was_saved(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    messages, folder = to_messages(app, sales(150, seed)), tmp_path / "archive"
    chosen.shuffle(messages[40:60])
    at = 0
    while at < len(messages):
        until = at + chosen.randint(20, 60)
        serve(app, messages[max(0, at - 5) : until], folder, block_rows=chosen.randint(1, 20))
        if chosen.random() < 0.5:
            compact_archive(folder)
        if chosen.random() < 0.7:
            save(folder)
        assert known(folder) == known(without(folder))
        at = until
    assert verify(app, folder).mismatches == 0


def test_only_the_newest_is_kept_and_old_segments_are_not_read(folder: Path) -> None:
    save(folder)
    (file,) = folder.glob("state/*")
    commits = list(read_commits(folder))
    assert int(file.stem) == commits[-1].sequence
    first = sorted(folder.glob("*.log"))[0]
    first.write_bytes(b"damaged")  # nobody needs it to come back
    assert come_back(folder)[0].rows == 0
    assert known(folder)[0] == [state.save() for state in come_back(folder)[0].states]


def test_a_damaged_one_is_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted, (file,) = known(without(folder)), list(folder.glob("state/*.state"))
    whole, chosen = file.read_bytes(), random.Random(3)
    for at in chosen.sample(range(len(whole)), 5):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chosen.randrange(8)]) + whole[at + 1 :])
        with caplog.at_level(logging.WARNING):
            assert known(folder) == wanted
        assert "folding the archive instead" in caplog.text
        caplog.clear()
    for end in (0, 5, len(whole) - 1):
        file.write_bytes(whole[:end])
        assert known(folder) == wanted
    file.unlink()
    (folder / "state" / "new").write_bytes(whole)  # a kill came before its name
    assert known(folder) == wanted


def test_one_that_does_not_fit_is_passed_over(folder: Path, tmp_path: Path) -> None:
    assert known(folder, 2 * HORIZON_US) == known(without(folder), 2 * HORIZON_US)
    assert come_back(folder, 2 * HORIZON_US)[0].rows == 200
    assert come_back(folder, HORIZON_US // 2)[0].rows == 80
    other = tmp_path / "other"
    serve(app, to_messages(app, sales(200, seed=2)), other)
    shutil.copytree(folder / "state", other / "state")  # of another archive of the same app
    assert come_back(other)[0].rows == 200
    short = tmp_path / "short"
    serve(app, to_messages(app, sales(20)), short)
    shutil.copytree(folder / "state", short / "state")  # further than this archive is
    assert come_back(short)[0].rows == 20


def test_what_was_not_marked_as_published_is_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "mark_published", lambda *_: None)
        serve(app, to_messages(app, sales(30)), tmp_path)
    recovered, _, sent = come_back(tmp_path)
    save(tmp_path)
    again, _, sent_again = come_back(tmp_path)
    assert (recovered.rows, again.rows) == (30, 0)
    assert sent == sent_again != []


def test_it_is_saved_no_oftener_than_it_is_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(app, to_messages(app, sales(200)), tmp_path)
    recovered, deduplicator, _ = come_back(tmp_path)
    opened = Archive(tmp_path, IDENTITY)
    delivery: Any = Idle()
    saver = StateSaver(PLAN, opened, delivery, deduplicator, lambda: recovered.states, recovered)

    def saved() -> list[int]:
        saver.close()
        return sorted(int(path.stem) for path in tmp_path.glob("state/*.state"))

    saver.between_works()
    (first,) = saved()
    block = next(commit.block for commit in read_commits(tmp_path) if commit.block.num_rows == 7)
    opened.append(block, {"received": 7})
    saver.between_works()
    assert saved() == [first]
    saver.between_works(at_end=True)
    assert saved() == [first + 1]
    monkeypatch.setattr(saved_state, "SAVE_ROWS", 100)
    opened.append(block, {"received": 7})
    saver.between_works(at_end=True)
    assert saved() == [first + 1]
    opened.close()


def test_a_full_disk_does_not_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "archive"
    serve(app, to_messages(app, sales(20)), folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved_state, "sync_folder", full)
    save(folder)
    assert "state was not saved" in caplog.text
    assert known(folder) == known(without(folder))
