"""Some rows of an archive, without reading all of it: by event type and identity, by key and event time.

Segments that are Parquet are read row group by row group: those whose event times lie outside the range are passed
over by their statistics, of the others first the columns that decide, and the rest only where a row was found. The
segments of the log that a job has not compacted yet are read whole, one commit at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared_features.errors import HistoryError
from streaming import archive as archives
from streaming import archive_log
from streaming.archive_parquet import COMMIT_COLUMN, ROW_COLUMN, ROWS, index_path, read_index

Match = Callable[[pa.RecordBatch], np.ndarray]
"""From some rows with the deciding columns: which of them are wanted; bool, shape [rows]."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows are looked for.

    Attributes:
        deciding: columns that ``match`` looks at; rows without one of them are passed over.
        perhaps: further ones, which it is given where they are there.
        match: whether a row is wanted.
        columns: to be returned beside ``deciding``; None returns all. One that is not there is left out.
        since_us, until_us: only rows with event time in [since, until], microseconds; None leaves a side open.
        day: only rows of this publish date (UTC), or None.
    """

    deciding: Sequence[str]
    match: Match
    columns: Sequence[str] | None = None
    perhaps: Sequence[str] = ()
    since_us: int | None = None
    until_us: int | None = None
    day: date | None = None

    def misses(self, low_us: int, high_us: int) -> bool:
        """Whether no event time in [low, high] is looked for."""
        return (self.since_us is not None and high_us < self.since_us) or (
            self.until_us is not None and low_us > self.until_us
        )


def find_rows(
    folder: Path,
    wanted: Wanted,
    *,
    newest_first: bool = False,
    begun_by: int | None = None,
    begun_after: int = -1,
    progress: Callable[[float, str], None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The wanted rows with `COMMIT_COLUMN` and `ROW_COLUMN`, some at a time; commits of a segment come together.

    Args:
        folder: of the archive; a job may go on writing.
        wanted: see `Wanted`.
        newest_first: segments from the newest to the oldest, for who stops at the first row.
        begun_by, begun_after: only segments whose first commit is at most, and more than, this one.
        progress: called with the share of segments read.

    Raises:
        HistoryError: there is no archive, or it is damaged.
    """
    archives.identity(folder)
    found = archives.segments(folder)
    for number, path in enumerate(reversed(found) if newest_first else found):
        if progress is not None:
            progress(number / len(found), f"segment {number + 1} of {len(found)}")
        first = int(path.stem)
        if first <= begun_after or (begun_by is not None and first > begun_by):
            continue
        log = None if path.suffix == ".parquet" else _open(folder, first)
        if log is None:
            yield from _of_parquet(folder, first, wanted)
            continue
        with log:
            for commit in archive_log.read_segment(log, is_last=path == found[-1], published=-1):
                yield from _of_commit(commit, wanted)


def _open(folder: Path, first: int) -> IO[bytes] | None:
    """The log of a segment, None if it became Parquet meanwhile."""
    try:
        return archive_log.segment_path(folder, first).open("rb")
    except FileNotFoundError:
        return None


def _of_commit(commit: archive_log.Commit, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    block = commit.block
    if not block.num_rows or any(name not in block.schema.names for name in wanted.deciding):
        return
    places = [pa.array(np.full(block.num_rows, commit.sequence)), pa.array(np.arange(block.num_rows, dtype=np.int32))]
    block = pa.RecordBatch.from_arrays(
        [*block.columns, *places], names=[*block.schema.names, COMMIT_COLUMN, ROW_COLUMN]
    )
    times = block.column("event_time").cast(pa.int64()).to_numpy()
    if wanted.misses(int(times.min()), int(times.max())):
        return
    keep = _in_range(times, wanted)
    if wanted.day is not None:
        keep &= _published_on(block, wanted.day)
    keep &= wanted.match(block.select(_looked_at(block.schema.names, wanted)))
    if keep.any():
        yield block.filter(pa.array(keep)).select(_returned(block.schema.names, wanted))


def _of_parquet(folder: Path, first: int, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    for name, _, _ in read_index(index_path(folder, first)).files:
        if wanted.day is not None and not name.startswith(f"publish_date={wanted.day.isoformat()}/"):
            continue
        path = folder / ROWS / name
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                yield from _of_file(file, wanted)
        except (pa.ArrowException, OSError) as error:
            why = (str(error) or type(error).__name__).partition("\n")[0]
            raise HistoryError(f"archive file {path} cannot be read ({why}): restore it from a copy") from error


def _of_file(file: pq.ParquetFile, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    names = file.schema_arrow.names
    if any(name not in names for name in wanted.deciding):
        return
    time_column = [file.metadata.schema.column(i).path for i in range(len(file.metadata.schema))].index("event_time")
    returned, looked_at = _returned(names, wanted), _looked_at(names, wanted)
    rest = [name for name in returned if name not in looked_at and name != "event_time"]
    for group in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(group).column(time_column).statistics
        if statistics is not None and statistics.has_min_max:
            low_us, high_us = (int(pa.scalar(one, pa.timestamp("us", "UTC")).value) for one in _ends(statistics))
            if wanted.misses(low_us, high_us):
                continue
        deciding = _read(file, group, list(dict.fromkeys([*looked_at, "event_time"])))
        keep = wanted.match(deciding.select(looked_at))
        keep &= _in_range(deciding.column("event_time").cast(pa.int64()).to_numpy(), wanted)
        if not keep.any():
            continue
        mask = pa.array(keep)
        block = deciding.filter(mask)
        if rest:
            more = _read(file, group, rest).filter(mask)
            block = pa.RecordBatch.from_arrays(
                [*block.columns, *more.columns], names=[*block.schema.names, *more.schema.names]
            )
        yield block.select(returned)


def _ends(statistics: pq.Statistics) -> tuple[object, object]:
    return statistics.min, statistics.max


def _read(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.RecordBatch:
    table = file.read_row_group(group, columns=columns).combine_chunks()
    return table.to_batches()[0].select(columns)


def _looked_at(names: Sequence[str], wanted: Wanted) -> list[str]:
    return [*wanted.deciding, *(name for name in wanted.perhaps if name in names)]


def _returned(names: Sequence[str], wanted: Wanted) -> list[str]:
    if wanted.columns is None:
        return list(names)
    asked = {*wanted.columns, *wanted.deciding, "event_time", COMMIT_COLUMN, ROW_COLUMN}
    return [name for name in names if name in asked]


def _in_range(times: np.ndarray, wanted: Wanted) -> np.ndarray:
    keep = np.ones(len(times), np.bool_)
    if wanted.since_us is not None:
        keep &= times >= wanted.since_us
    if wanted.until_us is not None:
        keep &= times <= wanted.until_us
    return keep


def _published_on(block: pa.RecordBatch, day: date) -> np.ndarray:
    """Rows of a publish date; by event time where a row has no publish time, as in the names of the folders."""
    instants = pc.coalesce(block.column("publish_time"), block.column("event_time")).cast(pa.date32())
    found: np.ndarray = np.asarray(pc.equal(instants, pa.scalar(day, pa.date32())))
    return found


def together(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Rows of several segments as one block, by commit and row; a column that some lack is null there."""
    if not batches:
        return None
    table = pa.concat_tables([pa.Table.from_batches([one]) for one in batches], promote_options="default")
    table = table.sort_by([(COMMIT_COLUMN, "ascending"), (ROW_COLUMN, "ascending")])
    return table.combine_chunks().to_batches()[0]
