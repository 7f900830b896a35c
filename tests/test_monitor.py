"""Live quality against an obvious reading, alarms drawn as timelines, one fold live, restarted and in batch."""

from __future__ import annotations

import json
import random
import shlex
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from batch.drifts import PREDICTION
from batch.monitor import ALARMS, Monitor
from batch.monitor_metrics import MonitorMonitoring
from batch.scores import Scores
from batch.views import ViewFollower, ViewPublisher
from cli import main
from commands.jobs import alone
from commands.retrain import Retraining
from commands.retrain_triggers import Triggers
from shared_features import Alarm, App, Kpi, Label, Rule, outcome, prediction, where
from shared_features.compute import compute_block
from shared_features.errors import ConfigurationError, DefinitionError
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from streaming.archive import Archive, compact_archive
from streaming.results import apply_rule, with_results
from streaming.topics import OutgoingMessage
from tests import repository
from tests.histories import SECOND, START_US, block_of, event
from tests.processes import Started, wait_until
from tests.serving_steps import serve, to_messages
from tests.shop.app import app as shop
from tests.shop.app import sale, visit
from tests.test_verify import sales
from training.kpis import kpi_figures
from training.metrics import calibration_error, log_loss, rank_auc
from training.sketches import sketch_of

GUIDE = Path("docs/monitoring.md")
WINDOW_S = 100
START_S = START_US // SECOND
TRAINED = sketch_of(np.random.default_rng(2).normal(0.5, 0.1, 20_000))


def app_of(*alarms: Alarm) -> App:
    return App(
        name="watched",
        event_types=[sale, visit],
        predict_on=sale,
        features={"amount": sale.amount, "units": sale.units},
        label=Label(visit.length >= 3.0, join=("shop", "shop"), within="20s"),
        models=[Rule("score", sale.amount)],
        kpis=[
            Kpi("missed", outcome() & (prediction() < 0.5), scale=0),
            Kpi("cost", where(outcome(), sale.units * 0.1 * (1 - prediction()), prediction() / 3), scale=3),
        ],
        alarms=alarms,
        lateness="15s",
    )


