"""The retained events of a group of tracks in one partition: one arena, a range of it per slot.

The arena is int64 [room, 2 + tracks]: event time in µs, identity (its uint64 with the highest bit flipped, so that
signed order is its order) and a value of each track of the group, or `HOLE`. A range is sorted by (time, identity).

``heads`` is int64 [slots, 6 + 2 · tracks + edges]: where the range begins, its capacity, the first and the end of what
is retained (from the beginning of the range), the time up to which questions came in order, and how many of the
retained are older than the newest event of the key by more than the lateness; then for each track the greatest
magnitude of a value so far and the place of its newest value; then for each left edge of windows its place. All places
count from the beginning of the range; so does ``FIRST_AT`` of a window, before which it holds no value.
"""

from __future__ import annotations

import numpy as np

from shared_features.exact import compiled
from shared_features.extremes import append_extreme, rebuild_extremes, tree_cells
from shared_features.layout import HANDED_OUT, HOLE, IDENTITY, TIME, VALUE
from shared_features.machine_code import kept

BASE, CAPACITY, FIRST, END, ADVANCED, OLDER = range(6)
HEAD_CELLS = 6
LARGEST, LAST_AT = range(2)
LANE_CELLS = 2
COUNT, UPPER, LOWER, SQUARE_HIGH, SQUARE_LOW, DISTINCT, FIRST_AT = range(7)
SUM_CELLS = 7
TRACK, INVERSE = range(2)
"""Layout of a track in its group: its number in the stage, and 1 / scale."""
MOST_EVENTS, TREES, COUNTING, ALONE, OUTPUTS = range(5)
"""Shape of a group: the n of its widest window of events, whether it has extremes, how many of its windows count
distinct values, whether it is a single track, which has no holes, and how many outputs it has."""

_LEAST_ROOM = 4


@compiled()
def lower_bound(arena, low, high, t):  # type: ignore[no-untyped-def]
    """First index in [low, high) whose time is at least ``t``; ``high`` if there is none."""
    while low < high:
        middle = (low + high) >> 1
        if arena[middle, TIME] < t:
            low = middle + 1
        else:
            high = middle
    return low


def tidy(
    shape: np.ndarray, heads: np.ndarray, sums: np.ndarray, arena: np.ndarray, tree: np.ndarray, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A new arena, with every range at its live length and half as much again, and a quarter more to hand out.

    NumPy makes it, not compiled code: NumPy asks Linux for huge pages, without which looking addresses up costs as
    much as the rest of the window pass.
    """
    live = heads[:, END] - heads[:, FIRST]
    room = int(np.sum(live + (live >> 1) + 2, where=live > 0))  # `_tidied_capacity` of each
    room += (room >> 2) + 256
    fresh = np.empty((room, arena.shape[1]), np.int64)
    fresh_tree = np.empty((2, tree_cells(room) if tree.shape[1] > 0 else 0), np.int64)
    move_all(shape, heads, sums, arena, fresh, fresh_tree, used)
    return fresh, fresh_tree


@compiled()
def _tidied_capacity(live):  # type: ignore[no-untyped-def]
    return live + (live >> 1) + 2 if live > 0 else 0


@kept("void(int64[::1], int64[:, ::1], int64[:, :, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1])")
def move_all(shape, heads, sums, arena, fresh, fresh_tree, used):  # type: ignore[no-untyped-def]
    """Move every range to a fresh arena, one after the other."""
    target = np.int64(0)
    for s in range(len(heads)):
        first, live = heads[s, FIRST], heads[s, END] - heads[s, FIRST]
        source = heads[s, BASE] + first
        for i in range(live):
            _copy(arena, source + i, fresh, target + i)
        _moved(heads, sums, arena.shape[1] - VALUE, s, target, _tidied_capacity(live))
        if shape[TREES]:
            rebuild_extremes(fresh_tree, fresh, target, target + live)
        target += heads[s, CAPACITY]
    used[HANDED_OUT] = target


@compiled(forceinline=True)
def _copy(arena, source, fresh, target):  # type: ignore[no-untyped-def]
    for cell in range(arena.shape[1]):
        fresh[target, cell] = arena[source, cell]


@compiled()
def _moved(heads, sums, tracks, s, base, capacity):  # type: ignore[no-untyped-def]
    """Note that the retained events of a range now stand at the beginning of another."""
    first = heads[s, FIRST]
    for k in range(tracks):
        heads[s, HEAD_CELLS + LANE_CELLS * k + LAST_AT] -= first
    for left in range(HEAD_CELLS + LANE_CELLS * tracks, heads.shape[1]):
        heads[s, left] -= first
    for u in range(sums.shape[1]):
        sums[s, u, FIRST_AT] -= first
    heads[s, OLDER] -= first
    heads[s, END] -= first
    heads[s, FIRST] = 0
    heads[s, BASE], heads[s, CAPACITY] = base, capacity


@compiled()
def room_wanted(heads, s):  # type: ignore[no-untyped-def]
    """Elements to be handed out before one more event fits into a range; 0 if it fits, or will after moving down."""
    capacity, first = heads[s, CAPACITY], heads[s, FIRST]
    if heads[s, END] < capacity or (capacity > 0 and first * 2 >= capacity):
        return 0
    return max(_LEAST_ROOM, 2 * (heads[s, END] - first))


@compiled()
def make_room(shape, heads, sums, arena, tree, used, s):  # type: ignore[no-untyped-def]
    """Room for one more event in a full range: its events move down, or to a greater range handed out for them."""
    base, capacity, first = heads[s, BASE], heads[s, CAPACITY], heads[s, FIRST]
    live, source = heads[s, END] - first, base + first
    wanted = room_wanted(heads, s)
    if wanted > 0:
        base, capacity = used[HANDED_OUT], wanted
        used[HANDED_OUT] += wanted
    for i in range(live):
        _copy(arena, source + i, arena, base + i)
    _moved(heads, sums, arena.shape[1] - VALUE, s, base, capacity)
    if shape[TREES]:
        rebuild_extremes(tree, arena, base, base + live)


@compiled(forceinline=True)
def insert(shape, tracks, heads, arena, tree, s, t, identity, row, folded, values):  # type: ignore[no-untyped-def]
    """Put one event in its place by (time, identity), for which there is room; returns the place in its range."""
    base = heads[s, BASE]
    begin, stop = base + heads[s, FIRST], base + heads[s, END]
    place = stop
    while place > begin and (
        arena[place - 1, TIME] > t or (arena[place - 1, TIME] == t and arena[place - 1, IDENTITY] > identity)
    ):
        _copy(arena, place - 1, arena, place)
        place -= 1
    arena[place, TIME], arena[place, IDENTITY] = t, identity
    heads[s, END] += 1
    for k in range(len(tracks)):
        lane, track, value = HEAD_CELLS + LANE_CELLS * k, tracks[k, TRACK], HOLE
        if heads[s, lane + LAST_AT] >= place - base:
            heads[s, lane + LAST_AT] += 1
        if folded[track, row]:
            value = values[track, row]
            heads[s, lane + LARGEST] = max(heads[s, lane + LARGEST], abs(value))
            heads[s, lane + LAST_AT] = max(heads[s, lane + LAST_AT], place - base)
        arena[place, VALUE + k] = value
    if shape[TREES]:
        if place == stop:
            append_extreme(tree, len(arena), place, arena[place, VALUE])
        else:
            rebuild_extremes(tree, arena, place, stop + 1)
    return place - base
