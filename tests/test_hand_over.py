"""History to T in batch, then live from T: the bits of one run that folds what was published before T first (C9)."""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from batch.snapshot import snapshot
from batch.verify import verify
from shared_features import load_app
from shared_features.app import App
from shared_features.blocks import concat_blocks, flatten, nest
from shared_features.compute import run_stage, to_block
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.kernel import finish
from shared_features.plan import make_plan
from shared_features.state import StageState
from streaming.archive import Archive, read_commits
from streaming.job import create_topics
from streaming.naming import subscription_of
from streaming.snapshots import begin_from, read_snapshot
from streaming.topics import Endpoint, OutgoingMessage, Publisher, Subscriber, create_subscription
from tests import histories
from tests.faults.jobs import Jobs
from tests.histories import EVENT, START_US, block_of, event
from tests.processes import Started, wait_until
from tests.serving_steps import serve, to_messages
from tests.shop.app import app as shop

Start = Callable[..., Started]
HORIZON_US = 7 * 86_400_000_000


def instant(time_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=time_us)


def archived(folder: Path) -> pa.RecordBatch:
    """All rows in the order in which they were folded."""
    blocks = [commit.block for commit in read_commits(folder) if commit.block.num_rows]
    return concat_blocks(blocks)


def assert_same_as_one_run(app: App, before: pa.RecordBatch, live: pa.RecordBatch) -> None:
    """Features and flags of live rows are those of one run over ``before`` and then them, in one shard."""
    plan = make_plan(app)
    again = to_block(app, live.select([name for name in live.schema.names if name in before.schema.names]))
    states = [StageState(stage) for stage in plan.stages]
    for state in states:
        run_stage(state, before)
        numbered = again.append_column("publish_order", pa.array(np.arange(again.num_rows)))
        # In the order of the archive, whatever the publish times say.
        name = f"stage.{state.stage.name}"
        numbered = numbered.append_column(f"{name}.epoch", pa.repeat(pa.scalar(0, pa.int32()), again.num_rows))
        numbered = numbered.append_column(f"{name}.position", pa.array(np.arange(again.num_rows)))
        again = run_stage(state, numbered).drop_columns(["publish_order"])
    again = finish(plan, again)
    for column in (f"feature.{name}" for name in app.features):
        assert again.column(column).equals(live.column(column)), column
    for stage in plan.stages:
        assert again.column(f"stage.{stage.name}.late").equals(live.column(f"stage.{stage.name}.late"))
        assert set(live.column(f"stage.{stage.name}.epoch").to_pylist()) <= {1, None}


@settings(max_examples=3)
@given(
    events=st.lists(EVENT, min_size=4, max_size=40),
    cut=st.floats(0, 1),
    shards=st.sampled_from([1, 4]),
    restart=st.floats(0, 1),
)
def test_history_then_live_is_one_run(events: list[dict[str, Any]], cut: float, shards: int, restart: float) -> None:
    """Whatever is late, wherever the cut is, with a restart in between; a minute before the cut comes again."""
    block = block_of(events)
    block = block.take(pa.array(np.argsort(published(block), kind="stable")))
    times = published(block)
    cut_us = int(times[int(cut * (len(times) - 1))]) + (cut == 1)
    before, after = block.filter(pa.array(times < cut_us)), block.filter(pa.array(times >= cut_us))
    if not before.num_rows or not after.num_rows:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = histories.write(Path(name, "history"), block, files=2)
        made = snapshot(shop, folder, Path(name, "shop.state"), cut=instant(cut_us), shards=shards)
        begin(Path(name, "archive"), Path(made.file))
        comes = block.filter(pa.array(times >= cut_us - 60_000_000))
        messages = to_messages(shop, comes, published(comes).tolist())
        split = int(restart * len(messages))
        serve(shop, messages[:split], Path(name, "archive"))
        serve(shop, messages[max(0, split - 3) :], Path(name, "archive"))
        live = archived(Path(name, "archive"))
        assert sorted(ids(live)) == sorted(ids(after))
        assert_same_as_one_run(shop, before, live)
        assert verify(shop, Path(name, "archive")).ok


