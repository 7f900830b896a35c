"""The demo's parts: what is replayed in which order, how it is counted, how it looks."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from apps.flights.app import app
from commands.demo_tally import NEVER, Tally
from commands.demo_verdict import verdict
from commands.demo_view import WIDTH, Stage, View, bar, export_svg, sparkline
from commands.replay import BURST, KILL, STEADY, WARM, Replay, ReplaySettings, _messages, make_replay, warm_up_us
from shared_features import load_app
from shared_features.blocks import block_schema, nest
from shared_features.errors import HistoryError
from streaming.intake import Intake
from streaming.topics import Message

START = datetime(2013, 11, 1, tzinfo=UTC)
MINUTE_US = 60_000_000


def history(folder: Path, days: int = 5, every_min: int = 5) -> Path:
    """A departure every five minutes from two days before the start, each with an arrival two hours later."""
    first = START - timedelta(days=2)
    rows = []
    for number in range(days * 24 * 60 // every_min):
        left = first + timedelta(minutes=every_min * number)
        delay = float(number % 40) - 5
        common = {"flight_id": f"F{number}", "carrier": "UA", "tail_number": f"N{number % 50}"}
        common |= {"origin": "EWR", "dest": "ORD"}
        leaving = {
            **common,
            "scheduled_at": left - timedelta(minutes=delay),
            "scheduled_arrival_at": left + timedelta(hours=2),
            "scheduled_duration": 120.0,
            "departure_delay": delay,
            "flight_number": number,
            "distance": 700,
        }
        landing = {**common, "arrival_delay": delay}
        for kind, at, values in (("departed", left, leaving), ("arrived", left + timedelta(hours=2), landing)):
            row = {"event_type": kind, "event_id": f"F{number}-{kind}", "event_time": at, "publish_time": at}
            rows.append(row | {f"{kind}.{name}": value for name, value in values.items()})
    block = pa.RecordBatch.from_pylist(rows, schema=block_schema(app.event_types))
    pq.write_table(pa.Table.from_batches([nest(block)]), folder / "2013-11.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return history(tmp_path_factory.mktemp("history"))


def settings(**changes: float) -> ReplaySettings:
    return ReplaySettings(START, START + timedelta(days=2), steady_events=300, kill_events=100, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def replay(folder: Path) -> Replay:
    return make_replay(app, folder, settings())


def times_us(replay: Replay) -> np.ndarray:
    found: np.ndarray = replay.block.column("publish_time").cast(pa.int64()).to_numpy()
    return found


def test_the_warm_up_is_as_long_as_features_can_look_back() -> None:
    assert warm_up_us(app) == (24 + 24) * 3_600_000_000


def test_phases_follow_each_other(replay: Replay) -> None:
    assert np.all(np.diff(replay.phase) >= 0)
    assert (replay.phase == STEADY).sum() == 300
    assert (replay.phase == KILL).sum() == 100
    assert (replay.phase == BURST).sum() > 300
    start_us = int(START.timestamp()) * 1_000_000
    warm = times_us(replay)[replay.phase == WARM]
    assert warm.max() < start_us
    assert warm.min() >= start_us - warm_up_us(app)
    assert (times_us(replay)[replay.phase != WARM] >= start_us).all()


def test_what_is_untouched_goes_in_fold_order(replay: Replay) -> None:
    untouched = ~replay.late & ~replay.again
    names = ("publish_time", "event_type", "event_id")
    rows = [tuple(replay.block.column(name)[row].as_py() for name in names) for row in np.flatnonzero(untouched)]
    assert rows == sorted(rows)
    assert not (replay.late | replay.again)[replay.phase == WARM].any()


def test_late_events_come_10_to_60_minutes_after_their_time(replay: Replay) -> None:
    """
    published   ──a──b──c──d──e──f──          b is late: it comes after d, whose time is up to an hour later
    replayed    ──a─────c──d──b──e──f──
    """
    measured = int((replay.phase != WARM).sum() - replay.again.sum())
    assert replay.late.sum() == round(0.05 * measured)
    times = times_us(replay)
    newest = np.maximum.accumulate(np.where(replay.late | replay.again, 0, times))
    held_us = newest[replay.late] - times[replay.late]
    assert (held_us > 4 * MINUTE_US).all()  # the next event in time is up to five minutes away
    assert (held_us <= 60 * MINUTE_US).all()


def test_events_sent_twice_are_the_same_and_come_later(replay: Replay) -> None:
    ids = replay.block.column("event_id").to_pylist()
    for row in np.flatnonzero(replay.again).tolist():
        assert ids.index(ids[row]) < row
    assert len(ids) - len(set(ids)) == replay.again.sum() == round(0.01 * len(set(ids[(replay.phase == WARM).sum() :])))


def test_the_seed_decides(folder: Path, replay: Replay) -> None:
    again, other = make_replay(app, folder, settings()), make_replay(app, folder, settings(seed=2))
    assert again.block.equals(replay.block)
    assert not other.block.equals(replay.block)


def test_the_messages_are_those_that_the_job_decodes(replay: Replay, tmp_path: Path) -> None:
    replay.write(app, tmp_path / "replay.arrow")
    with pa.OSFile(str(tmp_path / "replay.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    rows = [row for of in table["rows"].to_pylist() for row in of]
    assert rows == list(range(len(times_us(replay))))  # each of its types is in a key: they keep their order
    assert table.num_rows < len(rows)  # those before the measured ones go in blocks
    at = times_us(replay)
    messages = [
        Message(row["data"], json.loads(row["attributes"]), str(number), int(at[row["rows"][-1]]), "")
        for number, row in enumerate(table.to_pylist())
    ]
    taken = Intake(app.event_types).take(messages)
    assert taken.refused == []
    for name in set(replay.block.schema.names) - {"message_id", "publish_time"}:
        assert taken.block.column(name).equals(replay.block.column(name)), name


def test_types_that_no_feature_aggregates_come_behind_their_block() -> None:
    types = ["position", "rated", "position", "rated", "position", "position", "rated", "position"]
    assert _messages(load_app("vessels"), types, 6) == [[0, 2, 4, 5], [1], [3], [6], [7]]


def test_a_history_without_the_days_is_refused(folder: Path) -> None:
    with pytest.raises(HistoryError, match="no event published from"):
        make_replay(app, folder, ReplaySettings(START.replace(year=2014), START.replace(year=2015), 10))


# -- counting -----------------------------------------------------------------------------------------------
def told(tally: Tally, rows: range, *, answered: bool = True, latency_ms: float = 5.0) -> None:
    """Publish rows, one a millisecond, and answer those that are predicted on."""
    ids = tally.replay.block.column("event_id").to_pylist()
    tally.sent([(row, row * 1_000_000) for row in rows])
    if answered:
        asked = [row for row in rows if tally.asked[row]]
        tally.got([(ids[row], f"p-{ids[row]}", 0.75, row * 1_000_000 + round(latency_ms * 1e6)) for row in asked])


def test_what_was_acknowledged_and_never_came_is_lost(replay: Replay) -> None:
    tally = Tally(app, replay)
    total = replay.block.num_rows
    told(tally, range(total - 100))
    assert tally.lost() == 0
    told(tally, range(total - 100, total), answered=False)
    lost = int(tally.asked[total - 100 :].sum())
    assert tally.lost() == lost > 0
    assert tally.to_predict() - tally.predictions() == lost
    assert len(tally.missing(WARM)) == 0


def test_second_copies_and_redeliveries_are_counted_once(replay: Replay) -> None:
    tally = Tally(app, replay)
    told(tally, range(replay.block.num_rows))
    told(tally, range(replay.block.num_rows))
    departures = {
        event_id for event_id in replay.block.column("event_id").to_pylist() if event_id.endswith("-departed")
    }
    assert tally.predictions() == tally.to_predict() == len(departures)
    assert tally.repeated == len(departures)
    tally.got([("nobody's", "p", 0.5, 1)])
    assert tally.strangers == 1


def test_what_a_kill_did_is_told_from_both_ends(replay: Replay) -> None:
    """Ten events were on their way; a reaction told twice is one."""
    tally = Tally(app, replay)
    assert tally.outage() is None
    asked = np.flatnonzero(tally.asked & (replay.phase == KILL))[:30].tolist()
    ids = replay.block.column("event_id").to_pylist()
    tally.killed()
    at = tally.killed_ns
    times = [at - 2_000_000_000] * 10 + [at + 1_000_000] * 5 + [at + 9_001_000_000] * 5
    tally.sent([(row, at - 3_000_000_000) for row in asked[:20]] + [(row, at + 5) for row in asked[20:]])
    assert tally.outage() == (0.0, 20)
    tally.got([(ids[row], ids[row], 0.75, when) for row, when in zip(asked[:20], times, strict=True)])
    assert tally.outage() == (9.0, 5)
    tally.reaction_ids.update(["one", "two"])
    tally.reaction_ids.update(["two"])
    assert tally.reactions == 2


def test_a_kill_waits_for_work_in_flight(replay: Replay) -> None:
    tally = Tally(app, replay)
    assert tally.killed_ns == NEVER
    told(tally, range(int(np.flatnonzero(replay.phase == KILL)[0])))
    assert not tally.has_predicted(KILL)
    told(tally, range(replay.block.num_rows))
    assert tally.has_predicted(KILL)


def test_latency_is_that_of_the_steady_phase_whoever_reports_first(replay: Replay) -> None:
    tally = Tally(app, replay)
    phase = {name: range(*np.flatnonzero(replay.phase == name)[[0, -1]] + [0, 1]) for name in (WARM, STEADY, BURST)}
    told(tally, phase[WARM], latency_ms=900)
    assert np.isnan(tally.latency().p50_ms)
    told(tally, phase[STEADY], latency_ms=7)
    told(tally, phase[BURST], latency_ms=900)
    assert (tally.latency().p50_ms, tally.latency().p99_ms) == (7.0, 7.0)
    assert [one.p50_ms for one in tally.latency_by_second()] == [7.0] * len(tally.latency_by_second())
    burst = phase[BURST]
    last_asked = max(row for row in burst if tally.asked[row])
    assert tally.burst_events_per_s() == pytest.approx(len(burst) / ((last_asked - burst[0]) * 1e-3 + 0.9), rel=1e-6)


def test_a_prediction_is_right_when_it_says_what_came_to_pass(replay: Replay) -> None:
    tally = Tally(app, replay)
    told(tally, range(replay.block.num_rows))
    rows = tally.measured_rows()
    late = tally.outcome[rows] == 1
    delays = replay.block.column("departed.departure_delay").take(pa.array(rows)).to_numpy()
    assert np.array_equal(late, delays >= 15)
    landed = [row for row in range(replay.block.num_rows) if tally.asked[row] and tally.has_landed(row)]
    assert tally.right == sum(tally.outcome[row] == 1 for row in landed)  # 0.75 says late, every time
    assert tally.right + tally.wrong == len(landed)


# -- the picture --------------------------------------------------------------------------------------------
def shown(view: View, height: int = 40) -> str:
    console = Console(width=WIDTH, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(view.frame(height))
    return capture.get()


def a_view(replay: Replay) -> View:
    view = View("sameriver demo", [Stage("history", "336,776 flights", "done", seconds=4.2), Stage("burst")])
    view.tally = Tally(app, replay)
    told(view.tally, range(1_200))
    view.observe()
    return view


@pytest.mark.parametrize("height", [16, 24, 40, 100])
def test_a_frame_fits_any_terminal_and_is_a_rectangle(replay: Replay, height: int) -> None:
    lines = shown(a_view(replay), height).splitlines()
    assert {len(line) for line in lines} == {WIDTH}
    assert len(lines) <= max(height, 16)


def test_a_frame_shows_flights_with_their_chance_and_what_came_of_it(replay: Replay) -> None:
    text = shown(a_view(replay))
    assert "✓ history" in text
    assert "EWR · ORD" in text
    assert "75%" in text
    assert "not known yet" in text or "arrival_delay" in text


def test_a_frame_before_anything_has_happened() -> None:
    assert "· burst" in shown(View("sameriver demo", [Stage("burst")]))


def test_bars_and_sparklines() -> None:
    assert bar(0.5, 4) == "██  "
    assert bar(-1, 4) == "    "
    assert bar(2, 4) == "████"
    assert bar(0.3, 1) == "▎"
    assert sparkline([1, 2, float("nan"), 4], 10) == "▂▄█"
    assert sparkline([], 10) == sparkline([0.0], 10) == ""


def test_a_frame_as_a_picture(replay: Replay, tmp_path: Path) -> None:
    export_svg(a_view(replay), tmp_path / "docs" / "demo.svg", "title")
    picture = (tmp_path / "docs" / "demo.svg").read_text()
    assert "EWR&#160;·&#160;ORD" in picture
    assert "url(http" not in picture.replace('"', "")


@pytest.mark.parametrize(("mismatches", "word"), [(0, "to the last bit"), (3, "Something is wrong")])
def test_the_verdict_says_whether_all_is_well(mismatches: int, word: str) -> None:
    figures = "events to_predict predictions duplicates sent_twice late lost dead_letters training_mismatches seconds"
    result: dict[str, Any] = dict.fromkeys(figures.split(), 0) | {"restarts": 1, "in_flight_at_kill": 7}
    result |= {"outage_s": 9.25, "events_per_s": 1.0, "p50_ms": 1.0, "p99_ms": 2.0, "auc": 0.9}
    report = {"features": 10, "predictions": 5, "training_compared": 4, "training_differences_late": 2}
    console = Console(width=WIDTH)
    with console.capture() as capture:
        drawn = {"hours": 1782.4, "cells": 103, "picture": "var/demo.png"}
        console.print(verdict(result | {"auc_live": None, "mismatches": mismatches, "verify": report, "map": drawn}))
    assert word in capture.get()
    assert "var/demo.png: 1,782 hours, 103 cells" in capture.get()
    assert "kill -9, 7 events in flight; predictions again after 9.2 s" in capture.get()
