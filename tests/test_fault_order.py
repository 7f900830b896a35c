"""Events out of order, and a job that comes back from what an earlier release left."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from batch.verify import verify
from shared_features.blocks import block_schema
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from streaming.archive import read_commits
from streaming.recovery import fold_archived
from streaming.topics import OutgoingMessage, Publisher
from tests.faults.app import app
from tests.faults.jobs import Jobs
from tests.faults.rig import Rig
from tests.processes import new_seed, start, wait_until
from tests.serving_steps import serve, to_messages

SAVED = Path(__file__).parent / "faults" / "archive_1"
HOUR_US = 3_600_000_000
START_US = 1_700_000_000_000_000


def readings(count: int, draw: np.random.Generator) -> pa.RecordBatch:
    """Six hours of eight meters, in order of event time."""
    times = START_US + np.sort(draw.integers(0, 6 * HOUR_US, count))
    columns: dict[str, Any] = {
        "event_type": ["reading"] * count,
        "event_id": [f"r{number}" for number in range(count)],
        "event_time": times,
        "publish_time": times + 4 * HOUR_US,
        "reading.meter": [f"m{number}" for number in draw.integers(0, 8, count)],
        "reading.x": draw.integers(-5, 6, count),
    }
    fields = [(field.name, field.type) for field in block_schema(app.event_types)]
    arrays = [pa.array(columns[name], kind) if name in columns else pa.nulls(count, kind) for name, kind in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=block_schema(app.event_types))


def answers(states: list[StageState], probe: pa.RecordBatch) -> pa.RecordBatch:
    """What the states say of more readings; folds them."""
    for state in states:
        probe = step(state, probe)
    return finish(make_plan(app), probe)


def states_of(archive: Path) -> list[StageState]:
    """State after all that the archive holds."""
    states = [StageState(stage) for stage in make_plan(app).stages]
    for commit in read_commits(archive):
        fold_archived(make_plan(app), states, commit.block)
    return states


@pytest.mark.parametrize(("count", "seeds"), [(300, 3), pytest.param(10_000, 20, marks=pytest.mark.soak)])
def test_events_up_to_two_hours_out_of_order(tmp_path: Path, count: int, seeds: int) -> None:
    """Each is served as the batch path folds it at its place; the state at the end is that of the events in order."""
    first = new_seed()
    differing = 0
    for seed in range(first, first + seeds):
        draw = np.random.default_rng(seed)
        block = readings(count, draw)
        order = np.argsort(np.arange(count) / count * 6 * HOUR_US + draw.uniform(-HOUR_US, HOUR_US, count))
        whole, shuffled = tmp_path / f"{seed}-whole", tmp_path / f"{seed}-shuffled"
        published = [START_US + 10 * HOUR_US] * count
        serve(app, to_messages(app, block, published), whole, block_rows=50)
        serve(app, to_messages(app, block.take(pa.array(order)), published), shuffled, block_rows=37)
        for archive in (whole, shuffled):
            report = verify(app, archive)
            assert (report.events, report.mismatches) == (count, 0), f"seed {seed}: {report.first_mismatch}"
        in_order, out_of_order = states_of(whole), states_of(shuffled)
        assert [state.retained for state in out_of_order] == [state.retained for state in in_order], f"seed {seed}"
        probe = readings(200, draw)
        assert answers(out_of_order, probe).equals(answers(in_order, probe)), f"seed {seed}"
        differing += served(whole) != served(shuffled)
    print(f"seeds {first} to {first + seeds - 1}: {count} events each")
    assert differing == seeds  # what an event saw did depend on the order, or the shuffling proves nothing


def served(archive: Path) -> dict[str, Any]:
    """Event id -> how many readings of its meter the last hour had."""
    blocks = [commit.block for commit in read_commits(archive)]
    return {
        key: value
        for block in blocks
        for key, value in zip(
            block.column("event_id").to_pylist(), block.column("feature.count_1h").to_pylist(), strict=True
        )
    }


# -- an upgrade ---------------------------------------------------------------------------------------------
@pytest.fixture
def rig(warm_jobs: Jobs, tmp_path: Path) -> Iterator[Rig]:
    broker = start(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    try:
        made = Rig(warm_jobs, broker.line.rpartition(" ")[2], tmp_path)
        yield made
        made.close()
    finally:
        broker.kill()


def test_a_job_goes_on_from_the_archive_of_an_earlier_release(rig: Rig) -> None:
    """A job of 100 readings, drained once and then killed: its last ten were not marked published, a frame is torn.

    What it had published comes no more, its last ten come again, old readings are duplicates, new ones see the old.
    """
    shutil.copytree(SAVED, rig.archive)
    identity = json.loads((rig.archive / "archive.json").read_text("utf-8"))
    (rig.archive / "archive.json").write_text(json.dumps(identity | {"fingerprint": app.fingerprint}), "utf-8")
    old = [commit.block for commit in read_commits(rig.archive)]
    assert sum(block.num_rows for block in old) == 100
    last_ten = old[-1].column("event_id").to_pylist()
    job = rig.start_job()
    assert job.ready is not None
    assert job.ready["recovered_rows"] == 100
    wait_until(lambda: len(rig.predictions.by_event) >= 10, what="the last ten come again")
    again = [message for block in old for message in to_messages(app, block)]
    publisher = Publisher(rig.endpoint)
    publisher.publish("meters-events", [OutgoingMessage(one.data, one.attributes) for one in again])
    publisher.close()
    rig.next = itertools.count(1_000)
    rig.publish(100)
    rig.wait_predicted()
    totals = job.drain()
    assert (totals["duplicates"], totals["outcomes"]) == (100, {"predicted": 100})
    assert rig.predictions.by_event.keys() == set(rig.published) | set(last_ten)
    report = rig.verified()
    assert (report["events"], report["mismatches"]) == (200, 0)
