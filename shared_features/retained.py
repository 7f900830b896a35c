"""What one group of a stage's tracks retains of the slots of one partition: the arrays of the compiled pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shared_features import windows
from shared_features.answers import RECORD_CELLS, divide
from shared_features.arena import (
    ADVANCED,
    BASE,
    CAPACITY,
    COUNTING,
    END,
    FIRST,
    HEAD_CELLS,
    LANE_CELLS,
    LAST_AT,
    OUTPUTS,
    SUM_CELLS,
    tidy,
)
from shared_features.distinct import FIRST_CELLS, with_room
from shared_features.extremes import tree_cells
from shared_features.layout import CELLS, LACKING, RECORDED, VALUE
from shared_features.plan import Group, Stage

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

    `partitions.by_output` turns the last three around.
    """

    late: np.ndarray
    integers: np.ndarray
    floats: np.ndarray
    valid: np.ndarray


class Retained:
    """Retained events of one group of tracks, their edges and sums; see `shared_features.arena`."""

    def __init__(self, stage: Stage, group: Group) -> None:
        self._stage, self._group = stage, group
        self._layout = group.shape, group.tracks, group.edges, group.windows
        self.heads = np.empty((0, HEAD_CELLS + LANE_CELLS * len(group.tracks) + len(group.edges)), np.int64)
        self.sums = np.empty((0, len(group.windows), SUM_CELLS), np.int64)
        self.arena = np.empty((_FIRST_ROOM, VALUE + len(group.tracks)), np.int64)
        self.used = np.zeros(4, np.int64)
        self.tree = np.empty((2, tree_cells(_FIRST_ROOM) if group.has_extremes else 0), np.int64)
        self.counts = np.zeros((FIRST_CELLS, 3), np.int64)
        self._records = np.empty((_RECORDS * int(group.shape[OUTPUTS]), RECORD_CELLS), np.int64)

    def grow(self, more: int) -> None:
        """Make room for ``more`` slots, which are empty."""
        heads = np.zeros((more, self.heads.shape[1]), np.int64)
        heads[:, ADVANCED] = windows.NEVER_US
        heads[:, HEAD_CELLS + LAST_AT : HEAD_CELLS + LANE_CELLS * len(self._group.tracks) : LANE_CELLS] = -1
        self.heads = np.concatenate([self.heads, heads])
        self.sums = np.concatenate([self.sums, np.zeros((more, *self.sums.shape[1:]), np.int64)])

    def run(self, which: np.ndarray, rows: Rows, graces: np.ndarray, answers: Answers) -> None:
        """Fold and answer the rows ``which``, in order, whose ``graces`` `windows.advance` has told."""
        start = 0
        while True:
            start = windows.fold_and_ask(
                start, which, *rows, graces, self._stage.longest_us, *self._layout, self._stage.operations,
                self.heads, self.sums, self.arena, self.used, self.tree, self.counts, self._records, *answers[1:],
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
        if self.used[LACKING] == windows.LACKS_CELLS:
            self.counts, self.used[CELLS] = with_room(self.counts, self.used[CELLS], len(self._group.windows))
        elif self.used[LACKING] == windows.LACKS_ARENA:
            self._tidy()

    def _tidy(self) -> None:
        self.arena, self.tree = tidy(self._group.shape, self.heads, self.sums, self.arena, self.tree, self.used)

    def warm_up(self) -> None:
        """Compile what makes room."""
        if self._group.shape[COUNTING]:
            self.counts, self.used[CELLS] = with_room(self.counts, self.used[CELLS], len(self._group.windows))
        self._tidy()

    @property
    def lengths(self) -> np.ndarray:
        """Retained events of each slot; int64, shape [slots]."""
        found: np.ndarray = self.heads[:, END] - self.heads[:, FIRST]
        return found

    def held(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Retained events of the slots [begin, end): slot of each, and arena rows [events, 2 + tracks]."""
        heads = self.heads[begin:end]
        lengths = heads[:, END] - heads[:, FIRST]
        starts = heads[:, BASE] + heads[:, FIRST]
        index = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        return np.repeat(np.arange(begin, end), lengths), self.arena[index]

    def restore(self, pieces: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take over, into empty slots, the pieces that `held` gave, in the order of slots.

        The pieces are taken out of the list, so that not all of the state is there twice.
        """
        self.arena = np.empty((sum(len(events) for _, events in pieces), self.arena.shape[1]), np.int64)
        lengths, at = np.zeros(len(self.heads), np.int64), 0
        while pieces:
            slots, events = pieces.pop(0)
            if len(slots):
                lengths[slots[0] : slots[-1] + 1] += np.bincount(slots - slots[0])
            self.arena[at : at + len(events)] = events
            at += len(events)
        self.heads[:, BASE] = np.cumsum(lengths) - lengths
        self.heads[:, CAPACITY] = self.heads[:, END] = lengths
        cursor = np.zeros(2, np.int64)
        while not windows.sum_all(cursor, *self._layout, self.heads, self.sums, self.arena, self.counts, self.used):
            self.counts, self.used[CELLS] = with_room(self.counts, self.used[CELLS], len(self._group.windows))
        self._tidy()

    @property
    def retained(self) -> int:
        """Events held, over all slots."""
        return int(self.lengths.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.heads, self.sums, self.arena, self.used, self.tree, self.counts, self._records)
        return sum(array.nbytes for array in arrays)