def published(block: pa.RecordBatch) -> np.ndarray:
    found: np.ndarray = block.column("publish_time").cast(pa.int64()).to_numpy()
    return found


def ids(block: pa.RecordBatch) -> list[str]:
    return [str(one) for one in block.column("event_id").to_pylist()]


def begin(archive: Path, file: Path) -> list[int]:
    sought: list[int] = []
    opened = Archive(archive, {"app": shop.name, "fingerprint": shop.fingerprint, "definitions": shop.definitions})
    try:
        begin_from(archive, file, make_plan(shop), HORIZON_US, sought.append)
    finally:
        opened.close()
    return sought


def test_a_snapshot_is_refused_where_it_would_not_be_true(tmp_path: Path) -> None:
    events = [event("sale", at, shop="a", amount=1.0) for at in range(30)]
    folder = histories.write(tmp_path / "history", block_of(events))
    out = tmp_path / "shop.state"
    with pytest.raises(HistoryError, match=r"known to be complete to 2023-11-14T22:13:49\+00:00 only, the cut is"):
        snapshot(shop, folder, out, cut=instant(START_US + 29_000_001))
    newest = instant(START_US + 29_000_000)
    made = snapshot(shop, folder, out, cut=newest + dt.timedelta(hours=1), complete_to=newest + dt.timedelta(hours=2))
    assert (made.events, made.identities, made.keys) == (30, 30, {"shop": 1, "till": 0})
    again = snapshot(shop, folder, out, cut=newest + dt.timedelta(hours=1), complete_to=newest + dt.timedelta(hours=2))
    assert again.reused
    assert read_snapshot(out).fingerprint == shop.fingerprint
    assert begin(tmp_path / "archive", out) == [START_US + 29_000_000 + 3_540_000_000]
    assert begin(tmp_path / "archive", out) == []  # a restart: no seek
    other = snapshot(shop, folder, tmp_path / "other.state", cut=newest)
    with pytest.raises(ConfigurationError, match="began with another snapshot"):
        begin(tmp_path / "archive", Path(other.file))
    serve(shop, to_messages(shop, block_of(events[:3])), tmp_path / "used")
    with pytest.raises(ConfigurationError, match="has events already"):
        begin(tmp_path / "used", out)
    with pytest.raises(HistoryError, match="is no snapshot"):
        read_snapshot(next((tmp_path / "history").glob("*.parquet")))
    with pytest.raises(HistoryError, match="wants 1209600 s"):
        begin_from(tmp_path / "archive", out, make_plan(shop), 2 * HORIZON_US, lambda _: None)
    with pytest.raises(FingerprintError, match="make one of the app as it is"):
        begin_from(tmp_path / "archive", out, make_plan(load_app("flights")), HORIZON_US, lambda _: None)


