"""An analyst's ratings of whole trips: from the view of trips by CSV and the topic's events to training rows."""

from __future__ import annotations

import csv
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import cli
from apps.vessels.history import START, write_history
from apps.vessels.ratings import Ratings
from commands.event_files import EventFile, as_received, check_rows
from shared_features import load_app
from shared_features.compute import to_block
from shared_features.decode import Decoder
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from shared_features.state import StageState
from streaming.archive import Archive
from streaming.results import Answer, with_results
from tests import repository
from tests.processes import start, wait_until

TRIPS = 20
RATED_AT = START + timedelta(days=4)
app = load_app("vessels")


def run(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli.main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Job:
    """Folds events into an archive as a job does; the model says fishing where the vessel has long been slow."""

    def __init__(self, folder: Path) -> None:
        plan = make_plan(app)
        self._plan, self._states = plan, [StageState(stage) for stage in plan.stages]
        identity = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}
        self._archive, self._reactions = Archive(folder, identity), reaction_stages(app)

    def take(self, block: pa.RecordBatch) -> None:
        for state in self._states:
            block = step(state, block)
        block = finish(self._plan, block)
        asked = pc.equal(block.column("event_type"), app.predict_on.name)
        slow = np.nan_to_num(block.column("feature.slow_share_6h").filter(asked).to_numpy(zero_copy_only=False))
        answers = {model.name: Answer({"probability": slow}, {}, 1) for model in app.models}
        block = with_results(app, block, answers, self._reactions)
        self._archive.mark_published(self._archive.append(block, {"received": block.num_rows}))

    def take_file(self, path: Path, event_type: str) -> int:
        """What `sameriver publish` sends of a CSV file, decoded as the job decodes it; how many."""
        decoder, now_us = Decoder(app.event_types), int(RATED_AT.timestamp() * 1e6)
        rows = list(EventFile(app, str(path), event_type=event_type).rows(sys.stdin.buffer))
        good, bad = check_rows(decoder, rows, now_us)
        assert not bad
        self.take(decoder.decode(as_received(good, now_us)).block)
        return len(good)

    def close(self) -> None:
        self._archive.close()


def by_vessel(positions: pa.RecordBatch, truth: dict[str, bool]) -> dict[int, list[tuple[datetime, bool]]]:
    """When each vessel was fishing, as far as anybody knows, in the order of time."""
    columns = (positions.column(name).to_pylist() for name in ("position.vessel", "event_time", "event_id"))
    found: dict[int, list[tuple[datetime, bool]]] = {}
    for vessel, at, one in sorted(zip(*columns, strict=True)):
        if one in truth:
            found.setdefault(vessel, []).append((at, truth[one]))
    return found


def analyse(trips: Path, truth: dict[int, list[tuple[datetime, bool]]], out: Path) -> None:
    """Rate the trips with most hours of fishing: a row for every stretch on which the vessel did one thing."""
    with trips.open() as file, out.open("w", newline="") as rated:
        writer = csv.writer(rated)
        writer.writerow(["event_id", "rated_at", "vessel", "started", "ended", "fishing"])
        ended = [row for row in csv.DictReader(file) if row["ended"] and int(row["vessel"]) in truth]
        ended.sort(key=lambda row: -float(row["hours_fishing"]))
        assert len(ended) >= TRIPS
        for trip in ended[:TRIPS]:
            begin, end = datetime.fromisoformat(trip["started"]), datetime.fromisoformat(trip["ended"])
            seen = [(at, fishing) for at, fishing in truth[int(trip["vessel"])] if begin <= at <= end]
            for number, (fishing, stretch) in enumerate(itertools.groupby(seen, lambda one: one[1])):
                moments = [at.isoformat() for at, _ in stretch]
                name = f"{trip['vessel']}-{begin:%m%d%H%M}-{number}"
                writer.writerow([name, RATED_AT.isoformat(), trip["vessel"], moments[0], moments[-1], fishing])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.RecordBatch, dict[str, bool]]:
    """Two and a half days of 150 vessels in the order of arrival, second copies left out; and who was fishing where."""
    folder = tmp_path_factory.mktemp("world")
    write_history(folder, vessels=150, hours=60, seed=5, rated=1.0)
    table = pq.read_table(folder)
    truth = table.filter(pc.equal(table["event_type"], "rated"))["rated"].combine_chunks()
    positions = table.filter(pc.equal(table["event_type"], "position"))
    _, firsts = np.unique(positions["event_id"].to_numpy(), return_index=True)
    fishing = dict(zip(truth.field("position_id").to_pylist(), truth.field("fishing").to_pylist(), strict=True))
    return to_block(app, positions.take(np.sort(firsts))), fishing


