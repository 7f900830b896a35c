"""Row-level expressions: nulls, overflow, Kleene logic, time zones."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from shared_features import coalesce, where
from shared_features.blocks import block_schema
from shared_features.columns import Evaluator
from shared_features.expressions import Expression
from shared_features.timezones import to_local_us
from tests.shop.app import app, sale, visit


def evaluate(expression: Expression, *rows: dict[str, Any]) -> list[Any]:
    filled = [
        {"event_type": "sale", "event_id": str(i), "event_time": row.pop("at", 0)}
        | {f"sale.{name}": value for name, value in row.items()}
        for i, row in enumerate(rows)
    ]
    block = pa.RecordBatch.from_pylist(filled, schema=block_schema(app.event_types))
    result: list[Any] = Evaluator(block).array(expression).to_pylist()
    return result


def test_null_in_null_out() -> None:
    assert evaluate(sale.amount + sale.units, {"amount": 1.5, "units": 2}, {"amount": None, "units": 2}) == [3.5, None]


def test_division_by_zero_and_overflow_are_null() -> None:
    assert evaluate(sale.amount / sale.units, {"amount": 1.0, "units": 0}, {"amount": 3.0, "units": 2}) == [None, 1.5]
    assert evaluate(sale.units + sale.units, {"units": 2**62}, {"units": -(2**62)}, {"units": 3}) == [
        None,
        -(2**63),
        6,
    ]
    assert evaluate(sale.units * sale.units, {"units": 2**32}, {"units": 2**31}) == [None, 2**62]
    assert evaluate(0 - sale.units - 2, {"units": 2**63 - 1}) == [None]
    assert evaluate(sale.amount * 1e308, {"amount": 10.0}) == [None]


def test_kleene_logic() -> None:
    table = [(a, b) for a in (True, False, None) for b in (True, False, None)]
    rows = [{"paid": a, "amount": None if b is None else float(b)} for a, b in table]
    flag = sale.amount > 0.5

    def kleene_and(a: bool | None, b: bool | None) -> bool | None:
        return False if a is False or b is False else None if a is None or b is None else True

    assert evaluate(sale.paid & flag, *[dict(row) for row in rows]) == [kleene_and(a, b) for a, b in table]
    assert evaluate(~(~sale.paid | ~flag), *[dict(row) for row in rows]) == [kleene_and(a, b) for a, b in table]


def test_choices() -> None:
    rows: list[dict[str, Any]] = [{"paid": True, "units": 1}, {"paid": False, "units": None}, {"paid": None}]
    assert evaluate(where(sale.paid, sale.units, 9), *[dict(row) for row in rows]) == [1, 9, None]
    assert evaluate(coalesce(sale.units, 7), *[dict(row) for row in rows]) == [1, 7, 7]
    assert evaluate(sale.units.is_null(), *[dict(row) for row in rows]) == [False, True, True]


def test_strings() -> None:
    rows: list[dict[str, Any]] = [{"kind": "tea"}, {"kind": "jam"}, {"kind": None}]
    assert evaluate(sale.kind == "tea", *[dict(row) for row in rows]) == [True, False, None]
    assert evaluate(sale.kind != "tea", *[dict(row) for row in rows]) == [False, True, None]
    assert evaluate(sale.kind.isin(["tea", "jam"]), *[dict(row) for row in rows]) == [True, True, None]
    assert evaluate(coalesce(sale.kind, "none"), *[dict(row) for row in rows]) == ["tea", "jam", "none"]


def test_fields_of_another_type_are_null_here() -> None:
    assert evaluate(visit.length, {"amount": 1.0}) == [None]
    assert evaluate(visit.entered_at, {"amount": 1.0}) == [None]


@settings(max_examples=300, deadline=None)
@given(
    at_s=st.integers(0, 4_000_000_000),
    zone=st.sampled_from(
        ["America/New_York", "Europe/London", "Asia/Kathmandu", "Africa/Monrovia", "Australia/Lord_Howe"]
    ),
)
def test_wall_clocks_agree_with_zoneinfo(at_s: int, zone: str) -> None:
    local_us = int(to_local_us(np.array([at_s * 1_000_000]), zone)[0])
    offset = datetime.fromtimestamp(at_s, UTC).astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None
    assert local_us == (at_s + int(offset.total_seconds())) * 1_000_000


@pytest.mark.parametrize(
    ("at", "hour", "weekday", "month", "minute_of_day"),
    [
        ("2013-03-10T06:59:59Z", 1, 6, 3, 119),  # one second before the clocks go forward
        ("2013-03-10T07:00:00Z", 3, 6, 3, 180),
        ("2013-11-03T05:30:00Z", 1, 6, 11, 90),  # half past one, for the first time
        ("2013-11-03T06:30:00Z", 1, 6, 11, 90),  # and again
        ("2013-01-01T04:59:59Z", 23, 0, 12, 1439),
    ],
)
def test_calendar_in_new_york(at: str, hour: int, weekday: int, month: int, minute_of_day: int) -> None:
    row = {"at": datetime.fromisoformat(at)}
    zone = "America/New_York"
    assert evaluate(sale.sold_at.hour(zone), dict(row)) == [hour]
    assert evaluate(sale.sold_at.weekday(zone), dict(row)) == [weekday]
    assert evaluate(sale.sold_at.month(zone), dict(row)) == [month]
    assert evaluate(sale.sold_at.minute_of_day(zone), dict(row)) == [minute_of_day]
