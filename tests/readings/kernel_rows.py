"""Random events and random aggregates for the kernel's property tests, and both ways to answer them.

`fold` runs the kernel, in any blocks, shards and with any reloads between; `expected` asks the oracle. The inputs of
aggregates are taken from the rows in plain Python here, not by the library's expressions.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import hypothesis.strategies as st

import shared_features as sf
from shared_features.aggregates import SCALED, Aggregate
from shared_features.expressions import Expression, Field
from shared_features.hashing import hash_columns
from shared_features.kernel import step
from shared_features.plan import Stage, make_plan
from shared_features.state import StageState
from tests import oracle
from tests.readings.events import SECOND, START_US, by_sensor, by_station, make_app, make_block, note, reading

by_place = sf.Key("place", (reading.station, reading.sensor), (note.station, note.sensor))
KEYS = {key.name: key for key in (by_station, by_sensor, by_place)}
LATENESS = "15s"
LATENESS_US = 15 * SECOND
WINDOWS = ["1s", "5s", "10s", "20s", "1 event", "3 events", "10 events"]
Raw = dict[str, Any]

CONDITIONS: dict[str, list[tuple[Expression, Callable[[Raw], bool | None]]]] = {
    "reading": [
        (reading.level > 0.0, lambda row: None if row["level"] is None else row["level"] > 0.0),
        (reading.open, lambda row: row["open"]),
        (reading.colour == "red", lambda row: None if row["colour"] is None else row["colour"] == "red"),
        (~reading.open, lambda row: None if row["open"] is None else not row["open"]),
    ],
    "note": [(note.weight >= 1.0, lambda row: None if row["weight"] is None else row["weight"] >= 1.0)],
}
"""Conditions for where=, by event type, each with what it says of a row."""
_PREDICATES = {condition.key: says for pairs in CONDITIONS.values() for condition, says in pairs}

NUMBERS = [reading.level, reading.steps, reading.open, note.weight]
ORDERED = [*NUMBERS, reading.planned]
ANY = [*ORDERED, reading.colour, note.text]
VALUES: dict[str, list[Field]] = {
    **dict.fromkeys(SCALED, NUMBERS),
    **dict.fromkeys(["min", "max"], ORDERED),
    **dict.fromkeys(["count", "first", "last", "lag", "seconds_since_last", "distinct_count", "most_frequent"], ANY),
}
"""Every operation, and the fields that it can take."""

# -- random rows --------------------------------------------------------------------------------------------------

_TIMES_S = st.one_of(st.integers(0, 30), st.integers(0, 60), st.sampled_from([0, 5, 10, 15, 20, 25, 45, 4_000_000]))
_ENVELOPE = {
    "t": st.builds(lambda at, edge: at * SECOND + edge, _TIMES_S, st.sampled_from([0, 0, 0, -1, 1])),
    "station": st.sampled_from(["kiel", "kiel", "kiel", "kiel", "1", "11", "", None]),
    "sensor": st.sampled_from([1, 1, 1, 11, 0, -1, -(2**62), None]),
}
LEVELS = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1e8, 1e8 + 1, 1e8 + 2, 0.1, 1e-7, 2.5e-6, 1e12, -5e-324]),
    st.floats(-1e6, 1e6),
)
_READING = _ENVELOPE | {
    "type": st.just("reading"),
    "level": LEVELS,
    "steps": st.one_of(st.none(), st.integers(-5, 5), st.sampled_from([2**61, -(2**61), 2**40])),
    "open": st.sampled_from([True, False, None]),
    "colour": st.sampled_from(["red", "red", "blue", "", "grün", None]),
    "planned": st.one_of(st.none(), st.integers(0, 3), st.integers(-(2**50), 2**50)),
}
_NOTE = _ENVELOPE | {
    "type": st.just("note"),
    "weight": st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 5)),
    "text": st.sampled_from(["a", "b", None]),
}


def _with_ids(rows: list[Raw]) -> list[Raw]:
    return [{**row, "id": f"e{i * 7919 % 1009}-{i}"} for i, row in enumerate(rows)]


def events(most: int = 30) -> st.SearchStrategy[list[Raw]]:
    """Rows in fold order, at least one; ids are no order of any kind, so that ties are decided by identity."""
    row = st.one_of(*[st.fixed_dictionaries(_READING)] * 3, st.fixed_dictionaries(_NOTE))
    return st.lists(row, min_size=1, max_size=most).map(_with_ids)


# -- random aggregates --------------------------------------------------------------------------------------------


@st.composite
def aggregates(draw: st.DrawFn, operation: str | None = None) -> Aggregate:
    """An aggregate of ``operation``, or of any, with any options."""
    operation = operation or draw(st.sampled_from(sorted(VALUES)))
    value = draw(st.sampled_from(VALUES[operation]))
    keys = [key for key in KEYS.values() if value.event_type in key.fields]
    options: dict[str, Any] = {
        "by": draw(st.sampled_from(keys)),
        "over": draw(st.sampled_from(WINDOWS)),
        "closed": draw(st.sampled_from(["right", "both"])),
        "include_self": draw(st.booleans()),
    }
    if draw(st.integers(0, 2)) == 0:
        options["where"] = draw(st.sampled_from([condition for condition, _ in CONDITIONS[value.event_type]]))
    if operation in SCALED and value.dtype != "int64":  # large whole numbers leave no room for a scale
        options["scale"] = draw(st.sampled_from([None, 1, 1e-3, 1e-6]))
    if operation == "lag":
        options["k"] = draw(st.integers(1, 3))
    if operation.startswith("decayed"):
        options["half_life"] = draw(st.sampled_from(["100ms", "1s", "7s"]))
    return Aggregate(operation, value, **options)


def some_aggregates(operation: str, more: int = 3) -> st.SearchStrategy[list[Aggregate]]:
    """One aggregate of ``operation`` and up to ``more`` others, which may share its track or its window."""
    lists = st.tuples(aggregates(operation), st.lists(aggregates(), max_size=more))
    return lists.map(lambda drawn: list({a.key: a for a in (drawn[0], *drawn[1])}.values()))


def stages_of(chosen: Sequence[Aggregate], lateness: str = LATENESS) -> list[Stage]:
    """The stages of an app of these aggregates; timestamps cannot be features, so they are taken as ages."""
    features = {f"f{i}": a if a.dtype != "timestamp" else a - reading.at for i, a in enumerate(chosen)}
    return make_plan(make_app(features, lateness)).stages


# -- the kernel's answers -----------------------------------------------------------------------------------------

Answer = dict[str, Any]


def fold(
    stage: Stage,
    rows: Sequence[Raw],
    cuts: Collection[int] = (),
    reloads: Collection[int] = (),
    shards: int = 1,
) -> tuple[list[Answer], list[StageState]]:
    """What the kernel answers each row, floats in hexadecimal: aggregate key to value, and ``late``.

    Args:
        stage: the stage.
        rows: in fold order.
        cuts: rows before which a new block begins.
        reloads: blocks after which the state goes to bytes and back.
        shards: how many states there are, rows dealt out by key.
    """
    states = [StageState(stage, shard=shard) for shard in range(shards)]
    found: list[Answer] = [{} for _ in rows]
    bounds = [0, *sorted({cut % (len(rows) + 1) for cut in cuts}), len(rows)]
    for n, (start, end) in enumerate(itertools.pairwise(bounds)):
        for shard in range(shards):
            own = [i for i in range(start, end) if _shard(stage, rows[i], shards) == shard]
            result = step(states[shard], make_block([rows[i] for i in own]))
            columns = {output.aggregate.key: result.column(output.column) for output in stage.outputs}
            columns["late"] = result.column(f"stage.{stage.name}.late")
            for name, column in columns.items():
                for i, value in zip(own, _values(column), strict=True):
                    found[i][name] = value
            if n in reloads:
                states[shard] = StageState.load(stage, states[shard].save())
    return found, states


def _values(column: Any) -> list[Any]:
    values = column.cast("int64") if str(column.type).startswith("timestamp") else column
    return [exactly(value) for value in values.to_pylist()]


def exactly(value: Any) -> Any:
    """A value such that equal ones are equal in bits: floats as hexadecimal text, lists by element."""
    if isinstance(value, list):
        return [exactly(item) for item in value]
    return value.hex() if isinstance(value, float) else value


def _shard(stage: Stage, row: Mapping[str, Any], shards: int) -> int:
    return zlib.crc32(repr(key_of(stage, row)).encode()) % shards


def key_of(stage: Stage, row: Mapping[str, Any]) -> Any:
    """The key of a row in a stage; a tuple if it is composite, None if any part of it is null."""
    parts = stage.key.parts.get(row.get("type", "reading"), ())
    values = tuple(row.get(part.field) for part in parts)
    if not parts or any(value is None for value in values):
        return None
    return values if len(values) > 1 else values[0]


# -- the oracle's answers -----------------------------------------------------------------------------------------


def expected(stage: Stage, rows: Sequence[Raw], lateness_us: int = LATENESS_US) -> list[Answer]:
    """What the oracle answers each row, in the form of `fold`."""
    block = make_block(rows)
    identities = hash_columns([block.column("event_type"), block.column("event_id")]).tolist()
    wanted = [output.aggregate for output in stage.outputs]
    given = [
        oracle.Row(
            key_of(stage, row),
            START_US + row["t"],
            identity,
            {a.key: input_of(a, row) for a in wanted},
            row.get("type", "reading") == "reading",
        )
        for row, identity in zip(rows, identities, strict=True)
    ]
    nothing: Answer = {a.key: None for a in wanted}
    found = oracle.answers(given, wanted, lateness_us)
    late = oracle.late(given, lateness_us)
    return [
        nothing | {name: exactly(value) for name, value in one.items()} | {"late": flag}
        for one, flag in zip(found, late, strict=True)
    ]


def input_of(a: Aggregate, row: Mapping[str, Any]) -> Any:
    """What ``a`` takes from a row: None if the row is of another type, null, or its condition is not true."""
    if row.get("type", "reading") != a.event_type:
        return None
    if a.where is not None and _PREDICATES[a.where.key](dict(row)) is not True:
        return None
    if isinstance(a.value, Field):
        return START_US + row["t"] if a.value.column == "event_time" else row.get(a.value.field)
    return _PREDICATES[a.value.key](dict(row))


def differences(found: Sequence[Answer], wanted: Sequence[Answer]) -> list[str]:
    """Where two lists of answers differ, a few of them in words."""
    assert len(found) == len(wanted)
    all_of_them = [
        f"row {i}: {name} is {one[name]}, wanted {other[name]}"
        for i, (one, other) in enumerate(zip(found, wanted, strict=True))
        for name in sorted(one.keys() | other.keys())
        if one[name] != other[name]
    ]
    return all_of_them[:3]