def test_twenty_trips_rated_by_csv_are_labels_of_the_next_training_rows(
    world: tuple[pa.RecordBatch, dict[str, bool]], tmp_path: Path
) -> None:
    positions, truth = world
    archive, trips, ratings = tmp_path / "archive", tmp_path / "trips.csv", tmp_path / "ratings.csv"
    job = Job(archive)
    for at in range(0, positions.num_rows, 10_000):
        job.take(positions.slice(at, 10_000))
    run("view", "trips", "--app", "vessels", "--archive", archive, "--out", trips)
    analyse(trips, by_vessel(positions, truth), tmp_path / "rated-trips.csv")
    stretches = job.take_file(tmp_path / "rated-trips.csv", "trip_rated")
    assert stretches > TRIPS  # some were fishing for a part of the trip
    found = run("view", "ratings", "--app", "vessels", "--archive", archive, "--out", ratings)
    assert job.take_file(ratings, "rated") == found["rows"] > 20 * TRIPS
    job.close()
    run("archive", "export", "--app", "vessels", "--archive", archive, "--to", tmp_path / "history")
    made = run(
        "traindata", "--app", "vessels", "--history", tmp_path / "history", "--out", tmp_path / "rows",
        "--shards", "1", "--validate-from", "2024-06-16T05:00:00", "--test-from", "2024-06-16T08:00:00",
    )  # fmt: skip
    assert sum(made["rows"].values()) + made["rows_left_out"]["outside_splits"] == found["rows"]
    rows = pq.read_table(tmp_path / "rows")
    labels = dict(zip(rows["event_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
    assert labels == {one: truth[one] for one in labels}
    assert 0.02 < np.mean(list(labels.values())) < 0.98


@pytest.mark.soak
def test_the_page_s_commands_from_a_live_job_to_the_next_model(
    world: tuple[pa.RecordBatch, dict[str, bool]], tmp_path: Path
) -> None:
    positions, truth = world
    blocks = [block.code for block in repository.code_blocks("sh") if block.path == Path("docs/ratings.md")]
    commands = [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines()]
    up = commands.pop(1)
    done = {" ".join(command[:2]): command for command in commands}
    assert up[0] == "up"
    environment: dict[str, str | None] = {"PUBSUB_EMULATOR_HOST": None}

    def cli_of(command: list[str]) -> dict[str, Any]:
        process = start(["-m", "cli", *command, "--json"], cwd=tmp_path, env=environment)
        assert process.wait() == 0, process.lines[-20:]
        found: dict[str, Any] = json.loads(process.lines[-1])
        return found

    cli_of(done["data vessels"])
    ports = ["--broker-port", "0", "--model-port", "0", "--gateway-port", "0", "--json"]
    live = start(["-m", "cli", *up, *ports], cwd=tmp_path, env=environment, ready='"ready"')
    try:
        environment["PUBSUB_EMULATOR_HOST"] = json.loads(live.line)["pubsub_emulator_host"]
        cli_of(done["publish var/world"])
        view = done["view trips"]
        wait_until(lambda: cli_of(view)["folded"] == positions.num_rows, what="all positions are in the archive")
        analyse(tmp_path / "trips.csv", by_vessel(positions, truth), tmp_path / "rated-trips.csv")
        stretches = cli_of(done["publish rated-trips.csv"])["published"]
        view = done["view ratings"]
        wait_until(lambda: cli_of(view)["folded"] == positions.num_rows + stretches, what="the trips' ratings are, too")
        ratings = cli_of(done["publish ratings.csv"])["published"]
        wait_until(lambda: cli_of(view)["folded"] == positions.num_rows + stretches + ratings, what="and all ratings")
        cli_of(done["archive export"])
        made = cli_of(done["traindata --app"])
        assert sum(made["rows"].values()) + made["rows_left_out"]["outside_splits"] == ratings > 20 * TRIPS
        trained = cli_of(done["train --app"])
        judged = cli_of(done["evaluate --app"])
        print(json.dumps({"stretches": stretches, "made": made, "trained": trained, "judged": judged}))
        assert judged["rows"] == made["rows"]["test"]
    finally:
        live.kill()


def events(*rows: tuple[str, str, int, int, int | None, bool | None]) -> pa.RecordBatch:
    """Type, identity, hour, vessel; of a rating from which hour it holds until its own, and what it says."""
    hours = [START + timedelta(hours=row[2]) for row in rows]
    rating = [row[0] == "trip_rated" for row in rows]
    begins = [None if row[4] is None else START + timedelta(hours=row[4]) for row in rows]
    ends = [None if row[4] is None else START + timedelta(hours=row[4] + 2) for row in rows]
    instant = pa.timestamp("us", "UTC")
    columns: dict[str, Any] = {
        "event_type": [row[0] for row in rows],
        "event_id": [row[1] for row in rows],
        "event_time": pa.array(hours, instant),
        "publish_time": pa.array(hours, instant),
        "position.vessel": pa.array([None if of else row[3] for row, of in zip(rows, rating, strict=True)], pa.int64()),
        "trip_rated.vessel": pa.array(
            [row[3] if of else None for row, of in zip(rows, rating, strict=True)], pa.int64()
        ),
        "trip_rated.started": pa.array(begins, instant),
        "trip_rated.ended": pa.array(ends, instant),
        "trip_rated.fishing": pa.array([row[5] for row in rows], pa.bool_()),
    }
    return to_block(app, pa.table(columns))


@pytest.mark.parametrize("cuts", [[], [1], [2, 5], range(1, 9)])
def test_a_rating_speaks_of_all_positions_from_its_first_moment_to_its_last(cuts: Sequence[int]) -> None:
    # hour        0   1   2   3   4
    # vessel 1    a   b   c   d   e
    #             └───r───┘           fishing          said second
    #                     └───s───┘   not fishing      said first: it holds at c
    block = events(
        ("position", "a", 0, 1, None, None),
        ("position", "b", 1, 1, None, None),
        ("position", "x", 1, 2, None, None),
        ("trip_rated", "r", 9, 1, 0, True),
        ("position", "d", 3, 1, None, None),
        ("position", "c", 2, 1, None, None),
        ("trip_rated", "s", 8, 1, 2, False),
        ("position", "e", 4, 1, None, None),
        ("position", "f", 5, 1, None, None),
        ("trip_rated", "t", 9, 3, 0, True),  # a vessel that nobody has heard of
    )
    view, changed = Ratings(app), dict[str, bool]()
    for begin, end in zip([0, *cuts], [*cuts, block.num_rows], strict=True):
        for row in view.fold(block.slice(begin, end - begin)).to_pylist():
            changed[row["position_id"]] = row["fishing"]
    found = {row["position_id"]: (row["event_id"], row["fishing"]) for row in view.table().to_pylist()}
    assert found == {
        "a": ("a-r", True),
        "b": ("b-r", True),
        "c": ("c-s", False),
        "d": ("d-s", False),
        "e": ("e-s", False),
    }
    assert changed == {one: fishing for one, (_, fishing) in found.items()}
    assert view.left_out == {"ratings that speak of no position": 1}
