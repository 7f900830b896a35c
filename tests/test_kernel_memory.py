"""What a state costs in memory and on disk, and that what no window can reach is freed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import shared_features as sf
from shared_features.kernel import step
from shared_features.plan import Stage, make_plan
from shared_features.state import StageState
from tests.readings.events import SECOND, by_station, column_block, make_app, reading

EVENT_BYTES = 24
"""Event time, identity and value, 8 bytes each."""


def stage_of(*aggregates: Any, lateness: str) -> Stage:
    (only,) = make_plan(make_app({f"f{i}": a for i, a in enumerate(aggregates)}, lateness)).stages
    return only


def grow(stage: Stage, rows: int, keys: int, size: int = 5_000) -> Iterator[StageState]:
    """A state after each block of a run of one event a second, dealt out to ``keys`` keys in turn."""
    state = StageState(stage)
    rng = np.random.default_rng(0)
    for start in range(0, rows, size):
        numbers = np.arange(start, start + size)
        step(state, _block(numbers, keys, rng.normal(size=size)))
        yield state


def _block(numbers: np.ndarray, keys: int, levels: np.ndarray) -> pa.RecordBatch:
    stations = np.array([f"station {i % keys}" for i in numbers.tolist()], object)
    colours = np.array([f"colour {i}" for i in numbers.tolist()], object)
    return column_block(numbers * SECOND, station=stations, level=levels, colour=colours)


@pytest.mark.parametrize(
    "aggregate",
    [
        sf.mean(reading.level, by=by_station, over="1h"),
        sf.last(reading.colour, by=by_station, over="1h"),
        sf.max(reading.level, by=by_station, over="1h"),
        sf.distinct_count(reading.colour, by=by_station, over="1h"),
    ],
    ids=lambda aggregate: str(aggregate.operation),
)
def test_a_retained_event_costs_24_bytes_and_at_most_twice_that_again_for_room(aggregate: Any) -> None:
    stage = stage_of(aggregate, lateness="400d")
    empty = StageState(stage).nbytes
    each = [(state.nbytes - empty) / state.retained for state in grow(stage, 100_000, keys=1) if state.retained > 9_999]
    assert all(EVENT_BYTES <= one <= 3 * EVENT_BYTES + 2 for one in each), each


def test_a_retained_event_costs_32_bytes_on_disk() -> None:
    """With the number of its key; strings cost their length besides."""
    stage = stage_of(sf.mean(reading.level, by=by_station, over="1h"), lateness="400d")
    *_, state = grow(stage, 50_000, keys=1)
    assert state.retained == 50_000
    assert 32 <= len(state.save()) / state.retained <= 33


@pytest.mark.parametrize(("windows", "most"), [(1, 300), (4, 600)])
def test_a_key_with_one_event_costs_a_few_hundred_bytes(windows: int, most: int) -> None:
    aggregates = [sf.mean(reading.level, by=by_station, over=f"{n}h") for n in range(1, windows + 1)]
    stage = stage_of(*aggregates, lateness="24h")
    empty = StageState(stage).nbytes
    *_, state = grow(stage, 20_000, keys=20_000)
    assert state.keys == state.retained == 20_000
    assert 100 <= (state.nbytes - empty) / state.keys <= most


def test_what_no_window_can_reach_is_freed() -> None:
    """One key for hours: windows of ten minutes and a lateness of five keep 901 events of each track, no more."""
    stage = stage_of(
        sf.distinct_count(reading.colour, by=by_station, over="10m"),
        sf.max(reading.level, by=by_station, over="10m"),
        sf.variance(reading.level, by=by_station, over="10m"),
        sf.mean(reading.level, by=by_station, over="100 events"),
        sf.most_frequent(reading.colour, by=by_station, over="1m"),
        lateness="5m",
    )
    states = [(state.retained, state.nbytes) for state in grow(stage, 100_000, keys=1, size=1_000)]
    tracks = len(stage.tracks)
    assert {retained for retained, _ in states} == {901 * tracks}
    assert max(nbytes for _, nbytes in states[50:]) <= max(nbytes for _, nbytes in states[:50])


def test_a_window_of_the_last_events_keeps_them_and_what_lies_within_the_lateness() -> None:
    """One event a second: 101 of them lie within 100 s, 34 if each third is the key's; and ten older ones."""
    stage = stage_of(sf.mean(reading.level, by=by_station, over="10 events"), lateness="100s")
    assert {state.retained for state in grow(stage, 20_000, keys=1, size=1_000)} == {10 + 101}
    assert {state.retained for state in grow(stage, 3_000, keys=3, size=1_000)} == {3 * (10 + 34)}


def test_strings_that_no_event_holds_any_more_are_forgotten() -> None:
    stage = stage_of(sf.last(reading.colour, by=by_station, over="1m"), lateness="1m")
    *_, state = grow(stage, 100_000, keys=1, size=1_000)
    (interner,) = state.interners
    assert interner is not None
    assert state.retained == 121
    assert len(interner._texts) <= 4_000  # of 100,000 different ones
    assert "colour 99999" in pa.ipc.open_stream(_streams(state.save())[1]).read_all()["value.0"].to_pylist()


def _streams(data: bytes) -> list[pa.Buffer]:
    """The Arrow streams of a saved state: that of the keys, then one for each group of tracks."""
    source, found = pa.BufferReader(data), []
    while source.tell() < len(data):
        start = source.tell()
        with pa.ipc.open_stream(source) as reader:
            reader.read_all()
        found.append(pa.py_buffer(data[start : source.tell()]))
    return found


def test_forgotten_strings_change_no_answer() -> None:
    """Codes are given out again to other strings: old and new ones are told apart all the same."""
    stage = stage_of(
        sf.distinct_count(reading.colour, by=by_station, over="30s"),
        sf.lag(reading.colour, 29, by=by_station, over="30s"),
        lateness="1s",
    )
    state = StageState(stage)
    for start in range(0, 20_000, 500):
        result = step(state, _block(np.arange(start, start + 500), 1, np.zeros(500)))
        columns = {output.aggregate.operation: result.column(output.column).to_pylist() for output in stage.outputs}
        if start:
            assert columns["distinct_count"] == [30] * 500
            assert columns["lag"] == [f"colour {i - 29}" for i in range(start, start + 500)]


def test_a_late_event_beyond_reach_is_not_retained() -> None:
    stage = stage_of(sf.mean(reading.level, by=by_station, over="10s"), lateness="10s")
    state = StageState(stage)
    step(state, _block(np.array([1_000, 981, 980, 979, 0]), 1, np.zeros(5)))
    assert state.retained == 3  # 1,000 s, 981 s and 980 s: the reach is 1,000 − 10 − 10 s, itself included
