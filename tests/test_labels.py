"""The join with what came to pass: window edges to the microsecond, first of several, missing values (C10)."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given

from batch.labels import first_labels, label_columns, label_events
from shared_features import App, Label
from shared_features.errors import ConfigurationError, DefinitionError
from tests.histories import SECOND, START_US, block_of, event
from tests.shop.app import app, sale, visit

WITHIN_US = 20 * SECOND
EVENTS = pa.schema(
    {
        "join": pa.string(),
        "event_id": pa.string(),
        "event_time": pa.timestamp("us", "UTC"),
        "label": pa.bool_(),
    }
)

LabelEvent = tuple[str, str, int, bool | None]  # join value, event id, event time in microseconds, label


def labels(rows: list[tuple[str | None, int]], events: list[LabelEvent]) -> tuple[list[bool | None], list[bool]]:
    """`first_labels` over rows of (join value, event time in microseconds)."""
    block = pa.RecordBatch.from_pylist([dict(zip(EVENTS.names, e, strict=True)) for e in events], schema=EVENTS)
    joins = pa.array([join for join, _ in rows], pa.string())
    times = pa.array([time_us for _, time_us in rows], pa.timestamp("us", "UTC"))
    found, unsaid = first_labels(joins, times, block, WITHIN_US)
    return found.to_pylist(), unsaid.tolist()


@pytest.mark.parametrize(
    ("event_us", "wanted"),
    [
        (-1, None),  # one microsecond before the event predicted on: the past is no label
        (0, True),
        (WITHIN_US, True),  # the far end belongs to the window
        (WITHIN_US + 1, None),
    ],
)
def test_both_ends_of_the_window_belong_to_it(event_us: int, wanted: bool | None) -> None:
    """t ───────────── t + 20 s
    x                 x          in
    ·x                 x·        a microsecond further: out
    """
    assert labels([("a", 1000)], [("a", "v", 1000 + event_us, True)]) == ([wanted], [False])


def test_the_first_by_time_then_by_id_counts() -> None:
    rows: list[tuple[str | None, int]] = [("a", 100)]
    by_time: list[LabelEvent] = [("a", "v1", 300, True), ("a", "v2", 200, False)]
    by_id: list[LabelEvent] = [("a", "v2", 200, True), ("a", "v1", 200, False)]
    assert labels(rows, by_time) == labels(rows, by_time[::-1]) == ([False], [False])
    assert labels(rows, by_id) == labels(rows, by_id[::-1]) == ([False], [False])


def test_one_event_may_be_the_label_of_many_rows_and_earlier_events_are_passed_over() -> None:
    rows: list[tuple[str | None, int]] = [("a", 100), ("a", 200), ("a", 201), ("b", 100)]
    events: list[LabelEvent] = [("a", "v1", 50, True), ("a", "v2", 200, True), ("a", "v3", 900, False)]
    assert labels(rows, events) == ([True, True, False, None], [False] * 4)


def test_an_event_without_a_value_is_passed_over_and_told() -> None:
    rows: list[tuple[str | None, int]] = [("a", 100), ("b", 100)]
    events: list[LabelEvent] = [("a", "v1", 100, None), ("a", "v2", 101, True), ("b", "v3", 100, None)]
    assert labels(rows, events) == ([True, None], [False, True])


def test_a_null_join_value_matches_nothing() -> None:
    assert labels([(None, 100)], [("a", "v1", 100, True)]) == ([None], [False])
    events = label_events(app, block_of([event("visit", 1, shop=None, length=1.0)]))
    assert events.num_rows == 0


def test_without_events_or_rows_there_are_no_labels() -> None:
    assert labels([("a", 100)], []) == ([None], [False])
    assert labels([], [("a", "v", 100, True)]) == ([], [])


@given(
    rows=st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 60)), max_size=12),
    events=st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(-5, 85), st.sampled_from([True, False, None])), max_size=12
    ),
)
def test_equals_a_search_row_by_row(
    rows: list[tuple[str | None, int]], events: list[tuple[str, int, bool | None]]
) -> None:
    scaled = [(join, at * SECOND) for join, at in rows]
    named: list[LabelEvent] = [
        (join, f"v{i * 7 % 13}", at * SECOND, value) for i, (join, at, value) in enumerate(events)
    ]
    wanted: list[bool | None] = []
    unsaid: list[bool] = []
    for join, time_us in scaled:
        seen = [e for e in named if e[0] == join and time_us <= e[2] <= time_us + WITHIN_US]
        told: list[Any] = sorted((e[2], e[1], e[3]) for e in seen if e[3] is not None)
        wanted.append(told[0][2] if told else None)
        unsaid.append(bool(seen) and not told)
    assert labels(scaled, named) == (wanted, unsaid)


def test_label_events_are_made_from_the_definition() -> None:
    block = block_of(
        [event("sale", 0, shop="a"), event("visit", 1, shop="a", length=3.0), event("visit", 2, shop="b", length=None)]
    )
    events = label_events(app, block)
    assert label_columns(app) == ["sale.shop", "visit.shop", "visit.length"]
    assert events.select(["join", "label"]).to_pylist() == [
        {"join": "a", "label": True},
        {"join": "b", "label": None},
    ]
    assert events.column("event_time").cast(pa.int64())[0].as_py() == START_US + SECOND


def variant(label: Label | None) -> App:
    return App("shop", predict_on=sale, features={"amount": sale.amount}, event_types=[sale, visit], label=label)


def test_a_join_of_two_types_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"joins sale\.till, a int64, with visit\.shop, a string"):
        variant(Label(visit.length > 1.0, join=("till", "shop"), within="1m"))


def test_an_app_without_a_label_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match="has no label to train on"):
        label_columns(variant(None))
