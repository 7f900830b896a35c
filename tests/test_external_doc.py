"""docs/external.md as it stands: its app, its service over HTTP, its model on a model server, its commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cli
from shared_features.blocks import flatten
from streaming.archive import read_commits
from tests import repository
from tests.processes import Started, free_port, start, wait_until

GUIDE = Path("docs/external.md")
TEXTS = ["What a GREAT shop :)", "the soup was cold", None, "not good at all!!"]


def blocks(language: str) -> list[str]:
    return [block.code for block in repository.code_blocks(language) if block.path == GUIDE]


SCHEMA = blocks("json")[0]
APP, SERVICE, MODEL = blocks("python")
OVER_HTTP, BY_GRPC = (
    [shlex.split(line) for line in code.splitlines() if line.startswith("sameriver")] for code in blocks("sh")
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the app of the guide and a history."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "app.py").write_text(APP)
    (tmp_path / "reviews" / "review.avsc").write_text(SCHEMA)
    times = pa.array(range(1_700_000_000, 1_700_000_004), pa.int64()).cast(pa.timestamp("s", "UTC"))
    times = times.cast(pa.timestamp("us", "UTC"))
    events = pa.table(
        {
            "event_type": ["review"] * 4,
            "event_id": ["a", "b", "c", "d"],
            "event_time": times,
            "publish_time": times,
            "review": pa.StructArray.from_arrays([pa.array(["s"] * 4), pa.array(TEXTS)], names=["shop", "text"]),
        }
    )
    (tmp_path / "reviews-history").mkdir()
    pq.write_table(events, tmp_path / "reviews-history" / "reviews.parquet")
    return tmp_path


def run(words: list[str], **placed: str) -> str:
    """A command of the guide, with other ports."""
    for there, here in placed.items():
        words = [word.replace(there.removeprefix("port_"), here) for word in words]
    done = CliRunner().invoke(cli.main, words[1:])
    assert done.exit_code == 0, (words, done.output)
    return done.output


def moods(path: Path) -> list[float | None]:
    found: list[float | None] = pq.read_table(path)["review"].combine_chunks().field("mood").to_pylist()
    return found


def test_a_history_is_asked_about_over_http_and_predicted(folder: Path) -> None:
    (folder / "vader_service.py").write_text(SERVICE)
    service = start([str(folder / "vader_service.py"), "0"], ready="listening on", cwd=folder)
    port = service.line.split()[-1]
    ask, backfill, *live = OVER_HTTP
    assert "4 rows; 3 texts were put to models" in run(ask, port_8510=port)
    service.kill()
    happy, cold, none, unhappy = moods(folder / "var" / "asked" / "reviews")
    assert none is None
    assert happy is not None
    assert happy > 0.5
    assert cold == 0.0  # no word that VADER knows
    assert unhappy is not None
    assert unhappy < 0.0
    run(backfill)
    predicted = flatten(pq.read_table(folder / "predicted"))
    assert predicted["feature.mood"].to_pylist() == [happy, cold, None, unhappy]
    for words in live:
        name, *rest = words[words.index("sameriver") + 1 :]
        assert cli.main.commands[name].make_context(name, rest).params["app_name"] == "./reviews"


@pytest.mark.soak
def test_the_model_of_the_guide_on_a_model_server_and_live(start_process: Callable[..., Started], folder: Path) -> None:
    (folder / "model.py").write_text(MODEL)
    made = start([str(folder / "model.py")], cwd=folder, env={"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert made.wait() == 0, made.tail()
    port = str(free_port())
    serve, ask = BY_GRPC
    flags = [word.replace("$PWD", str(folder)).replace("8511", port) for word in serve[1:]]
    start_process(["-m", "cli", *flags], ready="model server ready", cwd=folder)
    run(ask, port_8511=port)
    happy, cold, none, _ = moods(folder / "asked-by-grpc")  # it knows words, and what "not" does to them it does not
    assert (cold, none) == (0.0, None)
    assert happy is not None
    assert happy > 0.5
    env = {"SAMERIVER_STREAM_EXTERNAL": f"vader=grpc://127.0.0.1:{port}"}
    up = start_process(
        ["-m", "cli", "up", "--app", "./reviews", "--broker-port", "0", "--no-gateway", "--json"],
        ready='"ready"',
        cwd=folder,
        env=env,
    )
    told = json.loads(up.line)
    event = {"event_id": "x", "written_at": 1_700_000_000_000_000, "shop": "s", "text": TEXTS[0]}
    (folder / "events.jsonl").write_text(json.dumps({"event_type": "review", **event}) + "\n")
    where = ["--app", "./reviews", "--emulator", told["pubsub_emulator_host"]]
    run(["sameriver", "publish", "events.jsonl", *where])
    archive = folder / "var" / "archive" / "reviews"

    def live() -> list[float]:
        return [mood for commit in read_commits(archive) for mood in commit.block["review.mood"].to_pylist()]

    wait_until(live, what="the event is archived")
    assert live() == [happy]  # what the model said of the same text in batch
