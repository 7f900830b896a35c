"""A history folded by Beam gives what one call of `compute` gives, whatever shards, splits and order of rows (C3)."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from batch import partitions, partitions_spill, tables
from batch.partitions_spans import reachable
from batch.traindata import features_of_history
from shared_features import compute, load_app
from shared_features.aggregates import Aggregate
from shared_features.blocks import from_ipc, nest
from shared_features.columns import Evaluator
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.hashing import hash_columns
from shared_features.kernel import key_column, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from streaming.coders import BlockCoder
from tests import histories
from tests.histories import EVENT, SECOND, START_US, block_of, computed, event, in_order
from tests.oracle import Row, answers
from tests.shop.app import app

PLAN = make_plan(app)


def features(folder: Path, **options: Any) -> pa.Table:
    rows = features_of_history(app, folder, **options)
    return rows.drop_columns("publish_time").replace_schema_metadata(None)


@settings(max_examples=6)
@given(
    events=st.lists(EVENT, min_size=1, max_size=40),
    published=st.booleans(),
    shards=st.sampled_from([1, 2, 7]),
    files=st.integers(1, 3),
    row_group_rows=st.integers(1, 20),
    together=st.sampled_from([1, 10_000, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_equals_compute_whatever_the_shards_splits_and_order(
    events: list[dict[str, Any]],
    published: bool,
    shards: int,
    files: int,
    row_group_rows: int,
    together: int,
    seed: int,
) -> None:
    block = block_of(events, published=published)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "SPLIT_ROWS", 5)
        patch.setattr(tables, "BLOCK_ROWS", 3)
        patch.setattr(partitions, "DAY_US", 20 * SECOND)
        patch.setattr(partitions_spill, "TOGETHER_BYTES", together)
        folder = histories.write(Path(name), block, files=files, row_group_rows=row_group_rows, seed=seed)
        assert features(folder, shards=shards).equals(computed(app, block))


@settings(max_examples=3)
@given(events=st.lists(EVENT, min_size=1, max_size=30), shards=st.sampled_from([1, 7]))
def test_equals_the_oracle(events: list[dict[str, Any]], shards: int) -> None:
    """Each aggregate recomputed row by row from the contract's words, through files, shuffles, shards and spans."""
    block = block_of(events)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "DAY_US", 10 * SECOND)
        got = features(histories.write(Path(name), block), shards=shards, span=1)
    wanted = oracle(block)
    for row in got.to_pylist():
        for feature, value in app.features.items():
            if isinstance(value, Aggregate):
                expected = wanted[row["event_id"]].get(value.key)
                assert (row[feature], type(row[feature])) == (expected, type(expected)), (feature, row)


@settings(max_examples=100)
@given(
    events=st.lists(EVENT, min_size=2, max_size=40),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=3).map(sorted),
)
def test_a_span_that_begins_with_what_it_can_reach_gives_what_all_before_gives(
    events: list[dict[str, Any]], cuts: list[int]
) -> None:
    """However late its events are, and however long ago its keys were seen: through some cuts, one after the other."""
    block = block_of(events)
    block = block.take(pc.sort_indices(pa.Table.from_batches([block]), sort_keys=[("publish_time", "ascending")]))
    for stage in PLAN.stages:
        keyed = block.filter(key_column(stage.key, Evaluator(block)).is_valid())
        state = StageState(stage)
        wanted = [step(state, keyed.slice(at, 1)) for at in range(keyed.num_rows)]
        begin = keyed.slice(0, 0)
        for since, until in pairwise([0, *cuts, keyed.num_rows + 40]):
            span = keyed.slice(since, until - since)
            state = StageState(stage)
            step(state, begin)
            state.position = min(since, keyed.num_rows)
            if span.num_rows:
                assert step(state, span).equals(pa.concat_batches(wanted[since:until]))
            begin = reachable(stage, app.lateness_us, pa.concat_batches([begin, span]))


