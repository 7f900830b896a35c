"""Closed segments of the archive as Parquet: rows for any reader, commits as they were for ours.

Of the segment that began with commit 412 there are::

    parquet/publish_date=2013-01-31/0000000000000412-0.parquet    rows, sorted by event time
    commits/0000000000000412.parquet                              one row a commit: how many rows, which columns, counts

Rows have the columns of their blocks, and two more: ``archive_commit``, the commit's
sequence number, and ``archive_row``, the row's place in it. A file has rows of one list of columns only (the number
after the dash), so that a column that comes or goes never changes a value. The file in ``commits`` is renamed into
place last: with it the segment counts as compacted, and what its log still holds is not read any more.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.blocks import append_columns, empty_block
from shared_features.errors import HistoryError
from streaming.archive_log import Commit

ROWS, COMMITS = "parquet", "commits"

COMMIT_COLUMN, ROW_COLUMN = "archive_commit", "archive_row"

_METADATA: Final = b"sameriver.segment"
_FORMAT: Final = 1
_DAY_US: Final = 86_400_000_000
_ROW_GROUP_ROWS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Segment:
    """What the file in ``commits`` says of a compacted segment.

    Attributes:
        first, last: sequence numbers of its commits.
        files: path below ``parquet``, number of the list of columns, CRC-32 of the file.
        schemas: the lists of columns.
    """

    first: int
    last: int
    files: Sequence[tuple[str, int, int]]
    schemas: Sequence[pa.Schema]


def index_path(folder: Path, first: int) -> Path:
    """Where the commits of the segment that began with commit ``first`` stand, if it is compacted."""
    return folder / COMMITS / f"{first:016d}.parquet"


def compacted_segments(folder: Path) -> list[int]:
    """First commits of the compacted segments, ascending."""
    return sorted(int(path.stem) for path in (folder / COMMITS).glob("*.parquet"))


def segments_with_rows(folder: Path) -> set[int]:
    """First commits of the segments that have rows as Parquet, compacted or about to be."""
    return {int(path.name.partition("-")[0]) for path in (folder / ROWS).glob("publish_date=*/*-*.parquet")}


# -- Writing ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Columns:
    """The rows of commits that have the same columns."""

    schema: pa.Schema
    blocks: list[pa.RecordBatch]
    commits: list[np.ndarray]
    rows: list[np.ndarray]


def write_segment(folder: Path, first: int, commits: Iterator[Commit]) -> list[str]:
    """Write a segment's commits below ``folder``, in the layout of an archive.

    Args:
        folder: an empty folder; nothing in it is synced.
        first: sequence number of the first commit.
        commits: at least one.

    Returns:
        The files, as paths below ``folder``; the last one makes the segment count as compacted.
    """
    groups: list[_Columns] = []
    table: dict[str, list[Any]] = {"commit": [], "rows": [], "columns": [], "counts": []}
    for commit in commits:
        number, rows = _columns_of(groups, commit.block.schema), commit.block.num_rows
        if rows:
            groups[number].blocks.append(commit.block)
            groups[number].commits.append(np.full(rows, commit.sequence, np.int64))
            groups[number].rows.append(np.arange(rows, dtype=np.int32))
        for name, value in zip(
            table, (commit.sequence, rows, number, json.dumps(commit.counts, sort_keys=True)), strict=True
        ):
            table[name].append(value)
    files = []
    for number, group in enumerate(groups):
        if group.blocks:
            paths = _write_rows(folder / ROWS, f"{first:016d}-{number}.parquet", group)
            files += [(path, number, zlib.crc32((folder / ROWS / path).read_bytes())) for path in paths]
    schemas = [base64.b64encode(bytes(group.schema.serialize())).decode("ascii") for group in groups]
    known = {"format": _FORMAT, "first": first, "last": table["commit"][-1], "files": files, "schemas": schemas}
    index = index_path(folder, first)
    index.parent.mkdir()
    types = [pa.int64(), pa.int32(), pa.int32(), pa.string()]
    listed = pa.table({name: pa.array(values, kind) for (name, values), kind in zip(table.items(), types, strict=True)})
    text = json.dumps(known).encode("ascii")
    _write_table(listed.replace_schema_metadata({_METADATA: b"%08x" % zlib.crc32(text) + text}), index)
    return [f"{ROWS}/{path}" for path, _, _ in files] + [f"{COMMITS}/{index.name}"]


def _columns_of(groups: list[_Columns], schema: pa.Schema) -> int:
    for number, group in enumerate(groups):
        if group.schema.equals(schema, check_metadata=True):
            return number
    groups.append(_Columns(schema, [], [], []))
    return len(groups) - 1


def _write_rows(folder: Path, name: str, group: _Columns) -> Iterator[str]:
    """Write one file for each publish date; paths below ``folder``."""
    places = {COMMIT_COLUMN: pa.array(np.concatenate(group.commits)), ROW_COLUMN: pa.array(np.concatenate(group.rows))}
    block = append_columns(_plain_lists(pa.concat_batches(group.blocks)), places)
    group.blocks.clear()
    happened = _microseconds(block, "event_time", np.zeros(block.num_rows, np.int64))
    days = _microseconds(block, "publish_time", happened) // _DAY_US
    order = np.lexsort((happened, days))
    block, days = block.take(pa.array(order)), days[order]
    bounds = np.flatnonzero(np.diff(days, prepend=days[0] - 1, append=days[-1] + 1))
    for start, end in pairwise(bounds.tolist()):
        path = f"publish_date={np.datetime64(int(days[start]), 'D')}/{name}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        _write_table(pa.Table.from_batches([block.slice(start, end - start)]), folder / path)
        yield path


def _plain_lists(block: pa.RecordBatch) -> pa.RecordBatch:
    """Lists of a fixed size as lists of any size: of the others, Arrow does not read null ones back from Parquet."""
    columns = [
        column.cast(pa.list_(column.type.value_field)) if pa.types.is_fixed_size_list(column.type) else column
        for column in block.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=block.schema.names)


def _microseconds(block: pa.RecordBatch, name: str, missing: np.ndarray) -> np.ndarray:
    """A time of each row, and ``missing`` where it is null or not a column at all."""
    if name not in block.schema.names:
        return missing
    column = block.column(name).cast(pa.int64())
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return np.where(valid, column.fill_null(0).to_numpy(), missing)


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(
        table, path, compression="zstd", row_group_size=_ROW_GROUP_ROWS, write_page_checksum=True, store_schema=True
    )


# -- Reading ------------------------------------------------------------------------------------------------
def read_index(path: Path) -> Segment:
    """What a file in ``commits`` says of its segment; its rows are not read.

    Raises:
        HistoryError: it is damaged, or of another format.
    """
    with _telling(path):
        checksum, text = (said := pq.read_metadata(path).metadata[_METADATA])[:8], said[8:]
        if zlib.crc32(text) != int(checksum, 16):
            raise ValueError("another checksum")
        known = json.loads(text)
        if known["format"] != _FORMAT:
            raise HistoryError(
                f"archive file {path} has format {known['format']}, wanted {_FORMAT}: read it with the version that "
                "wrote it"
            )
        schemas = [pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text))) for text in known["schemas"]]
        return Segment(known["first"], known["last"], [tuple(file) for file in known["files"]], schemas)


def read_counts(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Sequence number and counts of each commit that a file in ``commits`` names.

    Raises:
        HistoryError: it is damaged.
    """
    with _telling(path):
        table = _read_index_table(path)
        found = [
            (sequence, json.loads(text))
            for sequence, text in zip(table["commit"].to_pylist(), table["counts"].to_pylist(), strict=True)
        ]
    yield from found


