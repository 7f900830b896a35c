"""The retained events of one partition of a keyed stage: one arena, a range of it per slot and track.

The arena is int64 [room, 3]: event time in µs, identity (its uint64 with the highest bit flipped, so that signed
order is its order) and value. A range is sorted by (time, identity). ``heads`` is int64 [slots, tracks, 7]: where
the range begins, its capacity, the first and the end of what is retained (from the beginning of the range), the time
up to which questions came in order, how many of the retained are older than the newest event of the key by more than
the lateness (from the beginning of the range too), and the greatest magnitude of a value so far. What else points
into a range, ``LEFT`` of a window, counts from its beginning as well.
"""

from __future__ import annotations

import numpy as np

from shared_features.exact import compiled
from shared_features.extremes import append_extreme, rebuild_extremes, tree_cells
from shared_features.layout import HANDED_OUT, IDENTITY, TIME, VALUE
from shared_features.machine_code import kept

BASE, CAPACITY, FIRST, END, ADVANCED, OLDER, LARGEST = range(7)
HEAD_CELLS = 7
LEFT, UPPER, LOWER, SQUARE_HIGH, SQUARE_LOW, DISTINCT = range(6)
SUM_CELLS = 6
TRACK_FROM, TRACK_TO, TRACK_INVERSE, TRACK_EVENTS, TRACK_TREES, TRACK_DISTINCT = range(6)
"""Layout of a track: its windows, 1 / scale, the n of its widest window of events, whether it has extremes, and how
many of its windows count distinct values."""

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
    tracks: np.ndarray, heads: np.ndarray, sums: np.ndarray, arena: np.ndarray, tree: np.ndarray, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A new arena, with every range at its live length and half as much again, and a quarter more to hand out.

    NumPy makes it, not compiled code: NumPy asks Linux for huge pages, without which looking addresses up costs as
    much as the rest of the window pass.
    """
    live = heads[:, :, END] - heads[:, :, FIRST]
    room = int(np.sum(live + (live >> 1) + 2, where=live > 0))  # `_tidied_capacity` of each
    room += (room >> 2) + 256
    fresh = np.empty((room, 3), np.int64)
    fresh_tree = np.empty((2, tree_cells(room) if tree.shape[1] > 0 else 0), np.int64)
    move_all(tracks, heads, sums, arena, fresh, fresh_tree, used)
    return fresh, fresh_tree


@compiled()
def _tidied_capacity(live):  # type: ignore[no-untyped-def]
    return live + (live >> 1) + 2 if live > 0 else 0


@kept(
    "void(int64[:, ::1], int64[:, :, ::1], int64[:, :, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1])"
)
def move_all(tracks, heads, sums, arena, fresh, fresh_tree, used):  # type: ignore[no-untyped-def]
    """Move every range to a fresh arena, one after the other."""
    target = np.int64(0)
    for s in range(len(heads)):
        for k in range(len(tracks)):
            first, live = heads[s, k, FIRST], heads[s, k, END] - heads[s, k, FIRST]
            source = heads[s, k, BASE] + first
            for i in range(live):
                fresh[target + i, TIME] = arena[source + i, TIME]
                fresh[target + i, IDENTITY] = arena[source + i, IDENTITY]
                fresh[target + i, VALUE] = arena[source + i, VALUE]
            _moved(tracks, heads, sums, s, k, target, _tidied_capacity(live))
            if tracks[k, TRACK_TREES]:
                rebuild_extremes(fresh_tree, fresh, target, target + live)
            target += heads[s, k, CAPACITY]
    used[HANDED_OUT] = target


@compiled()
def _moved(tracks, heads, sums, s, k, base, capacity):  # type: ignore[no-untyped-def]
    """Note that the retained events of a range now stand at the beginning of another."""
    first = heads[s, k, FIRST]
    for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
        sums[s, w, LEFT] -= first
    heads[s, k, OLDER] -= first
    heads[s, k, END] -= first
    heads[s, k, FIRST] = 0
    heads[s, k, BASE], heads[s, k, CAPACITY] = base, capacity


@compiled()
def room_wanted(heads, s, k):  # type: ignore[no-untyped-def]
    """Elements to be handed out before one more event fits into a range; 0 if it fits, or will after moving down."""
    capacity, first = heads[s, k, CAPACITY], heads[s, k, FIRST]
    if heads[s, k, END] < capacity or (capacity > 0 and first * 2 >= capacity):
        return 0
    return max(_LEAST_ROOM, 2 * (heads[s, k, END] - first))


@compiled()
def make_room(tracks, heads, sums, arena, tree, used, s, k):  # type: ignore[no-untyped-def]
    """Room for one more event in a full range: its events move down, or to a greater range handed out for them."""
    base, capacity, first = heads[s, k, BASE], heads[s, k, CAPACITY], heads[s, k, FIRST]
    live, source = heads[s, k, END] - first, base + first
    wanted = room_wanted(heads, s, k)
    if wanted > 0:
        base, capacity = used[HANDED_OUT], wanted
        used[HANDED_OUT] += wanted
    for i in range(live):
        arena[base + i, TIME] = arena[source + i, TIME]
        arena[base + i, IDENTITY] = arena[source + i, IDENTITY]
        arena[base + i, VALUE] = arena[source + i, VALUE]
    _moved(tracks, heads, sums, s, k, base, capacity)
    if tracks[k, TRACK_TREES]:
        rebuild_extremes(tree, arena, base, base + live)


@compiled(forceinline=True)
def insert(heads, arena, tree, s, k, has_trees, t, identity, value):  # type: ignore[no-untyped-def]
    """Put one event in its place by (time, identity), for which there is room; returns the place in its range."""
    base = heads[s, k, BASE]
    begin, stop = base + heads[s, k, FIRST], base + heads[s, k, END]
    place = stop
    while place > begin and (
        arena[place - 1, TIME] > t or (arena[place - 1, TIME] == t and arena[place - 1, IDENTITY] > identity)
    ):
        arena[place, TIME] = arena[place - 1, TIME]
        arena[place, IDENTITY] = arena[place - 1, IDENTITY]
        arena[place, VALUE] = arena[place - 1, VALUE]
        place -= 1
    arena[place, TIME], arena[place, IDENTITY], arena[place, VALUE] = t, identity, value
    heads[s, k, END] += 1
    heads[s, k, LARGEST] = max(heads[s, k, LARGEST], abs(value))
    if has_trees:
        if place == stop:
            append_extreme(tree, len(arena), place, value)
        else:
            rebuild_extremes(tree, arena, place, stop + 1)
    return place - base
