"""What a table holds, field by field: nulls, ranges, frequent values, outliers, and what looks like a placeholder.

A field of a struct that is named like an event type is looked at on the rows of that type only: on others it is null by
definition. Counts, ranges, quantiles and outliers are exact; the number of different values is HyperLogLog's, within a
few per cent.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch import bigquery
from batch.sql import Database, Table, opened, parquet_table, quoted, text
from shared_features.errors import HistoryError

TOP = 10
BINS = 30
FENCES = 3.0
"""Outliers are further than so many interquartile ranges from the quartiles (Tukey's outer fences)."""

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
PLACEHOLDERS = ("", "-", "--", "?", "n/a", "na", "nan", "nil", "none", "null", "unknown", "undefined")
_SUSPECT_SHARE = 0.001
_SUSPECT_ROWS = 10
_SUSPECT_GAP = 0.15

Progress = Callable[[float, str], None]


@dataclass(slots=True)
class FieldProfile:
    """One field.

    Attributes:
        field: its name, with its struct's: ``departed.origin``.
        type: of its column, as Arrow names it.
        of: the event type whose rows were looked at; None for all rows.
        rows, nulls: how many, and of these without a value.
        distinct: different values, about.
        low, high: least and greatest value.
        mean, std: of numbers, finite ones; of booleans the share of true ones.
        quantiles: of numbers, by their level.
        fences: beyond these a number counts as an outlier; None where the quartiles are one value.
        outliers: how many are.
        not_finite: NaN and infinities.
        spaces: texts that begin or end with a space.
        top: the most frequent values and how often they occur; empty where nearly all are different.
        suspects: what looks like a placeholder, candidates for a clean rule: a least or greatest number that is
            frequent and far from all others, and texts that mean "unknown".
        histogram: of numbers: edges, and rows between them, over what lies within the fences.
    """

    field: str
    type: str
    of: str | None
    rows: int
    nulls: int
    distinct: int
    low: Any = None
    high: Any = None
    mean: float | None = None
    std: float | None = None
    quantiles: dict[str, float] = dataclasses.field(default_factory=dict)
    fences: tuple[float, float] | None = None
    outliers: int = 0
    not_finite: int = 0
    spaces: int = 0
    top: list[tuple[Any, int]] = dataclasses.field(default_factory=list)
    suspects: list[Any] = dataclasses.field(default_factory=list)
    histogram: tuple[list[float], list[int]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {name: _plain(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Profile:
    """A table's fields.

    Attributes:
        uri: where it is.
        rows: in all.
        fields: in the table's order.
    """

    uri: str
    rows: int
    fields: list[FieldProfile]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"uri": self.uri, "rows": self.rows, "fields": [one.as_dict() for one in self.fields]}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value


def profile(uri: str, progress: Progress | None = None) -> Profile:
    """Look at a table.

    Args:
        uri: a Parquet file, a folder of them, or ``bq://project.dataset.table``, which is copied to a temporary file.
        progress: called with the share of fields done.

    Raises:
        HistoryError: there is no such table, or it cannot be read.
    """
    with _table(uri) as table, opened([table]) as database:
        schema = database.query("SELECT * FROM profiled LIMIT 0").schema
        (rows,) = _one(database, "count(*)", "profiled")
        types = _event_types(database, schema)
        leaves = list(_leaves(schema))
        found = []
        for number, (names, kind) in enumerate(leaves):
            if progress is not None:
                progress(number / len(leaves), ".".join(names))
            of = names[0] if len(names) > 1 and names[0] in types else None
            found.append(_look(database, names, kind, of))
        return Profile(uri, rows, found)


@contextmanager
def _table(uri: str) -> Iterator[Table]:
    if uri.startswith("bq://"):
        with tempfile.TemporaryDirectory(prefix="sameriver-profile-") as folder:
            path = Path(folder) / "rows.parquet"
            with pq.ParquetWriter(path, bigquery.read_schema(uri)) as writer:
                for stream in bigquery.streams(uri):
                    for batch in bigquery.read_stream(stream):
                        writer.write_batch(batch)
            yield Table("profiled", [(path, None)])
        return
    table = None if "://" in uri or not Path(uri).exists() else parquet_table("profiled", Path(uri))
    if table is None:
        raise HistoryError(
            f"there is no table at {uri}: wanted a Parquet file, a folder of them, or bq://project.dataset.table"
        )
    yield table


def _event_types(database: Database, schema: pa.Schema) -> set[str]:
    if "event_type" not in schema.names or not any(pa.types.is_struct(one.type) for one in schema):
        return set()
    return {row[0] for row in _all(database, "DISTINCT event_type", "profiled")}


def _leaves(schema: pa.Schema) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
    def spread(names: tuple[str, ...], kind: pa.DataType) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
        if pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                yield from spread((*names, kind.field(i).name), kind.field(i).type)
        else:
            yield names, kind

    for one in schema:
        yield from spread((one.name,), one.type)


def _look(database: Database, names: tuple[str, ...], kind: pa.DataType, of: str | None) -> FieldProfile:
    column = ".".join(map(quoted, names))
    where = "" if of is None else f" WHERE event_type = {text(of)}"
    values = _derived(f"{column} AS x", f"profiled{where}")
    rows, present, distinct = _one(database, "count(*), count(x), approx_count_distinct(x)", values)
    found = FieldProfile(".".join(names), str(kind), of, rows, rows - present, min(distinct, present))
    if not present:
        return found
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        return found
    if pa.types.is_boolean(kind):
        (found.mean,) = _one(database, "avg(x::INT)", values)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        _look_at_numbers(database, _derived("x::DOUBLE AS x", values), found)
    else:
        found.low, found.high = _one(database, "min(x), max(x)", values)
    if found.distinct < 0.9 * present or present <= 1_000:
        rest = f" WHERE x IS NOT NULL GROUP BY x ORDER BY n DESC, x LIMIT {TOP}"
        found.top = [(value, count) for value, count in _all(database, "x, count(*) AS n", values + rest)]
    if pa.types.is_string(kind):
        (found.spaces,) = _one(database, "count(*) FILTER (x <> trim(x))", values)
    unknown = [value for value, _ in found.top if isinstance(value, str) and value.strip().casefold() in PLACEHOLDERS]
    found.suspects += unknown
    return found


def _look_at_numbers(database: Database, values: str, found: FieldProfile) -> None:
    finite = _derived("x", values + " WHERE isfinite(x)")
    (count,) = _one(database, "count(*)", finite)
    found.not_finite = found.rows - found.nulls - count
    if not count:
        return
    levels = ", ".join(map(str, QUANTILES))
    found.low, found.high, found.mean, found.std, quantiles = _one(
        database, f"min(x), max(x), avg(x), stddev_pop(x), quantile_disc(x, [{levels}])", finite
    )
    found.quantiles = {f"{level:g}": value for level, value in zip(QUANTILES, quantiles, strict=True)}
    first, third = found.quantiles["0.25"], found.quantiles["0.75"]
    found.suspects = _lonely_ends(database, finite, found, count)
    low, high = found.low, found.high
    if third > first:
        low, high = first - FENCES * (third - first), third + FENCES * (third - first)
        found.fences = (low, high)
        (found.outliers,) = _one(database, "count(*)", f"{finite} WHERE x < {low!r} OR x > {high!r}")
        low, high = max(low, found.low), min(high, found.high)
    width = (high - low) / BINS or 1.0
    place = f"least({BINS - 1}, floor((x - {low!r}) / {width!r}))::INT"
    inside = f"{finite} WHERE x BETWEEN {low!r} AND {high!r} GROUP BY bin"
    counts = dict(_all(database, f"{place} AS bin, count(*)", inside))
    edges = [low + width * place for place in range(BINS + 1)]
    found.histogram = (edges, [counts.get(place, 0) for place in range(BINS)])


def _lonely_ends(database: Database, finite: str, found: FieldProfile, count: int) -> list[float]:
    """The least and the greatest value, if frequent and far from all others: 102.3 where the rest is below 30."""
    at_low, at_high, second, second_last = _one(
        database,
        f"count(*) FILTER (x = {found.low!r}), count(*) FILTER (x = {found.high!r}), "
        f"min(x) FILTER (x > {found.low!r}), max(x) FILTER (x < {found.high!r})",
        finite,
    )
    if second is None or found.distinct < 10:
        return []
    often = max(_SUSPECT_ROWS, _SUSPECT_SHARE * count)
    ends = (
        (found.low, at_low, second - found.low, found.high - second),
        (found.high, at_high, found.high - second_last, second_last - found.low),
    )
    return [value for value, times, gap, rest in ends if times >= often and gap > _SUSPECT_GAP * rest]


def _derived(what: str, source: str) -> str:
    """A query as the source of another one; names and texts in it are quoted."""
    return f"(SELECT {what} FROM {source})"  # noqa: S608


def _one(database: Database, what: str, source: str) -> tuple[Any, ...]:
    return _all(database, what, source)[0]


def _all(database: Database, what: str, source: str) -> list[tuple[Any, ...]]:
    table = database.query(_derived(what, source)[1:-1]).read_all()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
