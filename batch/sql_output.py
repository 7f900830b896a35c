"""What becomes of a query's answer: CSV files of a bounded size, or a picture of one column by another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from shared_features.errors import ConfigurationError

BINS = 60
GROUPS = 6
"""At most so many groups in a picture; the others are counted together."""

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SHARD_ROWS = 4_096


# -- CSV ----------------------------------------------------------------------------------------------------
def write_csv(answer: pa.RecordBatchReader, folder: Path, *, most_bytes: int) -> list[Path]:
    """Write ``part-00000.csv`` …, each with a line of headings, closed once it has ``most_bytes``.

    Args:
        answer: structs become one column per field; lists become JSON-like text.
        folder: made if it is not there; it must have no files yet.
        most_bytes: a file may be longer by the last few thousand rows.

    Raises:
        ConfigurationError: the folder has files, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigurationError(f"folder {folder} is not empty: name a new one for --csv")
        return _write_parts(answer, folder, most_bytes)
    except OSError as error:
        raise ConfigurationError(
            f"CSV files cannot be written to {folder} ({error.strerror or error}): make it writable, or free space"
        ) from error


def _write_parts(answer: pa.RecordBatchReader, folder: Path, most_bytes: int) -> list[Path]:
    parts: list[Path] = []
    file: IO[bytes] | None = None
    writer: csv.CSVWriter | None = None
    schema = _flat(pa.Table.from_batches([], answer.schema)).schema
    try:
        for batch in answer:
            table = _flat(pa.Table.from_batches([batch]))
            for start in range(0, table.num_rows, _SHARD_ROWS):
                if file is None or writer is None:
                    file, writer = _next_part(folder, parts, schema)
                writer.write_table(table.slice(start, _SHARD_ROWS).cast(schema))
                if file.tell() >= most_bytes:
                    writer.close()
                    file.close()
                    file = None
        if not parts:
            file, writer = _next_part(folder, parts, schema)
    finally:
        if file is not None and writer is not None:
            writer.close()
            file.close()
    return parts


def _next_part(folder: Path, parts: list[Path], schema: pa.Schema) -> tuple[IO[bytes], csv.CSVWriter]:
    parts.append(folder / f"part-{len(parts):05d}.csv")
    file = parts[-1].open("xb")
    return file, csv.CSVWriter(file, schema)


def _flat(table: pa.Table) -> pa.Table:
    """Structs spread, and what CSV has no form for as text."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            texts = [None if value is None else str(value) for value in table.column(place).to_pylist()]
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
        elif pa.types.is_decimal(field.type) or str(field.type).startswith("extension"):
            table = table.set_column(place, field.name, table.column(place).cast(pa.string()))
    return table


# -- a histogram --------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Histogram:
    """How often the values of one column occur, for each value of another one.

    Attributes:
        value, group: names of the columns; ``group`` is "" without one.
        edges: float64 [bins + 1]; values beyond the first and last one are counted in the outermost bins.
        counts: group's value as text to int64 [bins].
        missing: group's value to how many values are null.
    """

    value: str
    group: str
    edges: np.ndarray
    counts: dict[str, np.ndarray]
    missing: dict[str, int]


def histogram(answer: pa.RecordBatchReader) -> Histogram:
    """The first column's values, by the second column if there is one.

    Raises:
        ConfigurationError: the first column has no numbers, or there are no values.
    """
    names = answer.schema.names
    kind = answer.schema.field(0).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or _is_decimal(kind)):
        raise ConfigurationError(f"--plot wants numbers in the query's first column, {names[0]!r} is {kind}")
    group = names[1] if len(names) > 1 else ""
    values: dict[str, list[np.ndarray]] = {}
    missing: dict[str, int] = {}
    for batch in answer:
        column = batch.column(0)
        groups = batch.column(1).cast(pa.string()).fill_null("null") if group else pa.repeat("", batch.num_rows)
        numbers = column.cast(pa.float64())
        for one in groups.unique().to_pylist():
            mine = numbers.filter(pc.equal(groups, one))
            missing[one] = missing.get(one, 0) + mine.null_count
            finite = mine.drop_null().to_numpy(zero_copy_only=False)
            values.setdefault(one, []).append(finite[np.isfinite(finite)])
    joined = {one: np.concatenate(parts) for one, parts in sorted(values.items())}
    joined = _few(joined)
    everything = np.concatenate([np.zeros(0), *joined.values()])
    if not len(everything):
        raise ConfigurationError(f"--plot has nothing to show: column {names[0]!r} has no values")
    edges = _edges(everything)
    counts = {
        one: np.histogram(np.clip(some, edges[0], edges[-1]), edges)[0].astype(np.int64) for one, some in joined.items()
    }
    return Histogram(names[0], group, edges, counts, missing)


def _is_decimal(kind: pa.DataType) -> bool:
    return bool(pa.types.is_decimal(kind))


def _few(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The groups with the most values; the rest as one."""
    if len(values) <= GROUPS:
        return values
    order = sorted(values, key=lambda one: (-len(values[one]), one))
    rest = np.concatenate([values[one] for one in order[GROUPS - 1 :]])
    return {one: values[one] for one in sorted(order[: GROUPS - 1])} | {"others": rest}


def _edges(values: np.ndarray) -> np.ndarray:
    """Bins over the middle 99.8 % of the values, so that an outlier does not flatten the others; whole for integers."""
    low, high = np.quantile(values, [0.001, 0.999], method="nearest")
    if bool(np.all(values == np.rint(values))) and high - low < BINS:
        return np.arange(low, high + 2) - 0.5
    edges: np.ndarray = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    return edges


def plot(found: Histogram, path: Path, title: str) -> None:
    """Write a PNG: each group's share of values per bin.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for colour, (one, counts) in zip(_COLOURS, found.counts.items(), strict=False):
        total = max(1, int(counts.sum()))
        name = f"{found.group} = {one}: {total:,} values" if found.group else f"{total:,} values"
        axes.stairs(counts / total, found.edges, label=name, color=colour, linewidth=1.8)
    axes.set_xlabel(found.value)
    axes.set_ylabel("share of the values")
    axes.set_title(title)
    axes.legend()
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
    except OSError as error:
        raise ConfigurationError(
            f"picture {path} cannot be written ({error.strerror or error}): name another"
        ) from error


def shown_cell(value: Any) -> str:
    """A value in a table for people."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def rows_of(answer: pa.RecordBatchReader, most: int | None) -> tuple[list[dict[str, Any]], int]:
    """The first ``most`` rows (None: all) and how many there are."""
    rows: list[dict[str, Any]] = []
    count = 0
    for batch in answer:
        wanted = batch.num_rows if most is None else max(0, most - len(rows))
        rows += _named(batch.slice(0, wanted))
        count += batch.num_rows
    return rows, count


def _named(batch: pa.RecordBatch) -> Sequence[dict[str, Any]]:
    found: Sequence[dict[str, Any]] = batch.to_pylist()
    return found
