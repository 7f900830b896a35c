"""Blocks in bulk: two hundred thousand rows of five hundred keys give the same bits in blocks of any size.

And with any number of partitions and threads, and any number of shards: C3 with more events than a property test has.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shared_features as sf
from shared_features import kernel, partitions, state
from shared_features.kernel import step
from shared_features.plan import Stage, make_plan
from shared_features.state import StageState
from tests.readings import kernel_rows
from tests.readings.events import SECOND, START_US, by_station, column_block, make_app, reading
from tests.readings.kernel_rows import differences, expected, fold

ROWS, KEYS = 200_000, 500
FEATURES = {
    "count": sf.count(reading.level, by=by_station, over="10m"),
    "sum": sf.sum(reading.steps, by=by_station, over="1h", where=reading.open),
    "mean": sf.mean(reading.level, by=by_station, over="10m", closed="both"),
    "variance": sf.variance(reading.level, by=by_station, over="1h"),
    "std": sf.std(reading.level, by=by_station, over="10m", sample=True, include_self=False),
    "min": sf.min(reading.level, by=by_station, over="1h"),
    "max": sf.max(reading.level, by=by_station, over="20 events", include_self=False),
    "first": sf.first(reading.colour, by=by_station, over="10m"),
    "last": sf.last(reading.level, by=by_station, over="1h", include_self=False),
    "lag": sf.lag(reading.colour, 2, by=by_station, over="5 events"),
    "age": sf.seconds_since_last(reading.steps, by=by_station, over="10m", include_self=False),
    "distinct": sf.distinct_count(reading.colour, by=by_station, over="1h"),
    "distinct_levels": sf.distinct_count(reading.steps, by=by_station, over="20 events"),
    "frequent": sf.most_frequent(reading.colour, by=by_station, over="10m"),
    "slope": sf.slope(reading.level, by=by_station, over="10m"),
    "decayed_sum": sf.decayed_sum(reading.level, "90s", by=by_station, over="10m"),
    "decayed_mean": sf.decayed_mean(reading.level, "1s", by=by_station, over="20 events"),
}


@cache
def stage() -> Stage:
    (only,) = make_plan(make_app(FEATURES, lateness="30m")).stages
    return only


@cache
def block() -> pa.RecordBatch:
    """Ten events a second over hours; one row in twenty late by up to 40 minutes, one in a hundred of them too late."""
    rng = np.random.default_rng(7)
    times = np.arange(ROWS) * (SECOND // 10) + rng.integers(0, 3, ROWS) * (SECOND // 10)
    late = rng.random(ROWS) < 0.05
    times[late] -= rng.integers(0, 2400 * SECOND, int(late.sum()))
    keys = np.minimum(rng.geometric(0.01, ROWS), KEYS)  # few keys have most of the rows
    names = np.array([f"station {i}" for i in range(KEYS + 1)], object)
    colours = np.array(["red", "blue", "green", "", None], object)
    return column_block(
        times,
        station=names[keys],
        level=pa.array(rng.normal(0, 1e5, ROWS), mask=rng.random(ROWS) < 0.1),
        steps=pa.array(rng.integers(-20, 20, ROWS), mask=rng.random(ROWS) < 0.1),
        open=pa.array(rng.random(ROWS) < 0.5),
        colour=colours[rng.integers(0, 5, ROWS)],
    )


def run(rows: pa.RecordBatch, size: int) -> tuple[pa.RecordBatch, bytes]:
    """What the stage appends to ``rows`` in blocks of ``size``, and its state at the end."""
    one = StageState(stage())
    own = [f"stage.station.{name}" for name in ("position", "late")] + [output.column for output in stage().outputs]
    done = [step(one, rows.slice(i, size)).select(own) for i in range(0, rows.num_rows, size)]
    return pa.concat_batches(done), one.save()


@cache
def whole() -> tuple[pa.RecordBatch, bytes]:
    return run(block(), ROWS)


@pytest.mark.parametrize(("size", "rows"), [(1, 2_000), (7, 10_000), (1_000, ROWS)])
def test_blocks_of_any_size_give_the_same_bits(size: int, rows: int) -> None:
    found, saved = run(block().slice(0, rows), size)
    assert found.equals(whole()[0].slice(0, rows))
    assert rows < ROWS or saved == whole()[1]


def test_a_block_that_begins_within_an_array_gives_the_same_bits() -> None:
    """Slices have offsets that are no multiple of eight bits, on top of which nulls and booleans are packed."""
    one = StageState(stage())
    for start, end in ((0, 1_003), (1_003, 1_010), (1_010, 3_001)):
        result = step(one, block().slice(start, end - start)).column("aggregate.station.1")
        assert result.equals(whole()[0].slice(start, end - start).column("aggregate.station.1"))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_number_of_partitions_and_of_threads_does_not_matter(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = block().slice(0, 60_000)
    for module in (partitions, state, kernel):
        monkeypatch.setattr(module, "PARTITIONS", count)
    for threads_from in (1, ROWS):
        monkeypatch.setattr(partitions, "_THREADED_ROWS", threads_from)
        found, saved = run(rows, 20_000)
        assert found.equals(whole()[0].slice(0, rows.num_rows))
        monkeypatch.undo()
        assert StageState.load(stage(), saved).save() == saved
        for module in (partitions, state, kernel):
            monkeypatch.setattr(module, "PARTITIONS", count)


def test_the_number_of_shards_does_not_matter() -> None:
    rows = block().slice(0, 60_000)
    of_shard = np.array([hash(int(name.split()[1])) % 3 for name in rows.column("reading.station").to_pylist()])
    for shard in range(3):
        index = pa.array(np.flatnonzero(of_shard == shard))
        result = step(StageState(stage(), shard=shard), rows.take(index))
        for output in stage().outputs:
            assert result.column(output.column).equals(whole()[0].column(output.column).take(index)), (
                output.aggregate.key
            )


def test_a_reload_in_the_middle_of_a_long_run_changes_no_bit() -> None:
    one = StageState(stage())
    for start in range(0, ROWS, 50_000):
        result = step(one, block().slice(start, 50_000))
        for output in stage().outputs:
            assert result.column(output.column).equals(whole()[0].column(output.column).slice(start, 50_000))
        one = StageState.load(stage(), one.save())


def test_a_long_window_of_one_key_is_what_the_oracle_says() -> None:
    """More than 256 events in a window, some of them late: longer than the trees of extremes are wide."""
    rng = np.random.default_rng(11)
    times = np.arange(700) * SECOND
    times[rng.random(700) < 0.1] -= 300 * SECOND
    rows = [
        {"id": f"e{i}", "t": int(t), "station": "kiel", "level": level, "steps": steps, "colour": colour}
        for i, (t, level, steps, colour) in enumerate(
            zip(
                times,
                rng.integers(-1_000, 1_000, 700).astype(float).tolist(),
                rng.integers(0, 50, 700).tolist(),
                [f"colour {n}" for n in rng.integers(0, 40, 700).tolist()],
                strict=True,
            )
        )
    ]
    over: dict[str, Any] = {"over": "6m", "by": by_station}
    chosen = [
        sf.min(reading.level, **over),
        sf.max(reading.level, **over),
        sf.max(reading.steps, by=by_station, over="300 events"),
        sf.distinct_count(reading.colour, **over),
        sf.most_frequent(reading.colour, **over),
        sf.mean(reading.level, **over),
        sf.variance(reading.level, by=by_station, over="300 events"),
    ]
    (only,) = kernel_rows.stages_of(chosen, "10m")
    wanted = expected(only, rows, 600 * SECOND)
    assert differences(fold(only, rows, cuts=range(0, 700, 13))[0], wanted) == []


def test_the_block_is_what_it_says() -> None:
    table = pa.Table.from_batches([block()])
    assert table.num_rows == ROWS
    assert len(set(table["reading.station"].to_pylist())) == KEYS
    times = np.array(table["event_time"].cast(pa.int64())) - START_US
    assert 0.03 < float((np.diff(np.maximum.accumulate(times)) == 0).mean()) < 0.5
    assert 0 < sum(whole()[0].column("stage.station.late").to_pylist()) < ROWS // 50
