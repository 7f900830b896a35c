"""The retained events of one partition of a keyed stage: one arena, a range of it per slot and track.

The arena is int64 [room, 3]: event time in µs, identity (its uint64 with the highest bit flipped, so that signed
order is its order) and value. A range is sorted by (time, identity). ``heads`` is int64 [slots, tracks, 6]: where
the range begins, its capacity, the first and the end of what is retained (from the beginning of the range), the time
up to which questions came in order, and how many of the retained are older than the newest event of the key by more
than the lateness (from the beginning of the range too). What else points into a range, ``LEFT`` of a window, counts
from its beginning as well.
"""

from __future__ import annotations

import numba
import numpy as np

from shared_features.extremes import append_extreme, rebuild_extremes, tree_cells

TIME, IDENTITY, VALUE = 0, 1, 2
BASE, CAPACITY, FIRST, END, ADVANCED, OLDER = range(6)
HEAD_CELLS = 6
LEFT, UPPER, LOWER, SQUARE_HIGH, SQUARE_LOW, DISTINCT = range(6)
SUM_CELLS = 6
TRACK_FROM, TRACK_TO, TRACK_INVERSE, TRACK_EVENTS, TRACK_TREES = range(5)
"""Layout of a track: its windows, 1 / scale, the n of its widest window of events, whether it has extremes."""

_LEAST_ROOM = 4


@numba.njit(nogil=True)
def lower_bound(arena, low, high, t):  # type: ignore[no-untyped-def]
    """First index in [low, high) whose time is at least ``t``; ``high`` if there is none."""
    while low < high:
        middle = (low + high) >> 1
        if arena[middle, TIME] < t:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True)
def tidy(tracks, heads, sums, arena, tree, used):  # type: ignore[no-untyped-def]
    """A new arena, with every range at its live length and half as much again, and a quarter more to hand out."""
    slots = len(heads)
    room = 0
    for s in range(slots):
        for k in range(len(tracks)):
            live = heads[s, k, END] - heads[s, k, FIRST]
            room += live + (live >> 1) + 2 if live > 0 else 0
    room += (room >> 2) + 256
    fresh = np.empty((room, 3), np.int64)
    fresh_tree = np.empty((2, tree_cells(room) if tree.shape[1] > 0 else 0), np.int64)
    target = np.int64(0)
    for s in range(slots):
        for k in range(len(tracks)):
            first, live = heads[s, k, FIRST], heads[s, k, END] - heads[s, k, FIRST]
            source = heads[s, k, BASE] + first
            for i in range(live):
                fresh[target + i, TIME] = arena[source + i, TIME]
                fresh[target + i, IDENTITY] = arena[source + i, IDENTITY]
                fresh[target + i, VALUE] = arena[source + i, VALUE]
            _moved(tracks, heads, sums, s, k, target, live + (live >> 1) + 2 if live > 0 else 0)
            if tracks[k, TRACK_TREES]:
                rebuild_extremes(fresh_tree, fresh, target, target + live)
            target += heads[s, k, CAPACITY]
    used[0] = target
    return fresh, fresh_tree


@numba.njit(nogil=True)
def _moved(tracks, heads, sums, s, k, base, capacity):  # type: ignore[no-untyped-def]
    """Note that the retained events of a range now stand at the beginning of another."""
    first = heads[s, k, FIRST]
    for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
        sums[s, w, LEFT] -= first
    heads[s, k, OLDER] -= first
    heads[s, k, END] -= first
    heads[s, k, FIRST] = 0
    heads[s, k, BASE], heads[s, k, CAPACITY] = base, capacity


@numba.njit(nogil=True)
def make_room(tracks, heads, sums, arena, tree, used, s, k):  # type: ignore[no-untyped-def]
    """Room for one more event in the range of slot ``s`` and track ``k``; returns arena and tree, maybe new."""
    base, capacity, first = heads[s, k, BASE], heads[s, k, CAPACITY], heads[s, k, FIRST]
    live = heads[s, k, END] - first
    source = base + first
    if capacity == 0 or first * 2 < capacity:
        capacity = max(_LEAST_ROOM, 2 * live)
        if used[0] + capacity > len(arena):
            arena, tree = tidy(tracks, heads, sums, arena, tree, used)
            if heads[s, k, CAPACITY] > live:
                return arena, tree
            source = heads[s, k, BASE]
        base = used[0]
        used[0] += capacity
    for i in range(live):  # downwards in place, or to another range
        arena[base + i, TIME] = arena[source + i, TIME]
        arena[base + i, IDENTITY] = arena[source + i, IDENTITY]
        arena[base + i, VALUE] = arena[source + i, VALUE]
    _moved(tracks, heads, sums, s, k, base, capacity)
    if tracks[k, TRACK_TREES]:
        rebuild_extremes(tree, arena, base, base + live)
    return arena, tree


@numba.njit(nogil=True)
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
    if has_trees:
        if place == stop:
            append_extreme(tree, len(arena), place, value)
        else:
            rebuild_extremes(tree, arena, place, stop + 1)
    return place - base
