"""The archive of a job on a cluster: rows wait until a checkpoint holds them, then they are final.

What reached the archive's step is an *entry*, numbered. Entries that a completed checkpoint holds are committed: a
failure takes nothing of them back. The archive's last commit says up to which entry it goes and which position comes
next in each shard of each stage, so that a restart commits what is missing, once.

A row is committed only with or after every row folded before it in any of its stages (contract C6). Rows that passed
one shard together can arrive here out of order, since they went on through different shards of the next stage; those
whose predecessors are still under way wait for them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.blocks import concat_blocks
from shared_features.errors import HistoryError
from streaming import results
from streaming.archive import Archive, counts_of
from streaming.pieces import Piece, together
from streaming.results import with_same_columns
from streaming.topics import OutgoingMessage

log = logging.getLogger(__name__)

GROUP_ROWS = 20_000

Places = dict[str, list[int]]
"""By stage the next position of each shard."""
Publish = Callable[[pa.RecordBatch, Sequence[OutgoingMessage]], None]


class Ledger:
    """Entries on their way into the archive.

    Args:
        archive: is appended to by this only.
        entries: with their numbers, what a checkpoint held that is not known to be committed.
        newest: the number of the last entry that the checkpoint knows of.
        publish: rows and dead letters, once they are committed; None if they have gone out before.

    Attributes:
        newest: number of the last entry taken.
        settled: up to which entry nothing is left to be done.

    Raises:
        HistoryError: the archive has more than the checkpoint knows of, or lacks something that it says is there.
    """

    def __init__(
        self,
        archive: Archive,
        last: Mapping[str, Any],
        entries: Sequence[tuple[int, Piece]],
        newest: int,
        publish: Publish | None,
    ) -> None:
        self._archive, self._publish = archive, publish
        self._places: Places = {stage: list(places) for stage, places in last.get("places", {}).items()}
        self._through = int(last.get("through", 0))
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._left: pa.RecordBatch | None = None
        self._closed = False
        if self._through > newest:
            raise HistoryError(
                f"archive {archive.folder} goes up to entry {self._through}, the checkpoint that the job starts from "
                f"up to {newest}: start it from its newest checkpoint, or with a new archive"
            )
        waiting = sorted(entries, key=lambda entry: entry[0])
        if newest > self._through and [number for number, _ in waiting][-1:] != [newest]:
            raise HistoryError(f"archive {archive.folder} lacks entries up to {newest}: restore it from a copy")
        old = [self._missing(piece.block) for number, piece in waiting if number <= self._through and piece.rows]
        old = [block for block in old if block.num_rows]
        self._left = concat_blocks(with_same_columns(old)) if old else None
        self._entries = [(number, piece) for number, piece in waiting if number > self._through]
        self.newest = newest
        self.settled = 0 if self._left is not None else self._through
        self.commit(newest)

    def take(self, piece: Piece) -> int:
        """The number of this piece as an entry. Raises what made a commit fail."""
        with self._lock:
            if self._failure is not None:
                raise RuntimeError("the archive takes no more") from self._failure
            self.newest += 1
            self._entries.append((self.newest, piece))
            return self.newest

    def commit(self, number: int) -> None:
        """Make final what came up to entry ``number``: a completed checkpoint holds it."""
        with self._lock:
            if self._closed or self._failure is not None:
                return
            try:
                self._commit(number)
            except BaseException as error:
                log.error("a commit failed", exc_info=error)
                self._failure = error

    def close(self) -> None:
        """Commit nothing any more: what is left is in the runner's state."""
        with self._lock:
            self._closed = True

    def _commit(self, number: int) -> None:
        while self._entries and self._entries[0][0] <= number:
            group: list[Piece] = []
            rows = 0
            while self._entries and self._entries[0][0] <= number and rows < GROUP_ROWS:
                through, piece = self._entries.pop(0)
                group.append(piece)
                rows += piece.rows
            whole = together(group)
            blocks = [block for block in (self._left, whole.block) if block is not None]
            block = concat_blocks(with_same_columns(blocks)) if blocks else None
            final, self._left = (None, None) if block is None else split_closed(block, self._places)
            self._append(final, whole, through)
            self._through = through
            if self._left is None:
                self.settled = through

    def _append(self, block: pa.RecordBatch | None, piece: Piece, through: int) -> None:
        rows = block if block is not None else pa.RecordBatch.from_pylist([], pa.schema([]))
        counts = {
            "received": piece.received,
            "duplicates": piece.duplicates,
            "dead_letters": piece.dead_letters,
            "outcomes": results.count_outcomes(rows) if rows.num_rows else {},
            "committed_at_us": time.time_ns() // 1000,
            "through": through,
            "places": self._places,
        }
        if self._publish is not None and piece.letters:  # rows are found again in the archive, letters are not
            self._publish(rows.slice(0, 0), piece.letters)
        sequence = self._archive.append(rows, counts)
        if self._publish is not None and rows.num_rows:
            self._publish(rows, [])
        self._archive.mark_published(sequence)

    def _missing(self, block: pa.RecordBatch | None) -> pa.RecordBatch:
        """The rows of an entry that was committed in part that are not in the archive."""
        assert block is not None
        missing = np.zeros(block.num_rows, bool)
        for stage, shards, positions, keyed in _positions(block):
            missing[keyed] |= positions >= _places(self._places, stage, shards)
        return block.filter(pa.array(missing))