def test_on_real_flights_with_a_broker(start_process: Start, warm_jobs: Jobs, tmp_path: Path) -> None:
    """Two days of flights: the first is history, the second is published; the cut is among what was published.

    Some events of the first day come on the second: late, with the features of their time changed by them. What was
    published before the cut is in the history and on the subscription, and counts once.
    """
    app = load_app("flights")
    broker = start_process(["-m", "streaming.broker", "--port", "0"], ready="listening on")
    endpoint = Endpoint("hand-over", broker.line.rsplit(" ", 1)[-1])
    create_topics(app, endpoint)
    create_subscription(endpoint, "history", f"{app.name}-events")
    first, second = two_days()
    late = np.arange(first.num_rows) % 40 == 7
    now_us = time.time_ns() // 1000
    old = with_publish_times(first.filter(pa.array(~late)), now_us - 3_600_000_000)
    live = pa.concat_batches([second, first.filter(pa.array(late))])
    live = live.take(pa.array(np.random.default_rng(7).permutation(live.num_rows)))
    publisher, subscriber = Publisher(endpoint), Subscriber(endpoint, "history")
    third = live.num_rows // 3
    parts = [live.slice(0, third), live.slice(third, third), live.slice(2 * third)]
    held = [with_publish_times(parts[0], publish(publisher, subscriber, app, parts[0]))]
    held.append(with_publish_times(parts[1], publish(publisher, subscriber, app, parts[1])))
    cut_us = int(published(held[1]).min())
    assert published(held[0]).max() < cut_us
    history = tmp_path / "history"
    history.mkdir()
    rows = pa.concat_batches([old, *held])
    pq.write_table(nest(pa.Table.from_batches([rows]).drop_columns(["message_id"])), history / "flights.parquet")
    made = snapshot(app, history, tmp_path / "flights.state", cut=instant(cut_us), shards=3)
    assert made.events_left_out == {}
    archive = tmp_path / "archive"
    stream = ["stream", "--app", "flights", "--collect", "--emulator", endpoint.host_port or "", "--json"]
    stream += ["--project", endpoint.project, "--archive", str(archive), "--snapshot", made.file]
    job = warm_jobs.start(stream)
    job.wait_ready()
    publish(publisher, subscriber, app, parts[2])
    wanted = parts[1].num_rows + parts[2].num_rows
    wait_until(lambda: counted(archive) >= wanted, what=f"{wanted} events are archived")
    job.kill()
    job = warm_jobs.start(stream)  # comes back from snapshot and archive
    job.wait_ready()
    publish(publisher, subscriber, app, parts[0].slice(0, 50))  # sent again, by a careless publisher
    assert job.drain()["outcomes"].keys() <= {"recorded", "folded"}
    found = archived(archive)
    assert sorted(ids(found)) == sorted(ids(parts[1]) + ids(parts[2]))
    assert_same_as_one_run(app, to_block(app, pa.concat_batches([old, held[0]])), found)
    assert verify(app, archive).ok
    subscriber.close()
    publisher.close()
    refused = warm_jobs.start([*stream, "--archive", str(tmp_path / "new"), "--subscription", "nowhere"])
    assert refused.wait() == 2
    assert subscription_of(app) != "nowhere"


def two_days() -> list[pa.RecordBatch]:
    """Events of 5 and 6 November 2013."""
    table = flatten(pq.read_table(histories.flights() / "2013-11.parquet"))
    app = load_app("flights")
    days = table["event_time"].cast(pa.date32())
    return [
        to_block(app, table.filter(pc.equal(days, pa.scalar(dt.date(2013, 11, day), pa.date32())))) for day in (5, 6)
    ]


def with_publish_times(block: pa.RecordBatch, times: int | list[int]) -> pa.RecordBatch:
    given = times if isinstance(times, list) else (times + np.arange(block.num_rows)).tolist()
    place = block.schema.get_field_index("publish_time")
    return block.set_column(place, block.schema.field("publish_time"), pa.array(given, pa.timestamp("us", "UTC")))


def publish(publisher: Publisher, subscriber: Subscriber, app: App, block: pa.RecordBatch) -> list[int]:
    """Publish the rows; the publish time that the broker gave each of them."""
    messages = to_messages(app, block)
    names = publisher.publish(
        f"{app.name}-events", [OutgoingMessage(message.data, message.attributes) for message in messages]
    )
    times: dict[str, int] = {}
    while len(times) < len(names):
        came = subscriber.pull(1_000, 5.0)
        times |= {message.message_id: message.publish_time_us for message in came}
        subscriber.acknowledge([message.ack_id for message in came])
    return [times[name] for name in names]


def counted(archive: Path) -> int:
    if not (archive / "archive.json").exists():
        return 0
    return sum(commit.block.num_rows for commit in read_commits(archive))