def oracle(block: pa.RecordBatch) -> dict[str, dict[str, Any]]:
    """Answers of the oracle by event id, with rows in the order (publish time, event type, event id)."""
    by = [(name, "ascending") for name in ("publish_time", "event_type", "event_id")]
    block = block.take(pc.sort_indices(pa.Table.from_batches([block]), sort_keys=by))
    evaluator = Evaluator(block)
    ids, types = block.column("event_id").to_pylist(), block.column("event_type").to_pylist()
    times = block.column("event_time").cast(pa.int64()).to_pylist()
    hashes = hash_columns([block.column("event_type"), block.column("event_id")]).tolist()
    found: dict[str, dict[str, Any]] = {event_id: {} for event_id in ids}
    for stage in PLAN.stages:
        aggregates = [output.aggregate for output in stage.outputs]
        inputs = {a.key: _inputs(evaluator, a) for a in aggregates}
        keys = [None] * len(ids)
        for field in stage.key.fields.values():
            keys = [a if a is not None else b for a, b in zip(keys, evaluator.array(field).to_pylist(), strict=True)]
        rows = [
            Row(keys[i], times[i], hashes[i], {key: values[i] for key, values in inputs.items()}, types[i] == "sale")
            for i in range(len(ids))
        ]
        for event_id, answer in zip(ids, answers(rows, aggregates, app.lateness_us), strict=True):
            found[event_id] |= answer
    return found


def _inputs(evaluator: Evaluator, aggregate: Aggregate) -> list[Any]:
    values: list[Any] = evaluator.array(aggregate.value).to_pylist()
    if aggregate.where is None:
        return values
    return [v if keep else None for v, keep in zip(values, evaluator.array(aggregate.where).to_pylist(), strict=True)]


@settings(max_examples=4)
@given(events=st.lists(EVENT, min_size=2, max_size=30), cut=st.integers(0, 30), seed=st.integers(0, 99), data=st.data())
def test_an_archive_is_folded_in_its_own_order(
    events: list[dict[str, Any]], cut: int, seed: int, data: st.DataObject
) -> None:
    """C1: with positions, batch folds in (epoch, position), not by publish time; and takes duplicates for served."""
    block = block_of(data.draw(st.permutations(events)))  # the order of arrival
    states = [StageState(stage) for stage in PLAN.stages]
    served = []
    for piece in (block.slice(0, cut), block.slice(cut)):
        for state in states:
            piece = step(state, piece)
            state.epoch += piece.num_rows > 0  # as after a change of the shard count
            state.position = 0
        served.append(piece)
    archived = pa.concat_batches(served)
    archived = archived.select([name for name in archived.schema.names if not name.startswith("aggregate.")])
    with tempfile.TemporaryDirectory() as name:
        folder = histories.write(Path(name), archived, files=2, seed=seed)
        assert features(folder, shards=3).equals(computed(app, archived))


def test_what_a_live_job_would_refuse_is_left_out_and_duplicates_count_once(tmp_path: Path) -> None:
    good = [event("sale", at, shop="a", amount=1.0) for at in range(4)]
    bad = [
        event("sale", 1, shop="a", amount=float("nan")),
        event("sale", 1, shop="a", amount=float("inf")),
        event("sale", 1, shop="a", amount=1e300),  # beyond the sums' integers
        event("refund", 1),
        event("sale", 1, shop="a", amount=9.0, event_id=""),
        event("sale", 1000, shop="a", amount=9.0, late=-700),  # 700 s ahead of its publish time
        event("sale", 2e10, shop="a", amount=9.0),  # after the year 2100
    ]
    block = block_of(good + bad)
    again = good[0] | {"event_id": block.column("event_id")[0].as_py(), "late": 2, "amount": 5.0}
    twice = pa.concat_batches([block, block_of([again])])
    folder = histories.write(tmp_path / "history", twice)
    assert features(folder, shards=3).equals(computed(app, block.slice(0, 4)))


def test_ties_between_duplicates_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    same = [event("sale", 1, shop="a", amount=float(i % 3), event_id="same") for i in range(6)]
    got = [
        features(histories.write(tmp_path / str(seed), block_of(same), row_group_rows=1, seed=seed), shards=1)
        for seed in range(3)
    ]
    assert got[0].num_rows == 1
    assert got[0]["amount"].to_pylist() == [0.0]
    assert got[0].equals(got[1])
    assert got[0].equals(got[2])


def test_publish_times_on_some_rows_only_are_refused(tmp_path: Path) -> None:
    """Each shard alone may see one kind: the sum over all of them tells."""
    published = block_of([event("sale", 1, shop="a", till=1)])
    unpublished = block_of([event("sale", 2, shop="b", till=2, event_id="x")], published=False)
    folder = histories.write(tmp_path, pa.concat_batches([published, unpublished]))
    for shards in (1, 5):
        with pytest.raises(HistoryError, match=r"1 (of 2 rows|events) without a publish_time"):
            features(folder, shards=shards)


