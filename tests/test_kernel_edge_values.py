"""What each aggregate gives for an empty window, for one value, for nulls and for ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from shared_features.aggregates import Aggregate
from shared_features.expressions import Expression
from shared_features.hashing import hash_columns
from tests.readings.events import SECOND, by_station, make_block, reading
from tests.readings.kernel_rows import exactly, fold, stages_of

OPTIONS: dict[str, dict[str, Any]] = {"lag": {"k": 1}, "decayed_sum": {"half_life": "1s"}}
OPTIONS["decayed_mean"] = OPTIONS["decayed_sum"]

# aggregate: (empty window, the one value 2.5, the values 2.5 and 4.5 of one microsecond with an event of null between)
NUMBERS: dict[str, tuple[Any, Any, Any]] = {
    "count": (0, 1, 2),
    "sum": (None, 2.5, 7.0),
    "mean": (None, 2.5, 3.5),
    "variance": (None, 0.0, 1.0),
    "variance_sample": (None, None, 2.0),
    "std": (None, 0.0, 1.0),
    "std_sample": (None, None, 2.0**0.5),
    "min": (None, 2.5, 2.5),
    "max": (None, 2.5, 4.5),
    "first": (None, 2.5, "lesser identity"),
    "last": (None, 2.5, "greater identity"),
    "lag": (None, None, "lesser identity"),
    "seconds_since_last": (None, 0.0, 0.0),
    "distinct_count": (0, 1, 2),
    "most_frequent": (None, 2.5, "greater identity"),
    "slope": (None, None, None),
    "decayed_sum": (None, 2.5, 7.0),
    "decayed_mean": (None, 2.5, 3.5),
}


def answers(value: Expression, operation: str, rows: Sequence[Mapping[str, Any]], **options: Any) -> list[Any]:
    """The answer that each row gets, over ten seconds."""
    aggregate = Aggregate(operation, value, by=by_station, over="10s", **OPTIONS.get(operation, {}) | options)
    (stage,) = stages_of([aggregate])
    numbered = [{"id": str(i), "station": "kiel", **row} for i, row in enumerate(rows)]
    return [answer[aggregate.key] for answer in fold(stage, numbered)[0]]


@pytest.mark.parametrize("operation", NUMBERS)
def test_empty_one_nulls_and_ties(operation: str) -> None:
    empty, one, tied = NUMBERS[operation]
    rows: list[dict[str, Any]] = [
        {"t": 0, "level": None},
        {"t": 1, "level": 2.5},
        {"t": 1, "level": None},
        {"t": 1, "level": 4.5},
    ]
    if isinstance(tied, str):
        block = make_block([{"id": "1", "t": 1}, {"id": "3", "t": 1}])
        first, second = hash_columns([block.column("event_type"), block.column("event_id")]).tolist()
        tied = (2.5 if first < second else 4.5) if tied == "lesser identity" else (2.5 if first > second else 4.5)
    assert answers(reading.level, operation, rows) == [exactly(one) for one in (empty, one, one, tied)]


def test_most_frequent_prefers_the_value_that_occurred_last_among_equally_frequent_ones() -> None:
    rows: list[dict[str, Any]] = [
        {"t": t, "colour": colour} for t, colour in enumerate(["red", "blue", "blue", "red", None])
    ]
    assert answers(reading.colour, "most_frequent", rows) == ["red", "blue", "blue", "red", "red"]


def test_texts_are_counted_by_their_bytes_and_the_empty_text_is_a_value() -> None:
    rows: list[dict[str, Any]] = [
        {"t": t, "colour": colour} for t, colour in enumerate(["", "é", "e\u0301", "É", "", None])
    ]
    assert answers(reading.colour, "distinct_count", rows) == [1, 2, 3, 4, 4, 4]
    assert answers(reading.colour, "last", rows) == ["", "é", "e\u0301", "É", "", ""]


def test_zero_is_a_value_and_minus_zero_is_zero() -> None:
    rows: list[dict[str, Any]] = [{"t": t, "level": level} for t, level in enumerate([-0.0, 0.0])]
    assert answers(reading.level, "distinct_count", rows) == [1, 1]
    assert answers(reading.level, "min", rows) == [(0.0).hex()] * 2
    assert answers(reading.level, "sum", rows) == [(0.0).hex()] * 2


def test_all_weights_are_zero_beyond_forty_half_lives() -> None:
    rows: list[dict[str, Any]] = [
        {"t": 0, "level": 3.0},
        {"t": 40 * SECOND // 10, "level": None},
        {"t": 41 * SECOND // 10, "level": None},
    ]
    options = {"half_life": "100ms"}
    assert answers(reading.level, "decayed_mean", rows, **options) == [(3.0).hex(), (3.0).hex(), None]
    assert answers(reading.level, "decayed_sum", rows, **options) == [(3.0).hex(), (3.0 / 2**40).hex(), (0.0).hex()]


def test_one_half_life_halves_exactly() -> None:
    rows: list[dict[str, Any]] = [{"t": 0, "level": 3.0}, {"t": SECOND, "level": None}, {"t": 2 * SECOND, "level": 1.0}]
    assert answers(reading.level, "decayed_sum", rows) == [(3.0).hex(), (1.5).hex(), (1.75).hex()]
    assert answers(reading.level, "decayed_mean", rows) == [(3.0).hex(), (3.0).hex(), (1.75 / 1.25).hex()]
