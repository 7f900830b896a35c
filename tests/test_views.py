"""Views: the same table in any pieces, in any order of arrival, live and after a restart; here hours of fishing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from apps.vessels.effort import fishing_hours
from apps.vessels.history import write_history
from apps.vessels.trips import Trips
from apps.vessels.views import Effort
from batch.backfill import backfill
from batch.backfill_rows import Asking
from batch.views import ViewFollower, ViewPublisher, fold_backfill, view_of
from cli import main
from shared_features import App, Rule, load_app
from shared_features.compute import to_block
from shared_features.errors import ConfigurationError
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from shared_features.state import StageState
from streaming.archive import Archive, compact_archive
from streaming.results import Answer, with_results
from streaming.topics import OutgoingMessage
from tests.serving_steps import serve, to_messages
from tests.test_vessels_app import START_US, Row, events

app = load_app("vessels")
START = datetime.fromtimestamp(START_US / 1e6, UTC)
IDENTITY = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}


def drawn(chosen: random.Random, count: int) -> tuple[list[Row], list[float]]:
    """Positions of a few vessels in the order of time, some without a place, with what the model says of each."""
    rows, probabilities, seconds = list[Row](), list[float](), 0.0
    for _ in range(count):
        seconds += chosen.choice([0, 1, 60, 600, 3600, 30 * 3600 if chosen.random() < 0.03 else 5])
        latitude = None if chosen.random() < 0.1 else chosen.choice([56.0, 56.04, -56.1])
        rows.append((seconds, chosen.randint(1, 3), latitude, chosen.choice([2.0, 2.5, -180.0, 180.0]), 3.0, 90.0))
        probabilities.append(chosen.choice([0.1, 0.49, 0.5, 0.9]))
    return rows, probabilities


def served(
    rows: Sequence[Row], probabilities: Sequence[float], cuts: Sequence[int], ids: Sequence[int] | None = None
) -> list[pa.RecordBatch]:
    """The blocks that a job would archive, cut where told."""
    plan = make_plan(app)
    states, stages = [StageState(stage) for stage in plan.stages], reaction_stages(app)
    table = events(rows)
    if ids is not None:
        table = table.set_column(table.schema.names.index("event_id"), "event_id", [[str(one) for one in ids]])
    whole, blocks = to_block(app, table), list[pa.RecordBatch]()
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        block = whole.slice(begin, end - begin)
        for state in states:
            block = step(state, block)
        answer = Answer({"probability": np.array(probabilities[begin:end])}, {}, 1)
        answers = {model.name: answer for model in app.models}
        blocks.append(with_results(app, finish(plan, block), answers, stages))
    return blocks


def hours(view: Effort) -> dict[Any, float]:
    return {(row["hour"], row["latitude"], row["longitude"]): row["hours"] for row in view.table().to_pylist()}


@pytest.mark.parametrize("seed", range(3))
def test_effort_is_that_of_all_positions_whatever_their_order_and_pieces(seed: int) -> None:
    chosen = random.Random(seed)
    rows, probabilities = drawn(chosen, 300)
    late_s = [chosen.choice([0, 0, 0, 3600, 5 * 3600]) for _ in rows]
    tables = []
    for order in (range(300), sorted(range(300), key=lambda i: rows[i][0] + late_s[i])):
        cuts = sorted(chosen.sample(range(1, 300), chosen.choice([0, 5, 60])))
        view, changed = Effort(app), dict[Any, float]()
        for block in served([rows[i] for i in order], [probabilities[i] for i in order], cuts, ids=order):
            for row in view.fold(block).to_pylist():
                changed[row["hour"], row["latitude"], row["longitude"]] = row["hours"]
        assert {key: value for key, value in changed.items() if value} == hours(view)
        tables.append(hours(view))
    assert tables[0] == tables[1] != {}


def test_effort_is_what_the_definition_gives() -> None:
    rows, probabilities = drawn(random.Random(11), 300)
    rows = [(row[0] + number, *row[1:]) for number, row in enumerate(rows)]  # no two at one instant
    view = Effort(app)
    for block in served(rows, probabilities, []):
        view.fold(block)
    placed = [i for i, row in enumerate(rows) if row[2] is not None]
    times_us = [round(rows[i][0] * 1e6) for i in placed]
    columns = {"key": [rows[i][1] for i in placed], "probability": [probabilities[i] for i in placed]}
    wanted: dict[Any, float] = {}
    for i, each in zip(placed, fishing_hours(pa.table({**columns, "time_us": times_us})), strict=True):
        cell = (rows[i][0] // 3600, round(rows[i][2] or 0.0), (rows[i][3] or 0.0) % 360)
        wanted[cell] = wanted.get(cell, 0.0) + each
    assert sorted(filter(None, wanted.values())) == pytest.approx(sorted(hours(view).values()))


def test_a_late_position_takes_hours_from_its_neighbours() -> None:
    #  0h fishing ── 2h fishing, then 1h comes, not fishing: it takes the middle hour.
    place = (56.0, 2.5, 3.0, 90.0)
    rows: list[Row] = [(0.0, 1, *place), (7200.0, 1, *place), (3600.0, 1, *place)]
    view, found = Effort(app), []
    for block in served(rows, [0.9, 0.9, 0.1], [1, 2]):
        view.fold(block)
        found.append(sorted(hours(view).values()))
    assert found == [[], [1.0, 1.0], [0.5, 0.5]]


def test_a_trip_from_port_to_port() -> None:
    port, sea, other = (41.4, -70.9), (41.0, -70.0), (44.5, -63.5)  # New Bedford, a ground, Halifax
    way: list[tuple[float, tuple[float, float], float, float]] = [
        (0, port, 0.0, 0.1), (1, port, 9.0, 0.1), (2, sea, 8.0, 0.1), (3, sea, 3.0, 0.9), (5, sea, 3.0, 0.9),
        (6, sea, 9.0, 0.1), (30, other, 9.0, 0.1), (31, other, 1.0, 0.1), (40, other, 0.0, 0.1), (41, sea, 9.0, 0.1),
    ]  # fmt: skip
    rows: list[Row] = [(hour * 3600.0, 7, *place, speed, 90.0) for hour, place, speed, _ in way]
    rows.insert(7, (4.0 * 3600, 7, *port, 0.0, 90.0))  # late: passed over
    probabilities = [one[3] for one in way]
    probabilities.insert(7, 0.1)
    trips = Trips(app)
    for block in served(rows, probabilities, [3, 4, 9]):
        trips.fold(block)
    first, second = trips.table().to_pylist()
    assert [(first[name] - START).total_seconds() / 3600 for name in ("started", "ended")] == [2, 31]
    assert (first["from_port"], first["to_port"], first["hours_fishing"]) == ("New Bedford", "Halifax", 3.0)
    assert (second["from_port"], second["ended"], second["to_port"]) == ("Halifax", None, None)
    assert second["alerts"] == 1  # 670 km in an hour


@pytest.mark.parametrize("seed", range(2))
def test_trips_do_not_depend_on_the_pieces(seed: int) -> None:
    chosen, rows, seconds = random.Random(seed), list[Row](), 0.0
    places = [(41.4, -70.9), (41.45, -70.8), (44.5, -63.5), (42.0, -69.0), (43.0, -66.0)]
    for _ in range(250):
        seconds += chosen.choice([0, 600, 3600])
        late_s = chosen.choice([0, 0, 0, 5000])
        rows.append((seconds - late_s, chosen.randint(1, 4), *chosen.choice(places), chosen.choice([0.0, 9.0]), 90.0))
    probabilities = [chosen.choice([0.1, 0.9]) for _ in rows]
    tables = []
    for pieces in (0, 9, 120):
        trips, changed = Trips(app), dict[Any, Any]()
        for block in served(rows, probabilities, sorted(chosen.sample(range(1, 250), pieces))):
            changed |= {(row["vessel"], row["started"]): row for row in trips.fold(block).to_pylist()}
        tables.append(sorted(trips.table().to_pylist(), key=str))
        assert sorted(changed.values(), key=str) == tables[-1]
    assert tables[0] == tables[1] == tables[2]
    assert sum(row["to_port"] is not None for row in tables[0]) > 20


def archived(folder: Path, blocks: Sequence[pa.RecordBatch]) -> None:
    """Append blocks, published, as a job does."""
    archive = Archive(folder, IDENTITY)
    for block in blocks:
        archive.mark_published(archive.append(block, {"received": block.num_rows}))
    archive.close()


def test_live_batch_and_after_a_restart_it_is_one_table(tmp_path: Path) -> None:
    rows, probabilities = drawn(random.Random(7), 240)
    blocks = served(rows, probabilities, [40, 90, 91, 200])
    folder, cursor, sent = tmp_path / "archive", tmp_path / "archive" / "views" / "effort.json", list[OutgoingMessage]()

    def publish(topic: str, messages: Sequence[OutgoingMessage]) -> None:
        assert topic == "vessels-view-effort"
        sent.extend(messages)

    for part in (blocks[:2], blocks[2:4], [], blocks[4:]):  # each time a new process
        archived(folder, part)
        follower = ViewFollower(view_of(app, "effort"), folder, app)
        publisher = ViewPublisher(app, follower, cursor, publish)
        before = len(sent)
        for changed in follower.catch_up():
            publisher.take(changed)
        assert (len(sent) > before) == bool(part)
    newest: dict[str, tuple[int, Any]] = {}
    for message in sent:
        row = json.loads(message.data)
        newest[message.attributes["key"]] = max(
            newest.get(message.attributes["key"], (-1, None)),
            (int(message.attributes["revision"]), (row["latitude"], row["longitude"], row["hours"])),
        )
    live = sorted(row for _, row in newest.values() if row[2])
    compact_archive(folder)
    out = tmp_path / "effort.parquet"
    run = CliRunner().invoke(
        main,
        ["view", "effort", "--app", "vessels", "--archive", str(folder), "--out", str(out), "--json"],
        catch_exceptions=False,
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert (run.exit_code, found["folded"], found["rows"]) == (0, 240, len(live))
    assert sorted((row["latitude"], row["longitude"], row["hours"]) for row in pq.read_table(out).to_pylist()) == live
    csv = CliRunner().invoke(
        main, ["view", "trips", "--app", "vessels", "--archive", str(folder), "--out", str(tmp_path / "e.csv")]
    )
    assert (csv.exit_code, pyarrow.csv.read_csv(tmp_path / "e.csv").num_rows) == (0, 3)


def test_a_backfill_of_the_history_gives_the_tables_of_the_live_job(tmp_path: Path) -> None:
    """Positions and second copies as a world has them; the job gets them in small pieces, batch has shards and days."""
    slow = app.features["slow_share_6h"]
    ruled = App(
        "vessels", event_types=list(app.event_types.values()), predict_on=app.predict_on, features=app.features,
        models=[Rule(app.models[0].name, slow)], reactions=app.reactions, lateness="6h",
    )  # fmt: skip
    write_history(tmp_path / "history", vessels=10, hours=24, seed=4, rated=0)
    history = to_block(ruled, pq.read_table(tmp_path / "history"))
    published = history.column("publish_time").cast(pa.int64()).to_pylist()
    serve(ruled, to_messages(ruled, history, published), tmp_path / "archive", block_rows=700)
    done = backfill(ruled, tmp_path / "history", tmp_path / "out", asking=Asking("", None, {}), shards=3)
    assert done.rows_added < history.num_rows  # second copies
    pairs: list[tuple[Any, Any]] = [(make(ruled), make(ruled)) for make in (Effort, Trips)]
    for live, batch in pairs:
        follower = ViewFollower(live, tmp_path / "archive", ruled)
        for _ in follower.catch_up():
            pass
        assert fold_backfill(batch, ruled, tmp_path / "out") == follower.rows
        tables = [sorted(view.table().to_pylist(), key=str) for view in (live, batch)]
        assert tables[0] == tables[1]
        assert len(tables[0]) > 5
        assert live.left_out == batch.left_out
        assert live.left_out["positions without a place"] > 0
    with pytest.raises(ConfigurationError, match="has no predictions of app 'flights'"):
        fold_backfill(batch, load_app("flights"), tmp_path / "out")


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"has the views effort, .*: name one of them, got 'ports'"):
        view_of(app, "ports")
    wrong = CliRunner().invoke(main, ["view", "effort", "--app", "vessels", "--archive", "nothing", "--out", "x.json"])
    assert (wrong.exit_code, "ends with .parquet or .csv" in wrong.output) == (2, True)
    with pytest.raises(ConfigurationError, match=r"has no views: wanted some in views.py beside its app.py"):
        view_of(load_app("flights"), None)
