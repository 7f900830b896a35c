"""`sameriver why`: the windows are the kernel's, everything comes out again, and what does not is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from batch.archive_rows import Wanted, find_rows
from batch.why import find_prediction, gather_evidence
from batch.why_report import explain
from cli import main
from commands.why import _require_answer
from serving.client import ModelClient
from shared_features import App, Rule, count, decayed_sum, first, last, mean
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.kernel import step
from shared_features.plan import make_plan
from shared_features.state import StageState
from streaming.archive import Archive, compact_archive, read_commits
from streaming.deduplication import Deduplicator
from streaming.snapshots import NAME, write_snapshot
from tests import repository
from tests.processes import free_port
from tests.serving_steps import serve, to_messages
from tests.shop import app as shop_app
from tests.shop.app import app as shop
from tests.shop.app import by_shop, by_till, sale, visit
from tests.test_verify import START_US, sales

any_time: dict[str, Any] = {"by": by_shop, "over": "12s"}
app = App(
    "windows",
    event_types=[sale, visit],
    predict_on=sale,
    features={
        "count": count(sale.amount, **any_time),
        "mean": mean(sale.amount, **any_time),
        "count_both": count(sale.amount, closed="both", **any_time),
        "count_others": count(sale.amount, include_self=False, **any_time),
        "count_big": count(sale.amount, where=sale.amount > 2.0, **any_time),
        "count_long": count(visit.length, by=by_shop, over="40s"),
        "count_last_4": count(sale.amount, by=by_shop, over="4 events"),
        "count_last_4_others": count(sale.amount, by=by_shop, over="4 events", include_self=False),
        "first_of_4": first(sale.amount, by=by_shop, over="4 events"),
        "units": mean(sale.units, by=by_till, over="30s"),
        "recent": decayed_sum(sale.amount, "5s", by=by_till, over="30s"),
        "difference": sale.amount - last(sale.amount, by=by_shop, over="12s", include_self=False),
    },
    models=[Rule("big", sale.amount > 2.0)],
    lateness="6s",
)


def nobody(*_: Any) -> None:
    """No model to ask."""


def disordered(rows: int = 160) -> pa.RecordBatch:
    """Sales and visits, each a second after the other, that come up to half a minute late; some lack shop or till."""
    block = sales(rows)
    random = np.random.default_rng(7)
    for name, share in (("sale.shop", 0.1), ("visit.shop", 0.1), ("sale.till", 0.3), ("sale.amount", 0.1)):
        place = block.schema.get_field_index(name)
        gone = pa.array(random.random(rows) < share)
        column = pa.compute.if_else(gone, pa.scalar(None, block.schema.field(place).type), block.column(place))
        block = block.set_column(place, name, column)
    arrival = np.arange(rows) + random.choice([0, 0, 0, 3, 9, 30], rows)
    return block.take(pa.array(np.argsort(arrival, kind="stable")))


@pytest.fixture(scope="module", params=["log", "parquet"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An archive of some segments, and its events' ids by prediction id."""
    folder = tmp_path_factory.mktemp(request.param)
    block = disordered()
    published = [START_US + i * 1_000_000 + 40_000_000 for i in range(block.num_rows)]
    messages, sent = to_messages(app, block, published), []
    for start in range(0, len(messages), 50):  # lives of a job, with a segment each
        sent += serve(app, messages[start : start + 50], folder).sent["windows-predictions"]
    assert len(list(folder.glob("*.log"))) == 4
    if request.param == "parquet":
        compact_archive(folder)
        assert not list(folder.glob("*.log"))
    said = [orjson.loads(message.data) for message in sent]
    return folder, {one["prediction_id"]: one["event_id"] for one in said}


def test_every_prediction_comes_out_again_and_its_windows_hold_what_the_kernel_counted(
    archive: tuple[Path, dict[str, str]],
) -> None:
    folder, predictions = archive
    late = too_late = 0
    for prediction_id, event_id in list(predictions.items())[::9]:
        evidence = gather_evidence(app, folder, find_prediction(app, folder, prediction_id))
        told = explain(app, prediction_id, evidence, nobody)
        assert told["same"] is True
        assert told["event"]["event_id"] == event_id
        json.dumps(told, allow_nan=False)
        for window in told["windows"]:
            counted = [value for text, value in window["aggregates"].items() if text.startswith("count(")]
            assert counted in ([], [window["count"]]), window
            assert window["count"] == len(window["events"])
            inside = [(one["event_time"], one["value"]) for one in window["events"]]
            assert all(one["value"] is not None for one in window["events"])
            assert [time for time, _ in inside] == sorted(time for time, _ in inside)
            for text, value in window["aggregates"].items():
                assert not (text.startswith("first(") and inside) or value == inside[0][1]
                assert not (text.startswith("last(") and inside) or value == inside[-1][1]
            late += window["late"]
            too_late += window["too_late_count"]
    assert late > 5
    assert too_late > 5