@pytest.mark.parametrize("shards", [1, 7])
def test_a_range_of_events_sees_windows_as_full_as_the_whole_history(tmp_path: Path, shards: int) -> None:
    events = [event("sale", at, shop="a", till=at % 2, amount=at / 3, late=at % 40) for at in range(0, 2000, 3)]
    folder = histories.write(tmp_path, block_of(events), row_group_rows=50)
    whole = features(folder, shards=shards)
    since, until = (pa.scalar(START_US + at * SECOND, pa.timestamp("us", "UTC")).as_py() for at in (1300, 1500))
    inside = whole.filter(
        pc.and_(pc.greater_equal(whole["event_time"], since), pc.less(whole["event_time"], until))
    ).combine_chunks()
    assert inside.num_rows == 66
    assert features(folder, since=since, until=until, shards=shards).combine_chunks().equals(inside)
    ids = inside["event_id"].to_pylist()[:3]
    chosen = features(folder, event_ids=[*ids, "unknown"], shards=shards)
    assert chosen.combine_chunks().equals(inside.slice(0, 3).combine_chunks())


def test_no_event_predicted_on_gives_no_row(tmp_path: Path) -> None:
    got = features(histories.write(tmp_path, block_of([event("visit", 1, shop="a", length=1.0)])))
    assert got.num_rows == 0
    assert got.schema.names == ["event_id", "event_time", *app.features]


def test_rows_and_columns_that_no_later_step_reads_are_dropped() -> None:
    flights = make_plan(load_app("flights"))
    names = [stage.name for stage in flights.stages]
    assert names == ["origin", "dest", "carrier", "plane"]
    assert "weather.wind_speed" in partitions.columns_before(flights, 0)
    assert "weather.wind_speed" not in partitions.columns_before(flights, 1)
    assert "departed.flight_number" not in partitions.columns_before(flights, 0)
    assert "departed.flight_id" in partitions.columns_before(flights, 4, ["departed.flight_id"])
    schema = tables.event_schema(flights.app)
    rows = [{"event_type": name, "event_time": 0, f"{name}.origin": "JFK"} for name in ("weather", "departed")]
    block = pa.RecordBatch.from_pylist(rows, schema=schema)
    read = list(partitions.route(flights, block, -1, 1, ["departed"]))
    assert [(place.step, piece.num_rows) for place, piece in read] == [(0, 2)]
    ended = list(partitions.route(flights, block, 3, 1, ["departed"]))
    assert [piece.column("event_type").to_pylist() for _, piece in ended] == [["departed"]]


def test_blocks_travel_as_arrow_and_never_as_pickles() -> None:
    block = block_of([event("sale", 1, shop="é", amount=-0.0)])
    coder = BlockCoder()
    assert coder.decode(coder.encode(block)).equals(block)
    assert from_ipc(coder.encode(block.slice(0, 0))).num_rows == 0
    assert not coder.is_deterministic()
    with pytest.raises(HistoryError, match="serialised block was wanted"):
        coder.decode(b"\x80\x04N.")


def test_shards_must_be_one_or_more(tmp_path: Path) -> None:
    folder = histories.write(tmp_path, block_of([event("sale", 1)]))
    with pytest.raises(ConfigurationError, match="number of shards is 0"):
        features(folder, shards=0)


def test_a_real_month_of_flights_equals_compute(tmp_path: Path) -> None:
    month = pq.read_table(histories.flights() / "2013-02.parquet")
    shuffled = month.take(np.random.default_rng(1).permutation(month.num_rows))
    pq.write_table(shuffled, tmp_path / "shuffled.parquet", row_group_size=9000)
    flights = load_app("flights")
    got = features_of_history(flights, tmp_path, shards=5).drop_columns("publish_time")
    assert got.num_rows > 20_000
    assert got.replace_schema_metadata(None).equals(in_order(compute(flights, month)))


def test_nested_and_flat_columns_read_the_same(tmp_path: Path) -> None:
    block = block_of([event("sale", at, shop="a", amount=1.0) for at in range(5)])
    (tmp_path / "flat").mkdir()
    (tmp_path / "nested").mkdir()
    pq.write_table(pa.Table.from_batches([block]), tmp_path / "flat" / "all.parquet")
    pq.write_table(pa.Table.from_batches([nest(block)]), tmp_path / "nested" / "all.parquet")
    assert features(tmp_path / "flat").equals(features(tmp_path / "nested"))
