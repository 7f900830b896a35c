"""The parts of `sameriver bench stream`: what it sends, how it counts, how it judges memory. It runs by hand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.stream import APP, BLOCK, _block_messages, _duplicated, _positions, _single_messages, _slope
from benchmarks.stream_per_element import per_element_rate
from shared_features import load_app
from streaming.intake import Intake
from streaming.topics import Message, OutgoingMessage

ROWS = 3_000


def taken(messages: list[OutgoingMessage]) -> pa.RecordBatch:
    app = load_app(str(APP))
    found = Intake(app.event_types).take(
        [Message(m.data, m.attributes, f"m{i}", 2**51) for i, m in enumerate(messages)]
    )
    assert found.refused == []
    return found.block


def test_blocks_and_single_events_are_the_same_events_with_duplicates() -> None:
    rows = _positions(ROWS)
    assert rows.column("event_id").to_pylist() == [str(number) for number in range(ROWS)]
    blocks, singles = _block_messages(rows), _single_messages(rows)
    again = len(singles) - ROWS
    assert 0.005 * ROWS < again < 0.02 * ROWS
    assert len(blocks) == -(-len(singles) // BLOCK)
    columns = ["event_id", "event_time", "position.vessel", "position.speed"]
    assert taken(blocks).select(columns) == taken(singles).select(columns)
    assert set(_duplicated(ROWS)) == set(range(ROWS))
    times = np.asarray(rows.column("event_time").cast(pa.int64()))
    assert (times < np.maximum.accumulate(times)).mean() > 0.02  # late ones among them


def test_the_app_has_eighteen_features_and_a_model() -> None:
    app = load_app(str(APP))
    assert (len(app.features), len(app.models)) == (18, 1)


def test_the_slope_of_memory_is_of_the_second_half() -> None:
    warming = [(float(second), 100.0 + 10 * second) for second in range(30)]
    steady = [(30.0 + second, 400.0 + 0.5 * second / 60) for second in range(31)]
    assert _slope(warming + steady) == 0.5
    assert _slope(steady[:5]) is None


def test_per_element_features_run() -> None:
    assert per_element_rate(_positions(ROWS).slice(0, 20)) > 0
