"""Compaction: closed segments of the log become Parquet, in a process of its own, beside a job or without one.

At any instant a segment is read from its log, or, once its file in ``commits`` has its name, from Parquet; never
from both, never from neither. Whatever a kill leaves of a segment that was not finished is removed, and it is
written again under the same names. The log goes only after the new files, read by the code that readers use, gave
every commit as it was.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared_features.errors import HistoryError
from streaming import archive_log, archive_parquet
from streaming.archive_parquet import ROWS, index_path

log = logging.getLogger(__name__)

_STAGING = "compacting"
_NICENESS = 10
_MOST_IDLE_SEGMENTS = 256
"""Up to so many segments of the log, some 16 GB, compaction takes only what the cores have left over."""
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from streaming.compaction import main; "
    "sys.exit(main(sys.argv[2], int(sys.argv[3])))"
)


@dataclass(slots=True)
class Compacted:
    """What one run of compaction did.

    Attributes:
        segments, rows: how many were rewritten.
        log_bytes, parquet_bytes: their sizes before and after.
        left: segments of the log that remain: the newest one, and what was not yet published.
    """

    segments: int = 0
    rows: int = 0
    log_bytes: int = 0
    parquet_bytes: int = 0
    left: int = 0


def compact(folder: Path, published: int, *, newest_too: bool = False) -> Compacted:
    """Rewrite every closed segment whose commits have all been published, oldest first, one at a time.

    Args:
        folder: of the archive.
        published: the last commit that has been published.
        newest_too: the newest segment counts as closed: no job writes it.

    Raises:
        HistoryError: a segment is damaged; it stays as it is.
    """
    done = Compacted()
    with _alone(folder, wait=newest_too) as alone:
        firsts = [int(path.stem) for path in sorted(folder.glob("*.log"))]
        if not alone:
            done.left = len(firsts)
            return done
        shutil.rmtree(folder / _STAGING, ignore_errors=True)
        for number, first in enumerate(firsts):
            is_last = number == len(firsts) - 1
            if index_path(folder, first).exists():  # a kill came before the log was removed
                archive_log.segment_path(folder, first).unlink()
                continue
            last = first - 1 if is_last else firsts[number + 1] - 1
            if is_last and newest_too:
                last = _last_commit(folder, first)
            if not first <= last <= published:
                done.left += 1
                continue
            _compact_segment(folder, first, done, is_last=is_last)
    return done


def _last_commit(folder: Path, first: int) -> int:
    """The last commit of the newest segment; less than ``first`` if it has none."""
    last = first - 1
    with archive_log.segment_path(folder, first).open("rb") as file:
        for commit in archive_log.read_segment(file, is_last=True, published=-1):
            last = commit.sequence
    return last


def _compact_segment(folder: Path, first: int, done: Compacted, *, is_last: bool) -> None:
    path, staging = archive_log.segment_path(folder, first), folder / _STAGING
    staging.mkdir()
    with path.open("rb") as file:
        files = archive_parquet.write_segment(
            staging, first, archive_log.read_segment(file, is_last=is_last, published=-1)
        )
    rows = _check(path, staging, first, is_last=is_last)
    for unfinished in (folder / ROWS).glob(f"*/{first:016d}-*.parquet"):
        unfinished.unlink()
    done.parquet_bytes += sum((staging / name).stat().st_size for name in files)
    for name in files:  # the file in `commits` comes last
        _move(staging / name, folder / name, folder)
    done.segments, done.rows, done.log_bytes = done.segments + 1, done.rows + rows, done.log_bytes + path.stat().st_size
    path.unlink()
    shutil.rmtree(staging)


def _check(path: Path, staging: Path, first: int, *, is_last: bool) -> int:
    """Read what was written as every reader will, and compare it with the log; the number of rows."""
    rows = 0
    with path.open("rb") as file:
        there = archive_log.read_segment(file, is_last=is_last, published=-1)
        for was, is_now in zip(there, archive_parquet.read_segment(staging, first), strict=True):
            same = was.sequence == is_now.sequence and was.counts == is_now.counts
            if not (same and was.block.equals(is_now.block, check_metadata=True)):
                raise HistoryError(
                    f"commit {was.sequence} of archive segment {path} does not come back from Parquet as it was: "
                    "the segment stays as it is; report this"
                )
            rows += was.block.num_rows
    return rows


def _move(source: Path, target: Path, folder: Path) -> None:
    """Give a finished file its name; it and the name are durable on return."""
    with source.open("rb") as file:
        os.fsync(file.fileno())
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True)
        archive_log.sync_folder(folder)
        archive_log.sync_folder(target.parent.parent)
    os.replace(source, target)
    archive_log.sync_folder(target.parent)


@contextmanager
def _alone(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether no other process compacts this archive, for as long as the block runs; or wait until none does."""
    with (folder / "compacting.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True


class Compactor:
    """Compaction beside a running job: a process of its own, so that it takes neither the job's time nor its memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, published: int) -> bool:
        """Begin to compact what is closed; False while the last run is still on its way."""
        if self._process is not None and self._process.poll() is None:
            return False
        root = str(Path(__file__).resolve().parent.parent)
        command = [sys.executable, "-I", "-c", _PROGRAM, root, str(self._folder.resolve()), str(published)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return True

    def wait(self) -> None:
        """Until the last run has ended."""
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """End it; the next run goes on where it was."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def main(folder: str, published: int) -> int:
    """One run, with low priority: 0, or 1 with one sentence on standard error."""
    if len(list(Path(folder).glob("*.log"))) <= _MOST_IDLE_SEGMENTS and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(_NICENESS)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        compact(Path(folder), published)
    except HistoryError as error:
        log.error("compaction: %s", error)
        return 1
    return 0
