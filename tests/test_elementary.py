"""Elementary functions: near the true value, the same bits on every CPU, however the rows are cut."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from shared_features import elementary, exponential, machine_code, trigonometry
from tests.elementary_arguments import arguments, result_hash
from tests.elementary_reference import ERROR
from tests.repository import ROOT

FUNCTIONS = list(ERROR)

# Of the bits of 100,000 results each. A CPU, compiler or library that computes other bits fails here. Whoever
# changes a function raises KERNEL_VERSION with it.
GOLDEN = {
    "exp": "41f8177e9f637003",
    "log": "814684c5ff0bea8c",
    "log1p": "668aa4eaa6d452c4",
    "power": "2ec07edcc77cc7f2",
    "sin": "2160dac20600d50a",
    "cos": "42e86eee436d69c4",
    "sin_deg": "e37dd18aa9003266",
    "cos_deg": "61eaf4a4844c5535",
    "asin": "7adef43670897a43",
    "acos": "c937449a7493215b",
    "atan": "24a2f9a52e746d6e",
    "atan2": "4f1bdb60a6d77810",
}

# The worst that the docstring of the module states.
STATED_ULPS = {"exp": 0.75, "log": 0.51, "log1p": 0.51, "power": 0.51, "sin": 0.75, "cos": 0.75}
STATED_ULPS |= {"sin_deg": 0.75, "cos_deg": 0.75, "asin": 0.65, "acos": 0.65, "atan": 0.65, "atan2": 0.65}

# Where functions of this kind are wrong if they are wrong: the doubles nearest to multiples of π/2, the seams of
# the tables, the neighbourhood of 1, the least and the greatest.
HARD: dict[str, Sequence[tuple[float, ...]]] = {
    "exp": [(0.0,), (-0.0,), (5e-324,), (1e-17,), (709.782712893384,), (-708.4,), (-745.13,), (math.log(2) / 256,)],
    "log": [(1.0 - 2**-53,), (1.0 + 2**-52,), (5e-324,), (1.7976931348623157e308,), (127.5 / 128,), (128.5 / 128,)],
    "log1p": [(5e-324,), (-1.0 + 2**-53,), (2.0**-54,), (-(2.0**-54),), (1.7976931348623157e308,), (2.0**53,)],
    "power": [(1.0 + 2**-52, 3e18), (1.0 - 2**-53, -6e18), (-3.0, 41.0), (-3.0, -40.0), (10.0, -307.0), (5e-324, 0.5)],
    "sin": [(n * math.pi / 2,) for n in range(1, 60)]
    + [(math.pi * 1e7,), (2.0**28,), (5e-100,), (0.78539816339744828,)],
    "cos": [(n * math.pi / 2,) for n in range(1, 60)]
    + [(math.pi * 1e7,), (2.0**28,), (5e-100,), (0.78539816339744828,)],
    "sin_deg": [(45.0 * n + d,) for n in range(9) for d in (1e-13, -1e-13, 0.0)] + [(30.0,), (1e-60,), (2.0**45,)],
    "cos_deg": [(45.0 * n + d,) for n in range(9) for d in (1e-13, -1e-13, 0.0)] + [(60.0,), (1e-60,), (2.0**45,)],
    "asin": [(1.0,), (-1.0,), (1.0 - 2**-53,), (0.5,), (1e-80,), (math.sqrt(0.5),)],
    "acos": [(-1.0,), (1.0 - 2**-53,), (2**-53 - 1.0,), (0.5,), (0.0,), (1e-80,), (math.sqrt(0.5),)],
    "atan": [(k / 128,) for k in range(1, 130)] + [(1e-80,), (1e80,), (1.0 + 2**-52,), (0.0625 - 2**-57,)],
    "atan2": [(1.0, -1.0), (-1.0, -1.0), (1e-70, -1.0), (1.0, -1e-70), (-1.0, 0.0), (0.0, -1.0), (1e80, -2e80)],
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_are_as_near_to_the_truth_as_stated(function: str) -> None:
    columns = [values[::100] for values in arguments(function, seed=2)]
    rows = [*zip(*(column.tolist() for column in columns), strict=True), *HARD[function]]
    results = getattr(elementary, function)(*np.array(rows).T)
    worst = max((ERROR[function](*row, result), row) for row, result in zip(rows, results.tolist(), strict=True))
    assert worst[0] <= STATED_ULPS[function], worst


def test_the_docstring_states_what_is_tested() -> None:
    for function, ulps in STATED_ULPS.items():
        assert f"{function} {ulps}" in " ".join(str(elementary.__doc__).split())


def test_bits_are_those_of_every_other_machine() -> None:
    assert {function: result_hash(function) for function in FUNCTIONS} == GOLDEN


def test_bits_are_the_same_from_code_for_the_plainest_cpu(tmp_path: Path) -> None:
    """Without AVX, FMA or anything else that a newer CPU has."""
    code = (
        "import json, pathlib; from shared_features import machine_code; "
        f"machine_code.FOLDER = pathlib.Path({str(tmp_path)!r}); "
        "from tests.elementary_arguments import result_hash; "
        f"print(json.dumps({{f: result_hash(f) for f in {FUNCTIONS!r}}}))"
    )
    plain = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=plain, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == GOLDEN


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_machine_code_fuses_nothing_and_calls_no_mathematics(function: str) -> None:
    scalar = getattr(exponential, f"scalar_{function}", None) or getattr(trigonometry, f"scalar_{function}")
    loop = elementary.loop(scalar, len(arguments(function)))
    argument_types, _ = machine_code._normalized(loop._signature)
    assembly = machine_code._machine().emit_assembly(loop._module(argument_types)[1])
    instructions = [line.split() for line in assembly.splitlines() if line.startswith("\t")]
    assert any("sd" in words[0] or words[0].startswith("f") for words in instructions)  # it reads the right thing
    fused = ("vfmadd", "vfmsub", "vfnmadd", "vfnmsub", "fmadd", "fmsub", "fnmadd", "fmla", "fmls")
    assert [words for words in instructions if words[0].startswith(fused)] == []
    platform = {"exp", "log", "log1p", "pow", "sin", "cos", "asin", "acos", "atan", "atan2", "fma"}
    assert platform.isdisjoint(word.strip("_@$") for words in instructions for word in words[1:])


@settings(max_examples=50)
@given(
    function=st.sampled_from(FUNCTIONS), start=st.integers(0, 99_000), lengths=st.lists(st.integers(1, 40), min_size=1)
)
def test_the_cut_of_the_rows_changes_no_bit(function: str, start: int, lengths: list[int]) -> None:
    columns = [values[start : start + sum(lengths)] for values in arguments(function)]
    compute = getattr(elementary, function)
    whole = compute(*columns)
    edges = np.cumsum([0, *lengths])
    cut = np.concatenate([compute(*(c[a:b] for c in columns)) for a, b in itertools.pairwise(edges)])
    assert cut.tobytes() == whole.tobytes()


def test_where_a_function_has_no_value() -> None:
    nan, infinity = math.nan, math.inf
    table: list[tuple[str, tuple[float, ...], float]] = [
        ("exp", (710.0,), infinity),
        ("exp", (-746.0,), 0.0),
        ("exp", (-infinity,), 0.0),
        ("exp", (nan,), nan),
        ("log", (0.0,), -infinity),
        ("log", (-1.0,), nan),
        ("log", (infinity,), infinity),
        ("log1p", (-1.0,), -infinity),
        ("log1p", (-1.5,), nan),
        ("power", (0.0, 0.0), 1.0),
        ("power", (0.0, -1.0), infinity),
        ("power", (-2.0, 0.5), nan),
        ("power", (-1.0, 1e300), 1.0),
        ("power", (10.0, 400.0), infinity),
        ("power", (-10.0, 401.0), -infinity),
        ("power", (10.0, -400.0), 0.0),
        ("power", (nan, 1.0), nan),
        ("sin", (infinity,), nan),
        ("sin", (2.0**28 + 1,), nan),
        ("cos_deg", (nan,), nan),
        ("cos_deg", (2.0**46,), nan),
        ("asin", (1.0 + 2**-52,), nan),
        ("acos", (-2.0,), nan),
        ("atan", (infinity,), math.pi / 2),
        ("atan", (nan,), nan),
        ("atan2", (0.0, 0.0), 0.0),
        ("atan2", (-0.0, -1.0), math.pi),
        ("atan2", (nan, 1.0), nan),
        ("atan2", (5e-324, 1e308), 0.0),
        ("atan2", (1e308, 5e-324), math.pi / 2),
        ("atan2", (1e308, 1e308), math.pi / 4),
        ("atan2", (5e-324, 5e-324), math.pi / 4),
    ]
    for function, given_, wanted in table:
        np.testing.assert_equal(float(getattr(elementary, function)(*given_)), wanted, f"{function}{given_}")


def test_right_angles_are_exact() -> None:
    angles = np.array([-360.0, -270.0, -180.0, -90.0, 0.0, 90.0, 180.0, 270.0, 360.0, 450.0])
    assert elementary.sin_deg(angles).tolist() == [0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0]
    assert elementary.cos_deg(angles).tolist() == [1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0]
    assert not np.signbit(elementary.sin_deg(angles)[[0, 2, 4, 6, 8]]).any()


def test_shapes_are_kept_and_broadcast() -> None:
    assert elementary.exp(1).shape == ()
    assert elementary.exp(np.zeros((2, 3))[:, ::2]).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert elementary.power(np.array([[2.0], [3.0]]), [1, 2, 3]).tolist() == [[2.0, 4.0, 8.0], [3.0, 9.0, 27.0]]
    assert elementary.log([]).shape == (0,)


def test_degrees() -> None:
    assert elementary.degrees([math.pi, -math.pi / 2]).tolist() == [180.0, -90.0]
