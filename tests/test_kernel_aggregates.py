"""Every aggregate against the oracle, over random events, blocks, shards and reloads.

The rows have late and tied events, events beyond the grace, nulls in values and keys, two event types in one key,
and one key that most of them share; the aggregates have every kind of window and condition.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features.aggregates import Aggregate
from tests.readings import kernel_rows
from tests.readings.kernel_rows import Raw, differences, expected, fold, stages_of

CUTS = st.lists(st.integers(0, 40), max_size=5)


@pytest.mark.parametrize("operation", sorted(kernel_rows.VALUES))
@settings(max_examples=30)
@given(data=st.data())
def test_an_aggregate_is_what_the_oracle_says_however_the_rows_come(operation: str, data: st.DataObject) -> None:
    chosen = data.draw(kernel_rows.some_aggregates(operation))
    rows = data.draw(kernel_rows.events())
    cuts, reloads = data.draw(CUTS), data.draw(st.sets(st.integers(0, 5)))
    shards = data.draw(st.integers(1, 3))
    for stage in stages_of(chosen):
        wanted = expected(stage, rows)
        assert differences(fold(stage, rows)[0], wanted) == []
        assert differences(fold(stage, rows, cuts, reloads, shards)[0], wanted) == []


@settings(max_examples=25)
@given(chosen=st.lists(kernel_rows.aggregates(), min_size=10, max_size=25), rows=kernel_rows.events(40), cuts=CUTS)
def test_many_aggregates_of_one_app_do_not_disturb_each_other(
    chosen: list[Aggregate], rows: list[Raw], cuts: list[int]
) -> None:
    for stage in stages_of(list({a.key: a for a in chosen}.values())):
        assert differences(fold(stage, rows, cuts)[0], expected(stage, rows)) == []


@settings(max_examples=40)
@given(chosen=kernel_rows.some_aggregates("mean"), rows=kernel_rows.events(), cuts=CUTS)
def test_positions_count_the_rows_with_a_key_and_the_others_are_counted_as_missing(
    chosen: list[Aggregate], rows: list[Raw], cuts: list[int]
) -> None:
    for stage in stages_of(chosen):
        _, (state,) = fold(stage, rows, cuts, reloads=range(6))
        keys = [kernel_rows.key_of(stage, row) for row in rows]
        assert state.position == sum(key is not None for key in keys)
        assert state.keys == len({key for key in keys if key is not None})
        taking_part = [row["type"] in stage.key.parts for row in rows]
        assert state.missing == sum(t and key is None for t, key in zip(taking_part, keys, strict=True))


@settings(max_examples=30)
@given(chosen=kernel_rows.some_aggregates("sum"), rows=kernel_rows.events(), data=st.data())
def test_the_state_depends_on_the_set_of_events_not_on_the_fold_order(
    chosen: list[Aggregate], rows: list[Raw], data: st.DataObject
) -> None:
    """C2: in whatever order events were folded, the next event sees the same."""
    others = data.draw(st.permutations(rows))
    last = {"type": "reading", "id": "last", "t": max(row["t"] for row in rows), "station": "kiel", "sensor": 1}
    last |= {"level": 0.5, "steps": 1, "open": True, "colour": "red", "planned": 1}
    for stage in stages_of(chosen):
        one, other = (fold(stage, [*order, last])[0][-1] for order in (rows, others))
        assert one == other