def read_segment(folder: Path, first: int) -> Iterator[Commit]:
    """The commits of a compacted segment, oldest first, as they were; the whole segment is in memory.

    Raises:
        HistoryError: a file is damaged or not there, or holds other rows than its commits had.
    """
    index = index_path(folder, first)
    segment = read_index(index)
    with _telling(index):
        commits = _read_index_table(index)
        sequences, rows = commits["commit"].to_numpy(), commits["rows"].to_numpy()
        columns = commits["columns"].to_numpy()
        counts = commits["counts"].to_pylist()
    blocks = []
    for number, schema in enumerate(segment.schemas):
        mine = columns == number
        files = [(folder / ROWS / path, checksum) for path, of, checksum in segment.files if of == number]
        blocks.append(_read_rows(files, schema, sequences[mine], rows[mine]))
    used = [0] * len(blocks)
    for i, sequence in enumerate(sequences.tolist()):
        number, size = int(columns[i]), int(rows[i])
        block = blocks[number].slice(used[number], size)
        used[number] += size
        yield Commit(sequence, json.loads(counts[i]), block, published=True)


def _read_rows(
    files: Sequence[tuple[Path, int]], schema: pa.Schema, sequences: np.ndarray, rows: np.ndarray
) -> pa.RecordBatch:
    """The rows of all commits with these columns, in the order in which they were committed."""
    blocks = []
    for path, checksum in files:
        with _telling(path):
            data = path.read_bytes()
            if zlib.crc32(data) != checksum:
                raise ValueError("another checksum")
            blocks += pq.read_table(pa.BufferReader(data)).to_batches()
    if not blocks:
        if rows.sum():
            raise HistoryError(f"the archive has no file for {rows.sum()} rows of commits {sequences[0]} and following")
        return empty_block(schema)
    with _telling(files[0][0]):
        block = pa.concat_batches(blocks)
        commit, row = block.column(COMMIT_COLUMN).to_numpy(), block.column(ROW_COLUMN).to_numpy()
        order = np.lexsort((row, commit))
        arrays = [block.column(field.name).take(pa.array(order)).cast(field.type) for field in schema]
        wanted = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        if not (np.array_equal(commit[order], np.repeat(sequences, rows)) and np.array_equal(row[order], wanted)):
            raise ValueError("other rows than its commits had")
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _read_index_table(path: Path) -> pa.Table:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read()


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong with a file which one it was, and what to do."""
    try:
        yield
    except HistoryError:
        raise
    except FileNotFoundError as error:
        raise HistoryError(f"archive file {path} is not there: restore it from a copy") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, EOFError) as error:
        first_line = (str(error) or type(error).__name__).partition("\n")[0]
        raise HistoryError(
            f"archive file {path} is damaged ({first_line}): wanted it as compaction wrote it; restore it from a copy"
        ) from error