def test_a_late_event_is_too_late_for_those_before_and_late_for_those_after(tmp_path: Path) -> None:
    history = sales(24)
    order = [*range(12), *range(13, 18), 12, *range(18, 24)]  # event 12, of shop a, comes behind event 17
    served = serve(shop, to_messages(shop, history.take(pa.array(order))), tmp_path)
    by_event = {}
    for message in served.sent["shop-predictions"]:
        said = orjson.loads(message.data)
        if said["event_id"] not in ("e12", "e14", "e16", "e18"):
            continue
        evidence = gather_evidence(shop, tmp_path, find_prediction(shop, tmp_path, said["prediction_id"]))
        told = explain(shop, said["prediction_id"], evidence, nobody)
        of_amount = [one for one in told["windows"] if (one["value"], one["over"]) == ("sale.amount", "20s")]
        by_event[said["event_id"]] = of_amount[0]
    before, after = by_event["e16"], by_event["e18"]
    assert [one["event_id"] for one in by_event["e14"]["too_late"]] == []  # of another shop
    assert "e12" not in [one["event_id"] for one in before["events"]]
    own = by_event["e12"]
    assert [one["behind_s"] for one in own["events"] if one["event_id"] == "e12"] == [3.0]
    assert [(one["event_id"], one["behind_s"]) for one in after["events"] if one["behind_s"]] == [("e12", 3.0)]
    assert after["late"] == 1


def test_memory_limits_time_and_key_decide_what_is_read(archive: tuple[Path, dict[str, str]]) -> None:
    folder, _ = archive
    columns = ["event_id"]

    def everything(block: pa.RecordBatch) -> np.ndarray:
        return np.ones(block.num_rows, bool)

    def ids(**more: Any) -> list[str]:
        found = find_rows(folder, Wanted(["event_type"], everything, columns, **more))
        return sorted(one for block in found for one in block.column("event_id").to_pylist())

    whole = [one for commit in read_commits(folder) for one in commit.block.column("event_id").to_pylist()]
    assert ids() == sorted(whole)
    since, until = START_US + 20_000_000, START_US + 30_000_000
    assert ids(since_us=since, until_us=until) == sorted(f"e{i}" for i in range(20, 31))
    assert ids(day=date(2023, 11, 14)) == sorted(whole)
    assert ids(day=date(2023, 11, 15)) == []
    assert list(find_rows(folder, Wanted(["not_there"], everything))) == []


# -- the command --------------------------------------------------------------------------------------------
def why(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["why", *map(str, arguments)])


@pytest.fixture
def at_shop(tmp_path: Path) -> Callable[..., Any]:
    served = serve(shop, to_messages(shop, sales(60)), tmp_path / "archive")
    said = [orjson.loads(message.data) for message in served.sent["shop-predictions"]]
    options = ("--app", "tests/shop", "--archive", tmp_path / "archive")
    return lambda place, *more: why(said[place]["prediction_id"], *options, *more)


def test_the_command_tells_people_and_machines(at_shop: Callable[..., Any]) -> None:
    told = at_shop(40, "--events", 2)
    assert told.exit_code == 0, told.output
    wanted = ("all of it came out again", "amounts_20s", "earlier ones (--events shows more)", "big_sale.probability")
    assert [words for words in (*wanted, "late by") if words not in told.output] == []
    assert at_shop(40, "--event-id", "e53", "--day", "2023-11-14", "--json").exit_code == 0
    machine = json.loads(at_shop(40, "--json").stdout.splitlines()[-1])
    assert machine["same"] is True
    assert machine["model"] == "big_sale"
    assert {one["feature"] for one in machine["features"]} == set(shop.features)
    assert machine["stages"][0]["position"] == 53
    assert len(machine["windows"][0]["events"]) == machine["windows"][0]["count"]


def test_what_was_served_otherwise_is_seen(tmp_path: Path) -> None:
    """A feature and a prediction are changed in the archive: the command says which, and exits 1."""
    served = serve(shop, to_messages(shop, sales(40)), tmp_path / "right")
    said = orjson.loads(served.sent["shop-predictions"][20].data)
    identity = {"app": shop.name, "fingerprint": shop.fingerprint, "definitions": shop.definitions}
    wrong = Archive(tmp_path / "wrong", identity)
    for commit in read_commits(tmp_path / "right"):
        block = commit.block
        for name in ("feature.mean_10s", "prediction.big_sale.probability"):
            place = block.schema.get_field_index(name)
            block = block.set_column(place, block.schema.field(place), pa.compute.add(block.column(place), 1e-9))
        wrong.append(block, commit.counts)
    wrong.close()
    told = why(said["prediction_id"], "--app", "tests/shop", "--archive", tmp_path / "wrong")
    assert told.exit_code == 1
    changed = [line for line in told.output.splitlines() if line.endswith("NO")]
    assert [line.split()[0] for line in changed] == ["mean_10s"]
    assert "Something did not come out again" in told.output


