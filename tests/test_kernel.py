"""The kernel against the oracle: any split into blocks, late and tied events, nulls, save and load."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from shared_features.aggregates import Aggregate
from shared_features.blocks import block_schema
from shared_features.columns import Evaluator
from shared_features.compute import compute_block
from shared_features.hashing import hash_columns
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from tests.oracle import Row, answers
from tests.shop.app import app

PLAN = make_plan(app)
SECOND = 1_000_000

EVENT = st.fixed_dictionaries(
    {
        "event_type": st.sampled_from(["sale", "sale", "visit"]),
        "at": st.one_of(st.integers(0, 30), st.integers(0, 60), st.sampled_from([0, 5, 10, 15, 20, 25, 45])),
        "edge": st.sampled_from([0, 0, 0, -1, 1]),
        "shop": st.sampled_from(["a", "a", "b", None]),
        "till": st.sampled_from([1, 2, None]),
        "amount": st.one_of(
            st.none(),
            st.sampled_from([0.0, -0.0, 1e8, 1e8 + 1, 1e8 + 2, 0.1, 1e-7, 2.5e-6, 1e12]),
            st.floats(-1e6, 1e6),
        ),
        "units": st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**61, -(2**61), 2**40])),
        "paid": st.sampled_from([True, False, None]),
        "length": st.one_of(st.none(), st.floats(0, 5)),
    }
)


def make_block(events: list[dict[str, Any]]) -> pa.RecordBatch:
    """Events in fold order as a block; identities are made from a shuffled number so that ties are decided."""
    rows = []
    for i, event in enumerate(events):
        time_us = 1_700_000_000 * SECOND + event["at"] * SECOND + event["edge"]
        row: dict[str, Any] = {
            "event_type": event["event_type"],
            "event_id": f"e{i * 7919 % 1009}-{i}",
            "event_time": time_us,
        }
        names = ("shop", "till", "amount", "units", "paid") if event["event_type"] == "sale" else ("shop", "length")
        row |= {f"{event['event_type']}.{name}": event[name] for name in names}
        rows.append(row)
    return pa.RecordBatch.from_pylist(rows, schema=block_schema(app.event_types))


def run_split(block: pa.RecordBatch, cuts: list[int], *, save: bool = False) -> pa.RecordBatch:
    """The stages over ``block`` cut into pieces at ``cuts``; with ``save`` the state goes to bytes and back."""
    states = [StageState(stage) for stage in PLAN.stages]
    bounds = [0, *sorted({cut % (block.num_rows + 1) for cut in cuts}), block.num_rows]
    done = []
    for start, end in itertools.pairwise(bounds):
        piece = block.slice(start, end - start)
        for i, state in enumerate(states):
            piece = step(state, piece)
            if save:
                states[i] = StageState.load(state.stage, state.save())
        done.append(finish(PLAN, piece))
    return pa.concat_batches(done)


def oracle_aggregates(block: pa.RecordBatch) -> list[dict[str, Any]]:
    evaluator = Evaluator(block)
    identities = hash_columns([block.column("event_type"), block.column("event_id")]).tolist()
    times = block.column("event_time").cast(pa.int64()).to_pylist()
    types = block.column("event_type").to_pylist()
    results: list[dict[str, Any]] = [{} for _ in types]
    for stage in PLAN.stages:
        keys = [None] * len(types)
        for field in stage.key.fields.values():
            found = evaluator.array(field).to_pylist()
            keys = [old if old is not None else new for old, new in zip(keys, found, strict=True)]
        aggregates = [output.aggregate for output in stage.outputs]
        inputs = {a.key: oracle_inputs(evaluator, a) for a in aggregates}
        rows = [
            Row(
                keys[i],
                times[i],
                identities[i],
                {key: values[i] for key, values in inputs.items()},
                types[i] == "sale",
            )
            for i in range(len(types))
        ]
        for result, answer in zip(results, answers(rows, aggregates, app.lateness_us), strict=True):
            result |= answer
    return results


def oracle_inputs(evaluator: Evaluator, aggregate: Aggregate) -> list[Any]:
    values: list[Any] = evaluator.array(aggregate.value).to_pylist()
    if aggregate.where is None:
        return values
    return [v if keep else None for v, keep in zip(values, evaluator.array(aggregate.where).to_pylist(), strict=True)]


def assert_equals_oracle(block: pa.RecordBatch, result: pa.RecordBatch) -> None:
    wanted = oracle_aggregates(block)
    for name, value in app.features.items():
        if not isinstance(value, Aggregate):
            continue
        got = result.column(f"feature.{name}").to_pylist()
        for i, (mine, answer) in enumerate(zip(got, wanted, strict=True)):
            expected = answer.get(value.key)
            assert (mine, type(mine)) == (expected, type(expected)), (name, i)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENT, min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_any_split_equals_the_oracle(events: list[dict[str, Any]], cuts: list[int]) -> None:
    block = make_block(events)
    whole = run_split(block, [])
    assert_equals_oracle(block, whole)
    assert run_split(block, cuts).equals(whole)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENT, min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), min_size=1, max_size=3))
def test_a_saved_and_loaded_state_goes_on_as_if_nothing_had_happened(
    events: list[dict[str, Any]], cuts: list[int]
) -> None:
    block = make_block(events)
    assert run_split(block, cuts, save=True).equals(run_split(block, []))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENT, min_size=2, max_size=30), data=st.data())
def test_no_look_ahead_a_changed_later_event_changes_no_earlier_feature(
    events: list[dict[str, Any]], data: st.DataObject
) -> None:
    """C10: row i sees rows 0 … i of the fold order and nothing else."""
    at = data.draw(st.integers(1, len(events) - 1))
    changed = [*events[:at], data.draw(EVENT), *events[at + 1 :]]
    before, after = run_split(make_block(events), []), run_split(make_block(changed), [])
    assert before.slice(0, at).equals(after.slice(0, at))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(events=st.lists(EVENT, min_size=1, max_size=30), seed=st.integers(0, 2**32 - 1))
def test_history_order_is_found_again_from_a_shuffled_table(events: list[dict[str, Any]], seed: int) -> None:
    """C1: with positions in the archive, batch folds in (epoch, position) whatever the order of the rows."""
    block = make_block(events)
    served = run_split(block, [3, 11])
    archived = served.select([name for name in served.schema.names if not name.startswith("feature.")])
    shuffled = archived.take(pa.array(np.random.default_rng(seed).permutation(archived.num_rows)))
    replayed = compute_block(PLAN, shuffled)
    features = [f"feature.{name}" for name in app.features]
    wanted = {row["event_id"]: row for row in served.select(["event_id", *features]).to_pylist()}
    got = {row["event_id"]: row for row in replayed.select(["event_id", *features]).to_pylist()}
    assert got == wanted


def test_variance_of_large_close_values_is_exact() -> None:
    """C3: {1e8, 1e8+1, 1e8+2} gives 2/3, where a running float sum gives 0 or worse."""
    base = {
        "event_type": "sale",
        "edge": 0,
        "shop": "a",
        "till": None,
        "units": None,
        "paid": None,
        "length": None,
    }
    block = make_block([{**base, "at": i, "amount": 1e8 + i} for i in range(3)])
    assert run_split(block, []).column("feature.variance_10s")[2].as_py() == 2 / 3


def test_window_edges_to_the_microsecond() -> None:
    """(t - 10 s, t]: an event exactly 10 s old is out, one microsecond younger is in.

    0        10 s
    x────────t        out
    ·x───────t        in (edge +1 µs)
    """
    base = {"event_type": "sale", "shop": "a", "till": None, "units": None, "paid": None, "length": None}
    for edge, wanted in ((0, 1), (1, 2)):
        events = [
            {**base, "at": 0, "edge": edge, "amount": 1.0},
            {**base, "at": 10, "edge": 0, "amount": 1.0},
        ]
        assert run_split(make_block(events), []).column("feature.count_10s").to_pylist() == [1, wanted]


def test_late_beyond_grace_is_flagged_and_its_windows_are_cut() -> None:
    """lateness 15 s, longest window 20 s: with the newest at 60 s, an event at 44 s is late beyond grace."""
    base = {
        "event_type": "sale",
        "edge": 0,
        "shop": "a",
        "till": None,
        "units": None,
        "paid": None,
        "length": None,
    }
    events = [{**base, "at": at, "amount": 1.0} for at in (30, 60, 45, 44, 24)]
    result = run_split(make_block(events), [])
    assert result.column("stage.shop.late").to_pylist() == [False, False, False, True, True]
    assert result.column("feature.count_10s").to_pylist() == [1, 1, 1, 1, 0]  # 24 s lies before 60 - 15 - 20


def test_state_frees_what_no_window_can_reach() -> None:
    base = {"event_type": "sale", "edge": 0, "shop": "a", "till": 1, "units": 1, "paid": True, "length": None}
    states = [StageState(stage) for stage in PLAN.stages]
    at_first: dict[str, int] = {}
    for at in range(0, 3000, 2):
        at_first |= {} if at > 100 else {state.stage.name: state.nbytes for state in states}
        block = make_block([{**base, "at": at, "amount": 1.0}])
        for state in states:
            block = step(state, block)
    assert all(state.retained <= 18 * len(state.stage.tracks) for state in states)  # (15 + 20) s / 2 s
    assert {state.stage.name: state.nbytes for state in states} == at_first


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_blocks(rows: int) -> None:
    base = {"event_type": "visit", "at": 1, "edge": 0, "shop": None, "length": 1.0}
    result = run_split(make_block([base][:rows]), [])
    assert result.num_rows == rows
    assert result.column("feature.count_10s").null_count == rows
