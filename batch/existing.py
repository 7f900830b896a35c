"""Rows that a destination has already: an identity is written once, and what is there wins (contract C7)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch.files import Files
from batch.writers import NEARLY, Shape
from shared_features.blocks import flatten
from shared_features.errors import HistoryError
from shared_features.schema import TIMESTAMP

log = logging.getLogger(__name__)


def absent(block: pa.RecordBatch, identity: str, there: pa.Table) -> pa.RecordBatch:
    """The rows whose identity is not among those that are there."""
    return block.filter(pc.invert(pc.is_in(block.column(identity), there[identity].combine_chunks())))


def differing_rows(shape: Shape, block: pa.RecordBatch, there: pa.Table) -> int:
    """How many rows that are there are not, bit for bit, the ones of the same identity in the block; logs the first.

    Args:
        there: rows of identities of the block, flat, with as many of the block's columns as the destination has.
    """
    names = [name for name in shape.schema.names if name in there.column_names and name not in shape.uncompared]
    rows = pc.index_in(there[shape.identity].combine_chunks(), block.column(shape.identity))
    ours = pa.Table.from_batches([block.select(names)]).take(rows)
    different = np.zeros(there.num_rows, bool)
    for name in names:
        unequal = (_apart if name in shape.nearly else _unequal)(ours[name], there[name])
        if unequal.any() and not different.any():
            row = int(np.flatnonzero(unequal)[0])
            log.error(
                "%s %s is there already with %s = %r, not %r: it stays as it is",
                *(shape.identity, there[shape.identity][row], name, there[name][row].as_py(), ours[name][row].as_py()),
            )
        different |= unequal
    return int(different.sum())


def _unequal(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> np.ndarray:
    first, second = ours.combine_chunks(), theirs.combine_chunks()
    if pa.types.is_nested(first.type):
        return np.array([a != b for a, b in zip(first.to_pylist(), second.to_pylist(), strict=True)], bool)
    second = second.cast(first.type)
    nulls = np.asarray(first.is_valid()) != np.asarray(second.is_valid())
    if pa.types.is_floating(first.type):
        bits = pa.int64() if first.type == pa.float64() else pa.int32()
        first, second = first.view(bits), second.view(bits)
    unequal: np.ndarray = nulls | np.asarray(pc.not_equal(first, second).fill_null(False))
    return unequal


def _apart(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> np.ndarray:
    apart = pc.greater(pc.abs(pc.subtract(ours, theirs)), NEARLY).fill_null(False)
    found: np.ndarray = (ours.is_valid().to_numpy() != theirs.is_valid().to_numpy()) | apart.to_numpy()
    return found


class KnownRows:
    """The rows of the Parquet files that were at the destination when this was made, by their identities.

    Only row groups whose publish times may be those of the rows in question are read.
    """

    def __init__(self, files: Files, shape: Shape) -> None:
        self._files, self._shape = files, shape
        names = files.names() if shape.identity else []
        parts = {name: name.split("/") for name in names if name.endswith(".parquet")}
        self._names = [name for name in parts if not any(part.startswith(("_", ".")) for part in parts[name])]
        self._footers: dict[str, pq.FileMetaData] = {}

    def rows(self, block: pa.RecordBatch) -> pa.Table:
        """Those with an identity of the block, flat.

        Raises:
            HistoryError: a file cannot be read, or has no such identities.
        """
        wanted, span = block.column(self._shape.identity), _span(block, "publish_time")
        found: list[pa.Table] = []
        for name in self._names:
            try:
                found += self._of_file(name, wanted, span)
            except (pa.ArrowException, KeyError, OSError) as error:
                raise HistoryError(
                    f"{name} at the destination cannot be read as rows with {self._shape.identity} "
                    f"({str(error).partition(chr(10))[0]}): move it away, or write to another folder"
                ) from error
        return pa.concat_tables(found, promote_options="permissive") if found else self._shape.schema.empty_table()

    def _of_file(self, name: str, wanted: pa.Array, span: tuple[int, int] | None) -> list[pa.Table]:
        if name not in self._footers:
            with self._files.open(name) as raw:
                self._footers[name] = pq.read_metadata(raw)
        groups = list(_row_groups(self._footers[name], span))
        if not groups:
            return []
        found = []
        with self._files.open(name) as raw:
            file = pq.ParquetFile(raw, metadata=self._footers[name])
            for group in groups:
                ids = file.read_row_group(group, columns=[self._shape.identity])[self._shape.identity]
                rows = pc.indices_nonzero(pc.is_in(ids, wanted))
                if len(rows):
                    found.append(flatten(file.read_row_group(group).take(rows)))
        return found


def _row_groups(footer: pq.FileMetaData, span: tuple[int, int] | None) -> Iterator[int]:
    """The row groups that may have publish times of the span."""
    for group in range(footer.num_row_groups):
        columns = (footer.row_group(group).column(i) for i in range(footer.num_columns))
        column = next((column for column in columns if column.path_in_schema == "publish_time"), None)
        statistics = column.statistics if column is not None and span is not None else None
        if statistics is not None and statistics.has_min_max and not statistics.null_count:
            low, high = (pa.scalar(at, TIMESTAMP).value for at in (statistics.min, statistics.max))
            if span is not None and (low > span[1] or high < span[0]):
                continue
        yield group


def _span(block: pa.RecordBatch, name: str) -> tuple[int, int] | None:
    """Least and greatest time; None if it is not known of every row."""
    if name not in block.schema.names or block.column(name).null_count:
        return None
    ends = pc.min_max(block.column(name).cast(pa.int64()))
    return int(ends["min"].as_py()), int(ends["max"].as_py())