def last_counts(folder: Path, sequence: int) -> Mapping[str, Any]:
    """The counts of the archive's last commit, whose number is ``sequence``; nothing if there is none.

    Raises:
        HistoryError: the archive was written by a job that ran in one process.
    """
    counts = None if sequence < 0 else counts_of(folder, sequence)
    if counts is None:
        return {}
    if "through" not in counts:
        raise HistoryError(
            f"archive {folder} was written by a job in one process: give a job on Flink a new one with --archive"
        )
    return counts


def split_closed(block: pa.RecordBatch, places: Places) -> tuple[pa.RecordBatch | None, pa.RecordBatch | None]:
    """The rows that have all their predecessors in ``places`` or among themselves, and the others; None for none.

    Args:
        block: rows with ``stage.<name>.shard`` and ``.position``.
        places: next positions; moved on by the rows of the first part.
    """
    keep = np.ones(block.num_rows, bool)
    stages = _positions(block)
    before = -1
    while (kept := int(keep.sum())) != before:
        before = kept
        for stage, shards, positions, keyed in stages:
            mine = keep[keyed]
            follows = _following(shards[mine], positions[mine], places.get(stage, []))
            keep[keyed[mine]] = follows
    for stage, shards, _, keyed in stages:
        taken = np.bincount(shards[keep[keyed]])
        known = places.setdefault(stage, [])
        known += [0] * (len(taken) - len(known))
        for shard, count in enumerate(taken.tolist()):
            known[shard] += count
    if keep.all():
        return block, None
    first = block.filter(pa.array(keep)) if keep.any() else None
    return first, block.filter(pa.array(~keep))


def _positions(block: pa.RecordBatch) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """By stage: of the rows with its key the shards and positions, and which rows these are."""
    found = []
    for name in block.schema.names:
        if name.startswith("stage.") and name.endswith(".position"):
            stage = name.removeprefix("stage.").removesuffix(".position")
            column = block.column(name)
            keyed = np.flatnonzero(np.asarray(column.is_valid()))
            shards = block.column(f"stage.{stage}.shard").drop_null().to_numpy().astype(np.int64)
            found.append((stage, shards, column.drop_null().to_numpy(), keyed))
    return found


def _following(shards: np.ndarray, positions: np.ndarray, places: list[int]) -> np.ndarray:
    """Which rows have all earlier positions of their shard among these rows or before ``places``; bool."""
    order = np.lexsort((positions, shards))
    shards, positions = shards[order], positions[order]
    starts = np.r_[True, shards[1:] != shards[:-1]] if len(shards) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(shards)), 0))
    wanted = _places({"": places}, "", shards) + np.arange(len(shards)) - first
    gaps = np.cumsum(positions != wanted)
    follows = np.empty(len(shards), bool)
    follows[order] = gaps - np.where(first > 0, gaps[first - 1], 0) == 0
    return follows


def _places(places: Places, stage: str, shards: np.ndarray) -> np.ndarray:
    """The next position of each row's shard."""
    known = np.array(places.get(stage, []), np.int64)
    size = int(shards.max()) + 1 if len(shards) else 0
    found: np.ndarray = np.pad(known, (0, max(0, size - len(known))))[shards]
    return found
