"""The arrays that the compiled pass works on, one set per partition of a stage's slots, and the threads that run it.

Slot g of a stage is slot g // PARTITIONS of partition g % PARTITIONS. How many there are changes no result: what a
key's events give does not depend on any other key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

import numpy as np

from shared_features import windows
from shared_features.machine_code import kept
from shared_features.plan import Stage
from shared_features.retained import Answers, Retained, Rows

Result = TypeVar("Result")

PARTITIONS = 4
_THREADED_ROWS = 8192
"""Below this a second thread costs more than it saves."""
_TILE_ROWS = 64
_FIRST_ROW = np.zeros(1, np.int64)


class Partition:
    """State of a part of a stage's slots: the newest time of each, and what each group of tracks retains."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.newest = np.empty(0, np.int64)
        self.groups = [Retained(stage, group) for group in stage.groups]

    def grow(self, slots: int) -> None:
        """Make room for ``slots`` slots; new ones are empty."""
        more = slots - len(self.newest)
        self.newest = np.concatenate([self.newest, np.full(more, windows.NEVER_US, np.int64)])
        for group in self.groups:
            group.grow(more)

    def run(self, which: np.ndarray, rows: Rows, answers: Answers) -> None:
        """Fold and answer the rows ``which``, in order."""
        graces = np.empty(len(which), np.int64)
        windows.advance(which, rows.slots, rows.times, self._stage.lateness_us, self.newest, graces, answers.late)
        for group in self.groups:
            group.run(which, rows, graces, answers)

    def warm_up(self) -> None:
        """Compile the pass by running it over no rows, and what makes room."""
        none, flags = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        tracks, outputs = len(self._stage.tracks), len(self._stage.outputs)
        wide = np.zeros((0, outputs), np.int64)
        rows = Rows(none, none, none, np.zeros((tracks, 0), np.bool_), flags, np.zeros((tracks, 0), np.int64))
        self.run(none, rows, Answers(flags, wide, wide.view(np.float64), np.zeros((0, outputs), np.bool_)))
        _deal(none, none, np.zeros(PARTITIONS, np.int64))
        _turn(wide, np.zeros((0, outputs), np.bool_), wide.T.copy(), np.zeros((outputs, 0), np.bool_), 0, 0)
        for group in self.groups:
            group.warm_up()

    @property
    def retained(self) -> int:
        """Events held, over all slots and groups."""
        return sum(group.retained for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.newest.nbytes + sum(group.nbytes for group in self.groups)


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