def served(app: App, events: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """What a job would archive of events in this order."""
    block = compute_block(make_plan(app), block_of(list(events)))
    answers = {model.name: apply_rule(app, model, block) for model in app.models if isinstance(model, Rule)}
    return with_results(app, block, answers, reaction_stages(app))


def drawn(chosen: random.Random, count: int) -> list[dict[str, Any]]:
    """Sales with a shop of their own; most have visits, some late or of no use; in order of arrival."""
    arrivals: list[tuple[float, dict[str, Any]]] = []
    for number in range(count):
        at = chosen.randint(0, 5 * count) / 10
        score = chosen.choice([0.2, 0.25, 0.5, 0.501, 0.9, chosen.random()])
        sold = event(
            "sale", at, shop=f"s{number}", amount=score, units=chosen.choice([None, 1, 5]), event_id=f"sale{number}"
        )
        arrivals.append((at + chosen.choice([0, 0, 0, 3, 14, 40]), sold))
        for visits in range(chosen.choice([0, 1, 1, 2])):
            then = at + chosen.choice([-1, 0, 2, 8, 20, 21])
            length = chosen.choice([None, 1.0, 3.0, 5.0])
            came = event("visit", then, shop=f"s{number}", length=length, event_id=f"visit{number}-{visits}")
            arrivals.append((then + chosen.choice([0, 0, 5, 14, 30]), came))
    return [one for _, one in sorted(arrivals, key=lambda pair: pair[0])]


def oracle(events: Sequence[dict[str, Any]]) -> dict[int, list[tuple[float, int | None, bool | None]]]:
    """By window: (score, units, label) of each sale, as the definition says."""
    newest, sales, visits = -1e9, list[Any](), list[Any]()
    for one in events:
        newest = max(newest, one["at"])
        if round(one["at"] - newest, 6) >= -15:
            (sales if one["event_type"] == "sale" else visits).append(one)
    found: dict[int, list[tuple[float, int | None, bool | None]]] = {}
    for sold in sales:
        mine = sorted(
            (one["at"], one["event_id"], one["length"])
            for one in visits
            if one["shop"] == sold["shop"] and 0 <= round(one["at"] - sold["at"], 6) <= 20 and one["length"] is not None
        )
        label = mine[0][2] >= 3.0 if mine else None
        window = int((START_S + sold["at"]) // WINDOW_S * WINDOW_S)
        found.setdefault(window, []).append((sold["amount"], sold["units"], label))
    return found


def watching(app: App) -> Monitor:
    trained = {"rows": 20_000, "missing": 0.0, "sketch": TRAINED}
    reference = {"numbers": {"amount": trained}, "texts": {}, "predictions": {"probability": trained}}
    return Monitor(app, lambda *_: reference, WINDOW_S * SECOND)


@pytest.mark.parametrize("seed", range(2))
def test_quality_is_that_of_the_joined_labels_however_rows_are_cut(seed: int) -> None:
    chosen = random.Random(seed)
    app, events = app_of(), drawn(chosen, 400)
    block = served(app, events)
    tables = []
    for pieces in (0, 50):
        monitor = watching(app)
        cuts = sorted(chosen.sample(range(1, block.num_rows), pieces))
        for begin, end in zip([0, *cuts], [*cuts, block.num_rows], strict=True):
            monitor.fold(block.slice(begin, end - begin))
        tables.append(list(monitor.quality.rows()))
    assert tables[0] == tables[1]
    wanted = oracle(events)
    assert [row["window"] // SECOND for row in tables[0]] == sorted(wanted)
    for row in tables[0]:
        rows = wanted[row["window"] // SECOND]
        labelled = [one for one in rows if one[2] is not None]
        assert (row["predictions"], row["labelled"]) == (len(rows), len(labelled))
        scores, labels = np.array([one[0] for one in labelled]), np.array([one[2] for one in labelled])
        assert row["auc"] == pytest.approx(rank_auc(labels, scores), abs=0.01)
        assert row["log_loss"] == pytest.approx(log_loss(labels, scores), abs=1e-8)
        assert row["kpi.missed"] == (labels & (scores < 0.5)).mean()
        features = pa.table({"amount": scores, "units": pa.array([one[1] for one in labelled], pa.int64())})
        found = kpi_figures(app, "score", features, labels.astype(bool), scores)
        assert {name: row[f"kpi.{name}"] for name in found} == {name: one["value"] for name, one in found.items()}
        assert set(found) == {"missed", "cost"}
        share, count = found["missed"]["value"], len(labelled)
        assert found["missed"]["high"] - share == pytest.approx(1.96 * (share * (1 - share) / count) ** 0.5, rel=1e-4)
    assert monitor.quality.too_late["labels"] > 0 < monitor.quality.too_late["predictions"]
    assert sum(len(one or ()) for one in (monitor.quality._waiting, monitor.quality._labels)) < 150  # of 800


def test_scores_are_nearly_exact_and_can_be_taken_back() -> None:
    chosen = np.random.default_rng(4)
    scores = np.concatenate([chosen.beta(0.3, 2, 20_000), [0.0, 1.0]])
    labels = chosen.random(len(scores)) < scores
    tally = Scores()
    tally.add(scores, labels)
    once = tally.figures()
    assert once["auc"] == pytest.approx(rank_auc(labels, scores), abs=1e-4)
    assert once["calibration_error"] == pytest.approx(calibration_error(labels, scores), abs=2e-3)
    tally.add(scores[:99], ~labels[:99])
    tally.add(scores[:99], ~labels[:99], -1)
    assert tally.figures() == once
    assert set(Scores().figures().values()) == {0, None}


def timeline(app: App, means: Sequence[float], flips: Sequence[float]) -> list[dict[str, Any]]:
    """250 sales in each window with scores of some mean, and a visit that says their label, or the opposite."""
    chosen, events = np.random.default_rng(1), []
    for window, (mean, flip) in enumerate(zip(means, flips, strict=True)):
        for number in range(250):
            at = window * WINDOW_S + number * 0.39
            score, shop = float(np.clip(chosen.normal(mean, 0.1), 0, 1)), f"{window}-{number}"
            true = (chosen.normal(score, 0.05) > mean) != (chosen.random() < flip)
            events.append(event("sale", at, shop=shop, amount=score, units=1, event_id=f"a{shop}"))
            events.append(event("visit", at + 0.1, shop=shop, length=4.0 if true else 1.0, event_id=f"b{shop}"))
    return events


def test_alarms_go_on_and_off_once() -> None:
    #  window        0    1    2    3     4    5    6    7       judged as the next one begins (psi), or 20 s later
    means = [0.5, 0.5, 0.5, 0.53, 0.7, 0.6, 0.5, 0.5]
    flips = [0.0, 0.9, 0.0, 0.9, 0.9, 0.0, 0.0, 0.0]
    app = app_of(
        Alarm("psi", above=0.5, until=0.2, of=["amount"]),
        Alarm("ks", above=0.5, of=["prediction"]),
        Alarm("auc", below=0.45, until=0.5, windows=2),
        Alarm("missed", above=0.9),
    )
    block = served(app, timeline(app, means, flips))
    whole, pieces = (watching(app) for _ in range(2))
    whole.fold(block)
    for begin in range(0, block.num_rows, 333):
        pieces.fold(block.slice(begin, 333))
    assert whole.table() == pieces.table()
    assert list(whole.drifts.rows()) == list(pieces.drifts.rows())
    first = START_S // WINDOW_S * WINDOW_S
    told = [
        (row["alarm"].split()[0], row["of"], round((row["window"].timestamp() - first) / WINDOW_S), row["on"])
        for row in whole.table().to_pylist()
    ]
    assert told == [
        ("psi", "amount", 4, True),
        ("ks", PREDICTION, 4, True),
        ("auc", "", 4, True),
        ("ks", PREDICTION, 5, False),
        ("auc", "", 5, False),
        ("psi", "amount", 6, False),
    ]
    assert whole.standing() == []


def archived(folder: Path, app: App, blocks: Sequence[pa.RecordBatch]) -> None:
    archive = Archive(folder, {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
    for block in blocks:
        archive.mark_published(archive.append(block, {"received": block.num_rows}))
    archive.close()


def test_after_restarts_it_is_the_same_and_nothing_is_published_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(Alarm("psi", above=0.5, until=0.2), Alarm("auc", below=0.45))
    block = served(app, timeline(app, [0.5, 0.8, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0]))
    folder, sent = tmp_path / "archive", list[OutgoingMessage]()

    def publish(topic: str, messages: Sequence[OutgoingMessage]) -> None:
        assert topic == "watched-view-alarms"
        sent.extend(messages)

    for begin, rows in ((0, 700), (700, 400), (1100, 0), (1100, 900)):  # each time a new process
        archived(folder, app, [block.slice(begin, rows)] if rows else [])
        monitor = watching(app)
        follower = ViewFollower(monitor, folder, app)
        publisher = ViewPublisher(app, follower, folder / "views" / "monitor.json", publish)
        for changed in follower.catch_up():
            publisher.take(changed)
    at_once = watching(app)
    at_once.fold(block)
    assert [json.loads(one.data)["on"] for one in sent] == at_once.table().column("on").to_pylist()
    assert list(monitor.quality.rows()) == list(at_once.quality.rows())
    monitoring = MonitorMonitoring(monitor, follower)
    monitoring.update(caught_up=True)
    said = monitoring.metrics().decode()
    assert 'sameriver_quality{metric="auc",model="score",version="0"}' in said
    assert 'sameriver_kpi{kpi="missed",model="score",version="0"}' in said
    assert 'sameriver_drift_psi{feature="prediction",model="score",version="0"}' in said
    assert 'sameriver_alarm{alarm="auc below 0.45",model="score",of=""} 0.0' in said
    assert monitoring.status()["ready"] is True
    compact_archive(folder)
    follower = ViewFollower(again := watching(app), folder, app)
    assert sum(changed.num_rows for changed in follower.catch_up()) == len(sent)
    assert list(again.quality.rows()) == list(monitor.quality.rows())
    monkeypatch.setattr("commands.options.load", lambda *_: app)
    arguments = ["--archive", str(folder), "--out", str(tmp_path / "tables"), "--window", f"{WINDOW_S}s"]
    run = CliRunner().invoke(main, ["monitor", *arguments, "--json"], catch_exceptions=False)
    found = json.loads(run.stdout.splitlines()[-1])
    assert (run.exit_code, found["windows"], found["labelled"]) == (0, 4, 1_000)
    assert pq.read_table(tmp_path / "tables" / "quality.parquet").column("auc").to_pylist() == [
        row["auc"] for row in monitor.quality.rows()
    ]
    assert pq.read_table(tmp_path / "tables" / "alarms.parquet").num_rows == 2  # without a model's folder no drift
    assert "alarm off auc below 0.45" in CliRunner().invoke(main, ["monitor", *arguments]).output


def test_a_process_follows_a_live_job_until_ctrl_c(tmp_path: Path, start_process: Callable[..., Started]) -> None:
    folder, tables, sold = tmp_path / "archive", tmp_path / "tables", sales(60)
    serve(shop, to_messages(shop, sold.slice(0, 30)), folder)
    arguments = ["monitor", "--app", "tests/shop", "--archive", folder, "--out", tables, "--window", "20s", "--json"]
    running = start_process(["-m", "cli", *arguments, "--follow", "--every", "0.05"], ready="metrics at http://")

    def counted(rows: int) -> bool:
        path = tables / "quality.parquet"
        return path.exists() and sum(pq.read_table(path).column("predictions").to_pylist()) == rows

    sold_first, all_sold = (sum(kind == "sale" for kind in sold["event_type"].to_pylist()[:rows]) for rows in (30, 60))
    wait_until(lambda: counted(sold_first), what="the first rows")
    serve(shop, to_messages(shop, sold.slice(30)), folder)
    wait_until(lambda: counted(all_sold), what="what came while it followed")
    assert running.stop(signal.SIGINT) == 0
    told = json.loads(running.lines[-1])
    again = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
    assert json.loads(again.stdout.splitlines()[-1]) == told  # it folds the archive anew, and says the same
    assert counted(all_sold)
    other = CliRunner().invoke(main, ["monitor", "--app", "flights", "--archive", str(folder), "--out", str(tables)])
    assert other.exit_code == 2
    assert "app 'flights' has" in other.output
    assert "give the app's own archive" in other.output


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(DefinitionError, match="reads the outcome, which is known only afterwards"):
        App("a", event_types=[sale], predict_on=sale, features={"x": outcome()})
    with pytest.raises(DefinitionError, match="KPI name 'auc' is that of a figure"):
        Kpi("auc", outcome())
    with pytest.raises(DefinitionError, match="uses what is no feature: add"):
        App(
            "a",
            event_types=[sale, visit],
            predict_on=sale,
            features={"x": sale.amount},
            label=Label(visit.length >= 3.0, join=("shop", "shop"), within="20s"),
            kpis=[Kpi("k", sale.units)],
        )
    with pytest.raises(DefinitionError, match=r"alarm on 'profit' cannot be, wanted one of"):
        app_of(Alarm("profit", above=1))
    with pytest.raises(DefinitionError, match=r"until=0.9, which lies beyond its bound 0.5"):
        Alarm("auc", above=0.5, until=0.9)


def test_what_calls_for_a_retraining(tmp_path: Path) -> None:
    day, start = timedelta(days=1), datetime(2024, 1, 1, tzinfo=UTC)
    table = tmp_path / "alarms.parquet"

    def write(*switches: tuple[int, str, bool]) -> None:
        row = {"alarm": "auc below 0.8", "model": "m", "of": "", "version": 1, "value": 0.7, "judged_at": start}
        rows = [{**row, "window": start + at * day, "kind": kind, "on": on} for at, kind, on in switches]
        pq.write_table(pa.Table.from_pylist(rows, schema=ALARMS), table)

    triggers = Triggers(
        "m", table, tmp_path / "m" / "triggers.json", ("quality",), timedelta(days=7), timedelta(days=3)
    )
    assert triggers.due(start) == ["the first time"]
    triggers.answer(triggers.standing(), start)
    assert triggers.due(start + 6 * day) == []
    assert triggers.due(start + 7 * day) == ["the last time is 7 days, 0:00:00 ago"]
    write((1, "drift", True))
    assert triggers.due(start + day) == []  # of another kind
    write((2, "quality", True))
    called = triggers.due(start + 2 * day)
    assert called == triggers.due(start + 2 * day) == ["auc below 0.8 since 2024-01-03 00:00"]  # until it is answered
    triggers.answer(triggers.standing(), start + 2 * day)
    assert triggers.due(start + 4 * day) == []
    assert triggers.due(start + 5 * day) == called  # again, as it still stands
    write((2, "quality", True), (3, "quality", False))
    assert triggers.due(start + 5 * day) == []
    write((2, "quality", True), (3, "quality", False), (4, "quality", True))
    assert triggers.due(start + 4 * day) == ["auc below 0.8 since 2024-01-05 00:00"]
    table.write_bytes(b"PAR1")
    with pytest.raises(ConfigurationError, match=r"alarms.parquet is damaged .*: remove it, and `sameriver monitor`"):
        triggers.standing()
    triggers.answered.write_text('{"retrained": ')
    with pytest.raises(ConfigurationError, match=r"triggers.json is damaged .*: remove it, and no retraining"):
        triggers.due(start)


def test_a_retraining_that_nothing_calls_for_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    called = list[str]()

    def steps(run: Retraining, *_: object) -> None:
        called.append(run.model.name)
        run.promoted = True

    monkeypatch.setattr(Retraining, "steps", steps)
    command = ["retrain", "--app", "flights", "--every", "7d", "--on", "drift"]
    first, second = (CliRunner().invoke(main, command, catch_exceptions=False) for _ in range(2))
    assert (first.exit_code, called) == (0, ["wide_and_deep"])
    assert "retraining: the first time" in first.output
    assert (second.exit_code, second.stdout) == (0, "nothing calls for a retraining of wide_and_deep\n")
    assert CliRunner().invoke(main, ["retrain", "--watch"]).exit_code == 2
    wrong = CliRunner().invoke(main, [*command, "--recent", "soon"])
    assert (wrong.exit_code, "--recent got the duration 'soon'" in wrong.output) == (2, True)  # before it is called for
    with (
        alone(tmp_path / "lock", "a model is being made"),
        pytest.raises(ConfigurationError, match="being made by anoth"),
    ):
        alone(tmp_path / "lock", "a model is being made").__enter__()


def test_the_commands_of_the_guide_can_be_given() -> None:
    lines = [line for block in repository.code_blocks("sh") if block.path == GUIDE for line in block.code.splitlines()]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line, comments=True)
        context = main.commands[words[1]].make_context(words[1], words[2:])
        assert context.params["app_name"] == "flights"
