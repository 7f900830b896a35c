"""Numbers that break sums of floats: the kernel's answers are the fractions', rounded once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shared_features as sf
from shared_features.aggregates import SCALED, Aggregate
from shared_features.exact import quotient
from shared_features.expressions import Expression
from shared_features.kernel import out_of_range, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from tests.readings.events import SECOND, by_station, column_block, make_app, make_block, reading
from tests.readings.kernel_rows import differences, exactly, expected, fold, stages_of


def last_answer(operation: str, value: Expression, name: str, values: list[Any], **options: Any) -> Any:
    """What the last of ``values``, one second apart, sees of all of them."""
    aggregate = Aggregate(operation, value, by=by_station, over="30d", **options)
    (stage,) = stages_of([aggregate], "24h")
    rows = [{"id": str(i), "t": i * SECOND, "station": "kiel", name: one} for i, one in enumerate(values)]
    column = aggregate.key
    found, _ = fold(stage, rows)
    return found[-1][column]


def of_levels(operation: str, values: list[float], **options: Any) -> Any:
    return last_answer(operation, reading.level, "level", values, **options)


def of_steps(operation: str, values: list[int], **options: Any) -> Any:
    return last_answer(operation, reading.steps, "steps", values, **options)


def test_variance_of_large_close_values() -> None:
    values = [1e8, 1e8 + 1, 1e8 + 2]
    assert of_levels("variance", values) == exactly(2 / 3)
    assert of_levels("variance", values, scale=1) == exactly(2 / 3)
    assert of_levels("variance_sample", values) == exactly(1.0)
    assert of_levels("std", values) == exactly(math.sqrt(2 / 3))
    assert of_levels("mean", values) == exactly(1e8 + 1)


def test_a_large_and_a_small_value() -> None:
    assert of_levels("sum", [1e16, 1.0], scale=1) == exactly(1e16)  # 1e16 + 1 is no double: half to even
    assert of_levels("sum", [1e16, 1.0, 1.0], scale=1) == exactly(1e16 + 2)
    assert of_levels("sum", [1e16, 1.0, -1e16], scale=1) == exactly(1.0)
    assert of_levels("mean", [1e16, 1.0, -1e16, 1.0], scale=1) == exactly(0.5)
    spread = Fraction(10**16 - 1, 2) ** 2
    assert of_levels("variance", [1e16, 1.0], scale=1) == exactly(float(spread))


def test_a_value_is_rounded_once_to_its_scale() -> None:
    assert of_levels("sum", [0.1] * 10) == exactly(1.0)
    assert of_levels("sum", [0.5, 1.5, 2.5], scale=1) == exactly(0.0 + 2.0 + 2.0)  # half to even
    assert of_levels("mean", [4e-7] * 3) == exactly(0.0)


@pytest.mark.parametrize("operation", sorted({*SCALED} - {"slope"}))
def test_a_scale_finer_than_one_changes_nothing_for_whole_numbers(operation: str) -> None:
    options = {"half_life": "1s"} if operation.startswith("decayed") else {}
    values = [3, 5, -8, 13]
    assert of_steps(operation, values, scale=1e-3, **options) == of_steps(operation, values, **options)


def test_a_million_equal_values_have_no_variance() -> None:
    rows = 1_000_000
    block = column_block(np.arange(rows), station="kiel", level=np.full(rows, 1e8 + 0.1))
    features = {
        "variance": sf.variance(reading.level, by=by_station, over="1h"),
        "mean": sf.mean(reading.level, by=by_station, over="1h"),
        "slope": sf.slope(reading.level, by=by_station, over="2 events"),
        "distinct": sf.distinct_count(reading.level, by=by_station, over="1h"),
    }
    (stage,) = make_plan(make_app(features)).stages
    result = step(StageState(stage), block)
    columns = {output.aggregate.operation: result.column(output.column).to_numpy() for output in stage.outputs
               if output.aggregate.operation != "slope"}  # fmt: skip
    assert not columns["variance"].any()
    assert (columns["mean"] == 1e8 + 0.1).all()
    assert (columns["distinct_count"] == 1).all()


def test_an_overflowing_sum_is_null_and_comes_back_when_it_fits_again() -> None:
    top = 2**61
    assert of_steps("sum", [top] * 3) == 3 * top
    assert of_steps("sum", [top] * 4) is None
    assert of_steps("sum", [-top] * 4) == -(2**63)
    assert of_steps("sum", [-top] * 4 + [-1]) is None
    assert of_steps("sum", [top] * 4 + [-1]) == 2**63 - 1
    assert of_steps("mean", [top] * 4) == exactly(float(top))
    assert of_steps("variance", [top, -top] * 4) == exactly(float(top) ** 2)


def test_an_overflow_leaves_no_trace() -> None:
    aggregate = sf.sum(reading.steps, by=by_station, over="3 events")
    (stage,) = stages_of([aggregate])
    values = [2**62 - 512] * 3 + [1, 2, 3]
    rows = [{"id": str(i), "t": i, "station": "kiel", "steps": v} for i, v in enumerate(values)]
    found = [answer[aggregate.key] for answer in fold(stage, rows)[0]]
    assert found == [2**62 - 512, 2**63 - 1024, None, 2**63 - 1023, 2**62 - 512 + 3, 6]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", sorted({*SCALED, "min", "max", "last"}))
def test_values_near_the_limit(operation: str, sign: int) -> None:
    """The greatest that fit: |value / scale| below 2^62."""
    options: dict[str, Any] = {"half_life": "7s"} if operation.startswith("decayed") else {}
    whole = Aggregate(operation, reading.steps, by=by_station, over="1h", **options)
    level = Aggregate(operation, reading.level, by=by_station, over="1h", **options)
    for stage in stages_of([whole, level]):
        edge = sign * (2**62 - 512)
        rows = [
            {"id": str(i), "t": i * 3_600_000, "station": "kiel", "steps": edge - sign * i, "level": edge / 1e6 * 0.999}
            for i in range(12)
        ]
        assert differences(fold(stage, rows)[0], expected(stage, rows)) == []


def test_values_beyond_the_limit_are_found_before_they_are_folded() -> None:
    features = {
        "whole": sf.sum(reading.steps, by=by_station, over="1h"),
        "level": sf.mean(reading.level, by=by_station, over="1h"),
        "thousandths": sf.mean(reading.level, by=by_station, over="1h", scale=1e-3),
    }
    app = make_app(features)
    rows: list[dict[str, Any]] = [
        {"steps": 2**62 - 512, "level": 4.6e12},
        {"steps": 2**62, "level": None},
        {"steps": -(2**63), "level": 0.0},
        {"steps": None, "level": 4.7e12},
        {"steps": 0, "level": -1.7e308},
    ]
    block = make_block([{"id": str(i), "t": i, "station": "kiel", **row} for i, row in enumerate(rows)])
    plan = make_plan(app)
    assert sorted(out_of_range(plan, block)) == [1, 2, 3, 4]
    with pytest.raises(OverflowError, match="out_of_range"):
        step(StageState(plan.stages[0]), block)


@pytest.mark.parametrize("days", [1, 7, 30])
def test_a_slope_is_exact_over_long_windows_of_many_events(days: int) -> None:
    """Positions of a vessel: thousands of values to a millionth over days; 10,000 events are wider than 128 bits."""
    rng = np.random.default_rng(days)
    rows = 10_000
    times = np.sort(rng.integers(0, days * 86_400 * SECOND, rows))
    levels = rng.normal(0, 1e6, rows)
    aggregate = sf.slope(reading.level, by=by_station, over="60d")
    (stage,) = stages_of([aggregate], "24h")
    result = step(StageState(stage), column_block(times, station="kiel", level=levels)).column("aggregate.station.0")
    scaled = [round(v) for v in (levels * 1e6).tolist()]
    for i in (1, 100, rows - 1):
        t, v, n = times[: i + 1].tolist(), scaled[: i + 1], i + 1
        above = n * sum(a * b for a, b in zip(t, v, strict=True)) - sum(t) * sum(v)
        below = n * sum(a * a for a in t) - sum(t) ** 2
        assert exactly(result[i].as_py()) == exactly(above * 10**6 / (below * 10**6))


def test_a_straight_line_has_its_slope() -> None:
    assert of_levels("slope", [1e6 + 0.25 * i for i in range(50)]) == exactly(0.25)
    assert of_steps("slope", [7 - 3 * i for i in range(50)]) == exactly(-3.0)
    assert of_steps("slope", [5] * 50) == exactly(0.0)


EXTREMES = st.sampled_from([0.0, 1e-6, -1e-6, 4.6e12, -4.6e12, 2.0**42 - 2.0**-10, 1e8, 1e8 + 1])
STEPS = st.one_of(st.integers(-(2**62) + 512, 2**62 - 512), st.integers(-9, 9), st.integers(2**53 - 2, 2**53 + 2))


@pytest.mark.parametrize("over", ["1h", "5 events"])
@settings(max_examples=40)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "t": st.integers(0, 40 * 10**9),
                "level": st.one_of(EXTREMES, st.floats(-4.6e12, 4.6e12), st.floats(-1, 1)),
                "steps": STEPS,
            }
        ),
        min_size=1,
        max_size=12,
    )
)
def test_answers_are_the_fractions_rounded_once(over: str, rows: list[dict[str, Any]]) -> None:
    fields = [reading.level, reading.steps]
    options: dict[str, dict[str, Any]] = {"decayed_sum": {"half_life": "7m"}, "decayed_mean": {"half_life": "7m"}}
    wanted = [
        Aggregate(operation, field, by=by_station, over=over, **options.get(operation, {}))
        for operation in SCALED
        for field in fields
    ]
    (stage,) = stages_of(wanted, "24h")
    given_rows = [{**row, "id": str(i), "station": "kiel"} for i, row in enumerate(rows)]
    assert differences(fold(stage, given_rows)[0], expected(stage, given_rows, 86_400 * SECOND)) == []


# -- the quotient itself ------------------------------------------------------------------------------------------


@numba.njit
def _quotients(high, low, divisor_high, divisor_low, results, sure):  # type: ignore[no-untyped-def]
    for i in range(len(high)):
        results[i], sure[i] = quotient(high[i], low[i], divisor_high[i], divisor_low[i])


def quotients(pairs: list[tuple[int, int]]) -> tuple[list[float], list[bool]]:
    """What `quotient` gives for each (dividend, divisor), and whether it is sure."""
    words = [[], [], [], []]  # type: list[list[int]]
    for dividend, divisor in pairs:
        for words_of, value in ((words[:2], dividend), (words[2:], divisor)):
            words_of[0].append(value >> 64)
            words_of[1].append((value & (2**64 - 1)) - (2**64 if value & 2**63 else 0))
    results, sure = np.zeros(len(pairs)), np.zeros(len(pairs), np.bool_)
    _quotients(*(np.array(one, np.int64) for one in words), results, sure)
    return results.tolist(), sure.tolist()


def test_random_quotients_of_wide_numbers_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    widths = rng.integers(0, 126, (30_000, 2)).tolist()
    digits = rng.integers(0, 2**63, (30_000, 4)).tolist()
    pairs = []
    for (a, b), (p, q, r, s) in zip(widths, digits, strict=True):
        dividend, divisor = ((p << 63) | q) & (2**a - 1 | 1), ((r << 63) | s) & (2**b - 1) | 1
        pairs.append((-dividend if p & 1 else dividend, divisor))
    results, sure = quotients(pairs)
    for (dividend, divisor), result, is_sure in zip(pairs, results, sure, strict=True):
        assert not is_sure or result == dividend / divisor, (dividend, divisor)
    assert sum(sure) > 0.999 * len(pairs)


def test_quotients_at_the_middle_between_two_doubles_are_right_or_unsure() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for half, divisor, off in zip(
        (rng.integers(2**53, 2**54, 20_000) | 1).tolist(),  # 54 bits: in the middle between two doubles
        rng.integers(1, 2**60, 20_000).tolist(),
        rng.integers(-2, 3, 20_000).tolist(),
        strict=True,
    ):
        pairs.append((half * divisor + off, divisor))
    results, sure = quotients(pairs)
    for (dividend, divisor), result, is_sure in zip(pairs, results, sure, strict=True):
        assert not is_sure or result == dividend / divisor, (dividend, divisor)
