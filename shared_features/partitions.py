"""The arrays that the compiled pass works on, one set per partition of a stage's slots, and the threads that run it.

Slot g of a stage is slot g // PARTITIONS of partition g % PARTITIONS. How many there are changes no result: what a
key's events give does not depend on any other key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import NamedTuple, TypeVar

import numpy as np

from shared_features import windows
from shared_features.answers import RECORD_CELLS, divide
from shared_features.arena import ADVANCED, BASE, CAPACITY, END, FIRST, HEAD_CELLS, SUM_CELLS, TRACK_DISTINCT, tidy
from shared_features.distinct import FIRST_CELLS, with_room
from shared_features.extremes import tree_cells
from shared_features.layout import CELLS, LACKING, RECORDED
from shared_features.machine_code import kept
from shared_features.plan import Stage

Result = TypeVar("Result")

PARTITIONS = 4
_THREADED_ROWS = 8192
"""Below this a second thread costs more than it saves."""
_TILE_ROWS = 64
_FIRST_ROW = np.zeros(1, np.int64)
_FIRST_ROOM = 256
_RECORDS = 8


class Rows(NamedTuple):
    """A block as the compiled pass takes it, see `windows.fold_and_ask`."""

    slots: np.ndarray
    times: np.ndarray
    identities: np.ndarray
    folded: np.ndarray
    asked: np.ndarray
    values: np.ndarray


class Answers(NamedTuple):
    """What the pass writes: bool [rows], int64 and float64 [rows, outputs] in the same memory, bool [rows, outputs].

    `by_output` turns the last three around.
    """

    late: np.ndarray
    integers: np.ndarray
    floats: np.ndarray
    valid: np.ndarray


class Partition:
    """State of a part of a stage's slots."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        tracks, outlines = len(stage.tracks), len(stage.layout.windows)
        self.newest = np.empty(0, np.int64)
        self.heads = np.empty((0, tracks, HEAD_CELLS), np.int64)
        self.sums = np.empty((0, outlines, SUM_CELLS), np.int64)
        self.arena = np.empty((_FIRST_ROOM, 3), np.int64)
        self.used = np.zeros(4, np.int64)
        has_extremes = any(track.has_extremes for track in stage.tracks)
        self.tree = np.empty((2, tree_cells(_FIRST_ROOM) if has_extremes else 0), np.int64)
        self.counts = np.zeros((FIRST_CELLS, 3), np.int64)
        self._records = np.empty((_RECORDS * len(stage.layout.outputs), RECORD_CELLS), np.int64)

    def grow(self, slots: int) -> None:
        """Make room for ``slots`` slots; new ones are empty."""
        more = slots - len(self.newest)
        self.newest = np.concatenate([self.newest, np.full(more, windows.NEVER_US, np.int64)])
        heads = np.zeros((more, *self.heads.shape[1:]), np.int64)
        heads[:, :, ADVANCED] = windows.NEVER_US
        self.heads = np.concatenate([self.heads, heads])
        self.sums = np.concatenate([self.sums, np.zeros((more, *self.sums.shape[1:]), np.int64)])

    def run(self, which: np.ndarray, rows: Rows, answers: Answers) -> None:
        """Fold and answer the rows ``which``, in order."""
        stage = self._stage
        layout = stage.layout
        start = 0
        while True:
            start = windows.fold_and_ask(
                start, which, *rows, stage.lateness_us, stage.longest_us, layout.tracks, layout.windows, layout.outputs,
                self.newest, self.heads, self.sums, self.arena, self.used, self.tree, self.counts, self._records,
                *answers,
            )  # fmt: skip
            if self.used[RECORDED]:
                self._divide(answers)
            if start == len(which):
                return
            self._make_room()

    def _divide(self, answers: Answers) -> None:
        """Finish what the pass left as records."""
        tracks = self._stage.tracks
        outputs = [(output.operation, track.scale_inverse) for track in tracks for output in track.outputs]
        for record in self._records[: self.used[RECORDED]].tolist():
            answers.floats[record[1], record[0]] = divide(record, *outputs[record[0]])
        self.used[RECORDED] = 0

    def _make_room(self) -> None:
        """A tidied arena or table of counts, if that is what the pass lacked; records were emptied already."""
        layout, used = self._stage.layout, self.used
        if used[LACKING] == windows.LACKS_CELLS:
            self.counts, used[CELLS] = with_room(self.counts, used[CELLS], len(layout.windows))
        elif used[LACKING] == windows.LACKS_ARENA:
            self.arena, self.tree = tidy(layout.tracks, self.heads, self.sums, self.arena, self.tree, used)

    def warm_up(self) -> None:
        """Compile the pass by running it over no rows, and what makes room."""
        none, flags = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        tracks, outputs = len(self._stage.tracks), len(self._stage.layout.outputs)
        wide = np.zeros((0, outputs), np.int64)
        rows = Rows(none, none, none, np.zeros((tracks, 0), np.bool_), flags, np.zeros((tracks, 0), np.int64))
        self.run(none, rows, Answers(flags, wide, wide.view(np.float64), np.zeros((0, outputs), np.bool_)))
        _deal(none, none, np.zeros(PARTITIONS, np.int64))
        _turn(wide, np.zeros((0, outputs), np.bool_), wide.T.copy(), np.zeros((outputs, 0), np.bool_), 0, 0)
        counting = self._stage.layout.tracks[:, TRACK_DISTINCT].any()
        for lacking in (windows.LACKS_CELLS, windows.LACKS_ARENA)[not counting :]:
            self.used[LACKING] = lacking
            self._make_room()

    def lengths(self, track: int) -> np.ndarray:
        """Retained events of a track in each slot; int64, shape [slots]."""
        heads = self.heads[:, track]
        found: np.ndarray = heads[:, END] - heads[:, FIRST]
        return found

    def held(self, track: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Retained events of a track in the slots [begin, end): slot of each, and arena rows [events, 3]."""
        heads = self.heads[begin:end, track]
        lengths = heads[:, END] - heads[:, FIRST]
        starts = heads[:, BASE] + heads[:, FIRST]
        index = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        return np.repeat(np.arange(begin, end), lengths), self.arena[index]

    def restore(self, held: list[list[tuple[np.ndarray, np.ndarray]]]) -> None:
        """Take over, into empty slots, the pieces of each track that `held` gave, in the order of slots.

        The pieces are taken out of the lists, so that not all of the state is there twice.
        """
        self.arena = np.empty((sum(len(events) for track in held for _, events in track), 3), np.int64)
        at = 0
        for track, pieces in enumerate(held):
            lengths = np.zeros(len(self.newest), np.int64)
            offset = at
            while pieces:
                slots, events = pieces.pop(0)
                if len(slots):
                    lengths[slots[0] : slots[-1] + 1] += np.bincount(slots - slots[0])
                self.arena[at : at + len(events)] = events
                at += len(events)
            self.heads[:, track, BASE] = offset + np.cumsum(lengths) - lengths
            self.heads[:, track, CAPACITY] = self.heads[:, track, END] = lengths
        layout, cursor = self._stage.layout, np.zeros(3, np.int64)
        while not windows.sum_all(
            cursor, layout.tracks, layout.windows, self.heads, self.sums, self.arena, self.counts, self.used
        ):
            self.counts, self.used[CELLS] = with_room(self.counts, self.used[CELLS], len(layout.windows))
        self.arena, self.tree = tidy(layout.tracks, self.heads, self.sums, self.arena, self.tree, self.used)

    @property
    def retained(self) -> int:
        """Events held, over all slots and tracks."""
        return int((self.heads[:, :, END] - self.heads[:, :, FIRST]).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


def run_all(partitions: list[Partition], slots: np.ndarray, rows: Rows, answers: Answers) -> None:
    """Fold and answer a block whose rows have the stage's ``slots`` (-1: takes no part)."""
    if len(slots) == 1:
        if slots[0] >= 0:
            partitions[slots[0] % len(partitions)].run(_FIRST_ROW, rows, answers)
        return
    jobs = [
        partial(partition.run, which, rows, answers)
        for partition, which in zip(partitions, deal(slots), strict=True)
        if len(which)
    ]
    side_by_side(jobs, len(slots) >= _THREADED_ROWS)


def deal(slots: np.ndarray) -> list[np.ndarray]:
    """The rows of each partition, in order; a slot of -1 is in none."""
    dealt, ends = np.empty(len(slots), np.int64), np.zeros(PARTITIONS, np.int64)
    _deal(slots, dealt, ends)
    return [dealt[begin:end] for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)]


