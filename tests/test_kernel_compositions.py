"""Features composed of aggregates: rate, share, difference and last_values, and the features of a composite key."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

import shared_features as sf
from shared_features.aggregates import Aggregate
from shared_features.errors import DefinitionError
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from tests.readings import kernel_rows
from tests.readings.events import SECOND, by_station, make_app, make_block, reading
from tests.readings.kernel_rows import Raw, by_place, exactly, expected

WINDOW: dict[str, Any] = {"by": by_station, "over": "10s"}
COUNT = sf.count(reading.level, **WINDOW)
BEFORE = sf.last(reading.level, by=by_station, over="20s", include_self=False)
LAGS = [Aggregate("lag", reading.colour, by=by_place, over="5 events", k=k) for k in range(3)]
SHARE = sf.share(reading.colour == "red", **WINDOW)
FEATURES: dict[str, Any] = {
    "rate": sf.rate(reading.level, **WINDOW),
    "difference": sf.difference(reading.level, by=by_station, over="20s"),
    "last_colours": sf.last_values(reading.colour, 3, by=by_place, over="5 events"),
    "share": SHARE,
    "share_where": sf.share(reading.open, **WINDOW, where=reading.level > 0.0),
}
PLAN = make_plan(make_app(FEATURES, kernel_rows.LATENESS))


def features(rows: list[Raw]) -> list[dict[str, Any]]:
    """The features of each row."""
    block = make_block(rows)
    for stage in PLAN.stages:
        block = step(StageState(stage), block)
    found = finish(PLAN, block).select([f"feature.{name}" for name in FEATURES]).to_pylist()
    return [{name.removeprefix("feature."): value for name, value in row.items()} for row in found]


@settings(max_examples=50)
@given(rows=kernel_rows.events())
def test_compositions_are_what_the_oracle_composes(rows: list[Raw]) -> None:
    wanted: list[dict[str, Any]] = [{} for _ in rows]
    for stage in PLAN.stages:
        for one, answer in zip(wanted, expected(stage, rows), strict=True):
            one |= answer
    for row, found, answer in zip(rows, features(rows), wanted, strict=True):
        if row["type"] != "reading":
            assert found == dict.fromkeys(FEATURES) | {"last_colours": [None] * 3}  # a list itself is never null
            continue
        counted, before = answer[COUNT.key], answer[BEFORE.key]
        assert found["rate"] == (None if counted is None else counted / 10.0)
        known = before is not None and row["level"] is not None
        assert found["difference"] == (row["level"] - float.fromhex(before) if known else None)
        assert found["last_colours"] == [answer[lag.key] for lag in LAGS]
        for name in ("share", "share_where"):
            assert exactly(found[name]) == answer[FEATURES[name].key]


def test_the_oracle_takes_a_condition_as_a_value() -> None:
    """share(colour == "red") is the mean of a boolean that no field holds."""
    assert SHARE.operation == "mean"
    rows = [
        {"id": str(i), "t": i * SECOND, "station": "kiel", "colour": c} for i, c in enumerate(["red", "blue", None])
    ]
    assert [row["share"] for row in features(rows)] == [1.0, 0.5, 0.5]


def test_two_parts_of_a_key_are_told_apart_from_two_others() -> None:
    """("1", 11) and ("11", 1) are two keys, as are ("1:2", …) and ("1", …); a null part takes the row out."""
    places: list[tuple[Any, Any]] = [("1", 11), ("11", 1), ("1", 11), ("", 11), ("1:2", 11), ("1", None), (None, 11)]
    rows = [
        {"id": str(i), "t": i, "station": station, "sensor": sensor, "colour": f"c{i}"}
        for i, (station, sensor) in enumerate(places)
    ]
    lists = [row["last_colours"] for row in features(rows)]
    assert lists[:5] == [
        ["c0", None, None],
        ["c1", None, None],
        ["c2", "c0", None],
        ["c3"] + [None] * 2,
        ["c4"] + [None] * 2,
    ]
    assert lists[5:] == [[None] * 3] * 2


def test_a_window_of_events_has_no_rate() -> None:
    with pytest.raises(DefinitionError, match="rate"):
        sf.rate(reading.level, by=by_station, over="10 events")