@pytest.mark.parametrize(
    ("prediction_id", "words"),
    [
        ("abc", "wanted 32 hexadecimal digits"),
        ("f" * 32, "is not in archive"),
    ],
)
def test_what_cannot_be_found_is_told_in_a_sentence(tmp_path: Path, prediction_id: str, words: str) -> None:
    serve(shop, to_messages(shop, sales(10)), tmp_path)
    with pytest.raises(ConfigurationError, match=words):
        find_prediction(shop, tmp_path, prediction_id)
    with pytest.raises(ConfigurationError, match="of event 'e1' published on 2023-11-14 is not in archive"):
        find_prediction(shop, tmp_path, "f" * 32, event_id="e1", day=date(2023, 11, 14))


def test_a_model_server_that_is_not_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.why.SERVER_WAIT_S", 0.1)
    with (
        ModelClient(f"127.0.0.1:{free_port()}", "m") as client,
        pytest.raises(ConfigurationError, match="has not answered for 0 s: start it, or leave out --model-server"),
    ):
        _require_answer(client)


@pytest.mark.tensorflow
def test_a_model_is_loaded_without_tensorflows_lines() -> None:
    """Two of them come before TensorFlow looks at the level of its log."""
    loads = "import os; from serving.tensorflow_c import _Library; _Library(); os.write(2, b'ours')"
    done = subprocess.run([sys.executable, "-c", loads], cwd=repository.ROOT, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"ours")


def test_other_archives_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    served = serve(shop, to_messages(shop, sales(30)), tmp_path / "archive")
    prediction_id = orjson.loads(served.sent["shop-predictions"][9].data)["prediction_id"]
    with pytest.raises(FingerprintError, match="ask the version of the app that wrote it"):
        find_prediction(app, tmp_path / "archive", prediction_id)
    with pytest.raises(HistoryError, match="was not found"):
        find_prediction(shop, tmp_path / "nowhere", prediction_id)
    compact_archive(tmp_path / "archive")
    (rows,) = (tmp_path / "archive").glob("parquet/*/*.parquet")
    data = bytearray(rows.read_bytes())
    data[200:260] = bytes(60)
    rows.write_bytes(data)
    with pytest.raises(HistoryError, match=r"cannot be read .*: restore it from a copy"):
        find_prediction(shop, tmp_path / "archive", prediction_id)
    shutil.rmtree(tmp_path / "archive" / "commits")
    with pytest.raises(HistoryError, match="restore it from a copy"):
        find_prediction(shop, tmp_path / "archive", prediction_id)


def test_the_commands_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMERIVER_WHY_APP", str(Path(shop_app.__file__).parent))
    served = serve(shop, to_messages(shop, sales(40)), tmp_path / "var" / "archive" / "shop")
    said = orjson.loads(served.sent["shop-predictions"][20].data)
    (block,) = [block for block in repository.code_blocks("sh") if block.path == Path("docs/why.md")]
    for line in block.code.splitlines():
        given = line.replace("PREDICTION_ID", said["prediction_id"]).replace("EVENT_ID", said["event_id"])
        done = CliRunner().invoke(main, given.split()[1:], auto_envvar_prefix="SAMERIVER")
        assert done.exit_code == 0, done.output


def test_windows_that_reach_into_the_snapshot_of_a_hand_over(tmp_path: Path) -> None:
    """The archive begins with the state of 40 events that it does not hold: rows after them come out again."""
    block, plan = sales(60), make_plan(shop)
    states, deduplicator = [StageState(stage) for stage in plan.stages], Deduplicator(7 * 86_400_000_000)
    before = block.slice(0, 40)
    deduplicator.accept(before)
    for state in states:
        before = step(state, before)
    cut_us = START_US + 40_000_000
    folder = tmp_path / "archive"
    folder.mkdir()
    write_snapshot(folder / NAME, plan, states, deduplicator, cut_us, "history")
    served = serve(shop, to_messages(shop, block.slice(40)), folder)
    for message in served.sent["shop-predictions"][::4]:
        prediction_id = orjson.loads(message.data)["prediction_id"]
        evidence = gather_evidence(shop, folder, find_prediction(shop, folder, prediction_id))
        told = explain(shop, prediction_id, evidence, nobody)
        assert told["same"] is True
        assert told["snapshot_cut"] == "2023-11-14T22:14:00+00:00"
    said = CliRunner().invoke(main, ["why", prediction_id, "--app", "tests/shop", "--archive", str(folder)])
    assert "published before 2023-11-14T22:14:00+00:00: in the snapshot" in said.output