@kept("void(int64[::1], int64[::1], int64[::1])")
def _deal(slots, dealt, ends):  # type: ignore[no-untyped-def]
    """The rows of each partition, in order, one partition after the other, and where each ends; -1 is in none."""
    partitions = len(ends)
    for slot in slots:
        if slot >= 0 and slot % partitions + 1 < partitions:
            ends[slot % partitions + 1] += 1
    for p in range(1, partitions):
        ends[p] += ends[p - 1]
    for row in range(len(slots)):  # what were beginnings become ends
        if slots[row] >= 0:
            p = slots[row] % partitions
            dealt[ends[p]] = row
            ends[p] += 1


def by_output(answers: Answers) -> Answers:
    """The answers with one contiguous row per output: int64 and float64 [outputs, rows], bool [outputs, rows]."""
    rows, outputs = answers.valid.shape
    if rows == 1:
        return Answers(answers.late, answers.integers.T, answers.floats.T, answers.valid.T)
    integers, valid = np.empty((outputs, rows), np.int64), np.empty((outputs, rows), np.bool_)
    half = rows // 2
    turn = partial(_turn, answers.integers, answers.valid, integers, valid)
    side_by_side([partial(turn, 0, half), partial(turn, half, rows)], rows >= _THREADED_ROWS)
    return Answers(answers.late, integers, integers.view(np.float64), valid)


@kept("void(int64[:, ::1], bool[:, ::1], int64[:, ::1], bool[:, ::1], int64, int64)")
def _turn(integers, valid, integers_by_output, valid_by_output, begin, end):  # type: ignore[no-untyped-def]
    for tile in range(begin, end, _TILE_ROWS):
        for f in range(integers.shape[1]):
            for row in range(tile, min(tile + _TILE_ROWS, end)):
                integers_by_output[f, row] = integers[row, f]
                valid_by_output[f, row] = valid[row, f]


def later(function: Callable[[], Result], rows: int) -> Callable[[], Result]:
    """A call that waits for the result of ``function``; for many rows that runs in a thread from now on."""
    return _threads().submit(function).result if rows >= _THREADED_ROWS else function


def side_by_side(jobs: Sequence[Callable[[], None]], in_threads: bool) -> None:
    """Run all of them; in threads if told."""
    if not in_threads:
        for job in jobs:
            job()
        return
    for running in [_threads().submit(job) for job in jobs]:
        running.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(PARTITIONS, os.cpu_count() or 1), "windows")
