"""The commits of an archive as they come, for who reads beside the job that writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from shared_features.errors import HistoryError
from streaming import archive as archives
from streaming import archive_log, archive_parquet
from streaming.archive_log import Commit


def follow_commits(
    folder: Path, after: int = -1, marked: Callable[[int], None] | None = None
) -> Iterator[Commit | None]:
    """Every commit of an archive, oldest first, without end: None whenever there is no further one yet.

    The newest segment is read on where it was left; a commit that is being written is taken once it is whole. Each
    commit has ``published`` as False: who follows does not wait for marks.

    Args:
        after: commits up to this one are left out; of those before its segment nothing is read.
        marked: is told, as they are read, up to which commit all have been published.

    Raises:
        HistoryError: there is no archive, it is damaged, or commits are missing.
    """
    archives.identity(folder)
    begins = (int(path.stem) for path in archives.segments(folder))
    expected = max((first for first in begins if first <= after + 1), default=0)
    while True:
        path = _segment_from(folder, expected)
        if path is None:
            yield None
            continue
        for commit in _segment(folder, path, expected, marked):
            if commit is not None:
                if commit.sequence != expected:
                    raise HistoryError(
                        f"archive {folder} has commit {commit.sequence} where commit {expected} was wanted: a segment "
                        "is missing; restore it from a copy"
                    )
                expected += 1
            if commit is None or commit.sequence > after:
                yield commit


def _segment_from(folder: Path, expected: int) -> Path | None:
    """The segment that begins with the expected commit; None if it is not there yet."""
    found = {int(path.stem): path for path in archives.segments(folder)}
    if expected not in found and any(first > expected for first in found):
        raise HistoryError(f"archive {folder} lacks the segment of commit {expected}: restore it from a copy")
    return found.get(expected)


def _segment(folder: Path, path: Path, first: int, marked: Callable[[int], None] | None) -> Iterator[Commit | None]:
    if path.suffix == ".parquet":
        if marked is not None:
            marked(archive_parquet.read_index(path).last)  # only what has been published becomes Parquet
        yield from archive_parquet.read_segment(folder, first)
        return
    try:
        file = path.open("rb")
    except FileNotFoundError:  # it became Parquet meanwhile: it is looked for again
        return
    with file:
        yield from _log(folder, archive_log.SegmentReader(file, published=-1, marked=marked), first)


def _log(folder: Path, reader: archive_log.SegmentReader, first: int) -> Iterator[Commit | None]:
    """A segment of the log until the next one begins."""
    while True:
        is_last = all(int(path.stem) <= first for path in archives.segments(folder))
        came = False
        for commit in reader.further(is_last=is_last):
            came = True
            yield commit
        if not is_last:
            return
        if not came:
            yield None
