"""Random rows for expressions, and what an expression gives for them: as one block, in pieces, row by row."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa

from shared_features.blocks import block_schema
from shared_features.columns import Evaluator
from shared_features.expressions import Expression
from tests.shop.app import app

LEAST, GREATEST = -(2**63), 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

INTEGERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, LEAST, LEAST + 1, GREATEST, GREATEST - 1, 2**31, 2**32, -(2**31), 2**53 + 1]),
    st.sampled_from([3037000499, 3037000500, -3037000500, 2**62, -(2**62), 7 * 2**60, 5270498306774157604]),
    st.integers(-100, 100),
    st.integers(LEAST, GREATEST),
)
FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e308, -1e308, 5e-324, 2.0**53, 2.0**63, -(2.0**63)]),
    st.sampled_from([2.0**63 - 1024, 9007199254740993.0, 1.0, 2.0, 709.8, -745.2, -1.0, 1e-17]),
    st.floats(-100, 100),
    st.floats(allow_nan=False, allow_infinity=False),
)
# Days on which clocks change in New York, London, on Lord Howe (by half an hour) and in Casablanca, or a year turns.
INSTANTS = st.one_of(
    st.sampled_from(["2013-03-10", "2013-11-03", "2024-03-31", "2024-10-27", "2023-04-01", "2023-09-30", "2024-03-10"]),
    st.sampled_from(["2019-12-31", "2020-01-01", "2020-12-31", "2000-02-29", "2100-02-28", "1970-01-01"]),
).map(lambda day: round(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000)
TIMES = st.one_of(
    st.builds(lambda day, us: day + us, INSTANTS, st.integers(0, 86_400_000_000 * 2)),
    st.integers(0, 4_102_444_800_000_000 - 1),
)
ROW = st.fixed_dictionaries(
    {
        "amount": st.one_of(st.none(), FLOATS, FLOATS),
        "units": st.one_of(st.none(), INTEGERS, INTEGERS),
        "till": st.one_of(st.none(), INTEGERS, INTEGERS),
        "paid": st.sampled_from([True, False, None]),
        "shop": st.sampled_from(["tea", "", None]),
        "kind": st.one_of(st.none(), st.sampled_from(["tea", "jam", "", "t", "Tee", "茶"]), st.text(max_size=5)),
        "at": TIMES,
    }
)
ROWS = st.lists(ROW, min_size=1, max_size=30)

Row = dict[str, Any]


def block_of(rows: Sequence[Row]) -> pa.RecordBatch:
    """Sales with these fields; ``at`` is the event time in microseconds."""
    filled = [
        {"event_type": "sale", "event_id": str(i), "event_time": row.get("at", 0)}
        | {f"sale.{name}": value for name, value in row.items() if name != "at"}
        for i, row in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(filled, schema=block_schema(app.event_types))


def evaluate(expression: Expression, rows: Sequence[Row]) -> list[Any]:
    """The expression over all rows as one block."""
    result: list[Any] = Evaluator(block_of(rows)).array(expression).to_pylist()
    return result


Cases = Mapping[str, tuple[Expression, Callable[[Row], Any]]]
"""Name to an expression, and to what it must give for one row."""


def require(cases: Cases, rows: Sequence[Row], seed: int) -> None:
    """Each expression equals its function on every row, to the bit: as one block, cut into pieces, row by row.

    The pieces are slices of one block, so that their buffers do not begin where their rows do.
    """
    whole = block_of(rows)
    random = np.random.default_rng(seed)
    cuts = sorted({0, len(rows), *random.integers(0, len(rows) + 1, 3).tolist()})
    slices = [Evaluator(whole.slice(start, end - start)) for start, end in itertools.pairwise(cuts)]
    lines = [Evaluator(block_of([row])) for row in rows[:2]]
    together = Evaluator(whole)
    for name, (expression, slowly) in cases.items():
        wanted = [bits(slowly(row)) for row in rows]
        got = together.array(expression)
        got.validate(full=True)
        assert [bits(value) for value in got.to_pylist()] == wanted, name
        pieces = [value for piece in slices for value in piece.array(expression).to_pylist()]
        assert [bits(value) for value in pieces] == wanted, f"{name}, cut at {cuts}"
        alone = [bits(line.array(expression).to_pylist()[0]) for line in lines]
        assert alone == wanted[:2], f"{name}, row by row"


def bits(value: Any) -> Any:
    """A value that equals another's only if type and bits do: tells 0.0 from -0.0 and 1 from True."""
    if isinstance(value, list):
        return tuple(bits(one) for one in value)
    if isinstance(value, datetime):
        return ("time", (value - EPOCH) // timedelta(microseconds=1))
    return (type(value).__name__, struct.pack("<d", value) if isinstance(value, float) else value)


def whole(value: int | None) -> int | None:
    """An int64, or null where it does not fit."""
    return None if value is None or not LEAST <= value <= GREATEST else value


def finite(value: float | None) -> float | None:
    """A finite double, or null."""
    return None if value is None or value != value or abs(value) == float("inf") else value
