"""Arithmetic and functions of numbers against plain Python, row by row and to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from shared_features import elementary, maximum, minimum
from shared_features.expressions import Expression
from shared_features.hashing import hash_bytes
from tests.expression_rows import ROWS, Row, evaluate, finite, require, whole
from tests.shop.app import sale

Slow = Callable[[Row], Any]


def of(name: str, function: Callable[[Any], Any]) -> Slow:
    """``function`` of one field, null where the field is."""
    return lambda row: None if row[name] is None else function(row[name])


def of_two(a: str, b: str, function: Callable[[Any, Any], Any]) -> Slow:
    return lambda row: None if row[a] is None or row[b] is None else function(row[a], row[b])


def quotient(a: float, b: float) -> float | None:
    """IEEE division of two numbers taken as doubles; Python raises where IEEE 754 gives NaN or infinity."""
    return None if float(b) == 0 else finite(float(a) / float(b))


def rounded(function: Callable[[float], int]) -> Callable[[float], int | None]:
    return lambda value: whole(function(value))


def elementary_or_null(name: str) -> Callable[[float], float | None]:
    return lambda value: finite(float(getattr(elementary, name)(np.array([float(value)]))[0]))


EDGES = [-(2.0**63), -1.5, 0, 0.5, 2, 2.5, 2**53 + 1, 2.0**63]


def edges_below(value: float) -> int:
    return sum(Fraction(edge) <= Fraction(value) for edge in EDGES)


CASES: dict[str, tuple[Expression, Slow]] = {
    "int + int": (sale.units + sale.till, of_two("units", "till", lambda a, b: whole(a + b))),
    "int - int": (sale.units - sale.till, of_two("units", "till", lambda a, b: whole(a - b))),
    "int * int": (sale.units * sale.till, of_two("units", "till", lambda a, b: whole(a * b))),
    "int * -1": (sale.units * -1, of("units", lambda a: whole(-a))),
    "-1 * int": (-1 * sale.units, of("units", lambda a: whole(-a))),
    "-int": (-sale.units, of("units", lambda a: whole(-a))),
    "int / int": (sale.units / sale.till, of_two("units", "till", quotient)),
    "bool + int": (sale.paid + sale.units, of_two("paid", "units", lambda a, b: whole(int(a) + b))),
    "bool * bool": (sale.paid * sale.paid, of("paid", int)),
    "int + float": (sale.units + sale.amount, of_two("units", "amount", lambda a, b: finite(float(a) + b))),
    "float - float": (1.5 - sale.amount, of("amount", lambda a: finite(1.5 - a))),
    "float * float": (sale.amount * sale.amount, of("amount", lambda a: finite(a * a))),
    "float / float": (sale.amount / (sale.amount - 1.5), of("amount", lambda a: quotient(a, a - 1.5))),
    "float / 0": (sale.amount / 0, of("amount", lambda _: None)),
    "abs int": (abs(sale.units), of("units", lambda a: whole(abs(a)))),
    "abs float": (sale.amount.abs(), of("amount", abs)),
    "abs bool": (sale.paid.abs(), of("paid", int)),
    "floor": (sale.amount.floor(), of("amount", rounded(math.floor))),
    "ceil": (sale.amount.ceil(), of("amount", rounded(math.ceil))),
    "round": (sale.amount.round(), of("amount", rounded(round))),
    "round int": (sale.units.round(), of("units", int)),
    "floor bool": (sale.paid.floor(), of("paid", int)),
    "sqrt": (sale.amount.sqrt(), of("amount", lambda a: None if a < 0 else math.sqrt(a))),
    "sqrt int": (sale.units.sqrt(), of("units", lambda a: None if a < 0 else math.sqrt(float(a)))),
    "log": (sale.amount.log(), of("amount", elementary_or_null("log"))),
    "log int": (sale.units.log(), of("units", elementary_or_null("log"))),
    "log1p": (sale.amount.log1p(), of("amount", elementary_or_null("log1p"))),
    "exp": (sale.amount.exp(), of("amount", elementary_or_null("exp"))),
    "sin_deg": (sale.amount.sin_deg(), of("amount", elementary_or_null("sin_deg"))),
    "cos_deg int": (sale.units.cos_deg(), of("units", elementary_or_null("cos_deg"))),
    "minimum": (minimum(sale.units, sale.till), of_two("units", "till", min)),
    "maximum": (maximum(sale.units, sale.till), of_two("units", "till", max)),
    "minimum mixed": (minimum(sale.units, sale.amount), of_two("units", "amount", lambda a, b: min(float(a), b))),
    "minimum of zeros": (minimum(sale.amount, 0.0), of("amount", lambda a: 0.0 if a > 0.0 else a)),
    "maximum of zeros": (maximum(sale.amount, -0.0), of("amount", lambda a: -0.0 if a < 0.0 else a)),
    "clip": (sale.amount.clip(-1, 2.5), of("amount", lambda a: min(max(a, -1.0), 2.5))),
    "clip int": (sale.units.clip(low=-1, high=3), of("units", lambda a: min(max(a, -1), 3))),
    "clip by a field": (sale.units.clip(high=sale.till), of_two("units", "till", min)),
    "bucket of floats": (sale.amount.bucket(EDGES), of("amount", edges_below)),
    "bucket of integers": (sale.units.bucket(EDGES), of("units", edges_below)),
    "bucket of booleans": (sale.paid.bucket([0.5]), of("paid", int)),
    "hash of integers": (
        sale.units.hash_bucket(7),
        of("units", lambda a: hash_bytes(a.to_bytes(8, "little", signed=True)) % 7),
    ),
}


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 99))
def test_numbers_are_those_of_plain_python(rows: list[Row], seed: int) -> None:
    require(CASES, rows, seed)


def test_products_are_refused_only_where_they_overflow() -> None:
    """2^63 − 1 = 7 · 1317624576693539401 is the greatest int64, which a double cannot tell from 2^63."""
    pairs = [
        (7, 1317624576693539401, 2**63 - 1),
        (-(2**62), 2, -(2**63)),
        (2**62, 2, None),
        (-(2**63), -1, None),
        (-1, -(2**63), None),
        (-(2**63), 1, -(2**63)),
        (3037000500, 3037000500, None),
        (3037000499, 3037000499, 3037000499**2),
        (-(2**63), 0, 0),
        (2**32, 2**32, None),  # wraps around to 0
    ]
    rows = [{"units": a, "till": b} for a, b, _ in pairs]
    assert evaluate(sale.units * sale.till, rows) == [product for _, _, product in pairs]


@pytest.mark.parametrize("name", ["log", "log1p", "exp"])
def test_elementary_functions_are_near_those_of_the_platform(name: str) -> None:
    values = [0.1, 0.5, 1.0, 2.0, 3.75, 10.0, 100.0]
    got = evaluate(getattr(sale.amount, name)(), [{"amount": value} for value in values])
    assert got == pytest.approx([getattr(math, name)(value) for value in values], rel=1e-15)


def test_bucket_edges_may_come_as_numpy_numbers() -> None:
    rows = [{"amount": value} for value in (0.9, 1.0, 1.9, 2.0)]
    assert evaluate(sale.amount.bucket(np.array([1.0, 2.0])), rows) == [0, 1, 1, 2]
    assert sale.amount.bucket(np.array([1, 2])).key == sale.amount.bucket([1.0, 2.0]).key
