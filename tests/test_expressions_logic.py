"""Comparison, logic, choices, texts and wall clocks against plain Python, row by row."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
from hypothesis import given, settings

from shared_features import coalesce, maximum, minimum, where
from shared_features.expressions import Expression
from shared_features.hashing import hash_bytes
from tests.expression_rows import EPOCH, ROWS, Row, require
from tests.shop.app import sale, visit

Slow = Callable[[Row], Any]
ZONES = ["UTC", "America/New_York", "Europe/London", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu"]


def compared(name: str, a: str, b: Any) -> Slow:
    """Fields by name, or a field and a constant: Python compares an int with a float exactly."""

    def slowly(row: Row) -> bool | None:
        left, right = row[a], row[b] if isinstance(b, str) and b in row else b
        return None if left is None or right is None else bool(getattr(operator, name)(left, right))

    return slowly


def kleene_and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def kleene_or(a: bool | None, b: bool | None) -> bool | None:
    return True if a is True or b is True else None if a is None or b is None else False


def is_tea(row: Row) -> bool | None:
    return None if row["kind"] is None else row["kind"] == "tea"


def always(value: Any) -> Slow:
    return lambda _: value


def first_of(*names: Any) -> Slow:
    return lambda row: next((row.get(name, name) for name in names if row.get(name, 0) is not None), None)


CASES: dict[str, tuple[Expression, Slow]] = {
    "int < int": (sale.units < sale.till, compared("lt", "units", "till")),
    "int == float": (sale.units == sale.amount, compared("eq", "units", "amount")),
    "int < float": (sale.units < sale.amount, compared("lt", "units", "amount")),
    "float <= int": (sale.amount <= sale.units, compared("le", "amount", "units")),
    "int != constant": (sale.units != 2.0**53, compared("ne", "units", 2.0**53)),
    "float >= int constant": (sale.amount >= 2**53 + 1, compared("ge", "amount", 2**53 + 1)),
    "int < constant": (sale.units < 2**53, compared("lt", "units", 2**53)),
    "bool == int": (sale.paid == sale.units, compared("eq", "paid", "units")),
    "text == text": (sale.kind == sale.shop, compared("eq", "kind", "shop")),
    "text == constant": (sale.kind == "tea", is_tea),
    "text != constant": (sale.kind != "", compared("ne", "kind", "")),
    "text isin": (
        sale.kind.isin(["tea", "", "茶"]),
        lambda r: None if r["kind"] is None else r["kind"] in ("tea", "", "茶"),
    ),
    "int isin": (
        sale.units.isin([0, 2.5, 3, -(2**63), 2**53 + 1, 1e300]),
        lambda r: None if r["units"] is None else r["units"] in (0, 3, -(2**63), 2**53 + 1),
    ),
    "float isin": (
        sale.amount.isin([0, 1.5, 2**53 + 1, 2**63 - 1]),  # no double equals the last two
        lambda r: None if r["amount"] is None else r["amount"] in (0.0, 1.5),
    ),
    "float isin nothing it can be": (sale.amount.isin([2**53 + 1]), lambda r: None if r["amount"] is None else False),
    "bool isin": (sale.paid.isin([True, 7]), lambda r: r["paid"]),
    "and": (sale.paid & (sale.kind == "tea"), lambda r: kleene_and(r["paid"], is_tea(r))),
    "or": (sale.paid | (sale.kind == "tea"), lambda r: kleene_or(r["paid"], is_tea(r))),
    "and constant": (sale.paid & True, lambda r: r["paid"]),
    "constant or": (False | sale.paid, lambda r: r["paid"]),
    "not": (~sale.paid, lambda r: None if r["paid"] is None else not r["paid"]),
    "is_null": (sale.kind.is_null(), lambda r: r["kind"] is None),
    "is_null of a quotient": ((sale.amount / 0).is_null(), always(True)),
    "where": (where(sale.paid, sale.units, sale.till), lambda r: {True: r["units"], False: r["till"]}.get(r["paid"])),
    "where mixed": (
        where(sale.paid, sale.units, 0.5),
        lambda r: (
            None if r["paid"] is None or (r["paid"] and r["units"] is None) else float(r["units"] if r["paid"] else 0.5)
        ),
    ),
    "where of texts": (
        where(sale.paid, sale.kind, "none"),
        lambda r: {True: r["kind"], False: "none"}.get(r["paid"]),
    ),
    "coalesce": (coalesce(sale.units, sale.till, 7), first_of("units", "till", 7)),
    "coalesce of texts": (coalesce(sale.kind, "none"), first_of("kind", "none")),
    "fill": (sale.paid.fill(False), lambda r: bool(r["paid"])),
    "hash of texts": (
        sale.kind.hash_bucket(1000),
        lambda r: None if r["kind"] is None else hash_bytes(r["kind"].encode()) % 1000,
    ),
    "difference of times": (sale.sold_at - sale.sold_at, always(0.0)),
    "lesser time": (minimum(sale.sold_at, sale.sold_at), lambda r: EPOCH + timedelta(microseconds=r["at"])),
    "greater time": (maximum(sale.sold_at, sale.sold_at), lambda r: EPOCH + timedelta(microseconds=r["at"])),
    "another type's field": (visit.length, always(None)),
    "another type's time": (visit.entered_at.hour(), always(None)),
}


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_conditions_and_choices_are_those_of_plain_python(rows: list[Row], seed: int) -> None:
    require(CASES, rows, seed)


UNITS: dict[str, Callable[[datetime], int]] = {
    "hour": lambda local: local.hour,
    "weekday": lambda local: local.weekday(),
    "month": lambda local: local.month,
    "day_of_year": lambda local: local.timetuple().tm_yday,
    "minute_of_day": lambda local: local.hour * 60 + local.minute,
}


def on_the_wall(unit: str, zone: str) -> Slow:
    """By the standard library, with the pinned edition of the zone: the machine's own may be older."""
    with resources.files("tzdata.zoneinfo").joinpath(*zone.split("/")).open("rb") as file:
        info = ZoneInfo.from_file(file)
    return lambda row: UNITS[unit]((EPOCH + timedelta(microseconds=row["at"])).astimezone(info))


CLOCKS: dict[str, tuple[Expression, Slow]] = {
    f"{unit} in {zone}": (getattr(sale.sold_at, unit)(zone), on_the_wall(unit, zone))
    for unit in UNITS
    for zone in ZONES
}


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_wall_clocks_are_those_of_the_standard_library(rows: list[Row], seed: int) -> None:
    require(CLOCKS, rows, seed)
