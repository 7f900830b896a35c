"""Every aggregate against the oracle, over random events, blocks, shards and reloads.

The rows have late and tied events, events beyond the grace, nulls in values and keys, two event types in one key,
and one key that most of them share; the aggregates have every kind of window and condition.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features.aggregates import Aggregate
from tests.readings import kernel_rows
from tests.readings.events import SECOND, by_station, reading
from tests.readings.kernel_rows import Raw, differences, expected, fold, stages_of

SHARING = ["count", "first", "last", "mean", "seconds_since_last", "std", "sum"]
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


def _sharing() -> list[Aggregate]:
    """Every operation that tracks of a group can have, of fields that are null in different rows."""
    found = []
    for value in (reading.level, reading.steps, reading.open):
        for operation, over, include_self in itertools.product(SHARING, ("5s", "20s"), (True, False)):
            found.append(Aggregate(operation, value, by=by_station, over=over, include_self=include_self))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_tracks_that_share_events_see_their_own_only(seed: int) -> None:
    """One key, half of all values null, every third event late: first and last lie between others' events."""
    chance, rows = random.Random(seed), []
    for i in range(60):
        t = i * SECOND // 2 - chance.choice([0, 0, 1, SECOND, 5 * SECOND, 16 * SECOND])
        row = {"type": "reading", "id": f"e{chance.random()}", "t": t, "station": "kiel", "sensor": 1, "colour": None}
        row |= {"level": chance.choice([None, chance.gauss(0, 9)]), "steps": chance.choice([None, i])}
        rows.append(row | {"open": chance.choice([None, True, False]), "planned": None})
    (stage,) = stages_of(_sharing())
    assert [len(group.tracks) for group in stage.groups] == [len(stage.tracks)]
    wanted = expected(stage, rows)
    assert differences(fold(stage, rows)[0], wanted) == []
    assert differences(fold(stage, rows, cuts=range(0, 60, 7), reloads=range(9))[0], wanted) == []
