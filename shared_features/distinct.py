"""How often each value occurs in each window: an open-addressing hash table, for exact distinct counts.

A table is int64 [cells, 3]: owner (slot and window, counted from 1; 0 is a free cell), value, occurrences. Cells
are found by linear probing. A cell whose occurrences fall to 0 stays until the table is made anew.
"""

from __future__ import annotations

import numpy as np

from shared_features.exact import compiled, compiled_to_allocate
from shared_features.layout import VALUE

OWNER, COUNTED, OCCURRENCES = 0, 1, 2
FIRST_CELLS = 64

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


@compiled()
def _cell(counts, owner, value):  # type: ignore[no-untyped-def]
    """The cell of (owner, value), or the free one where it belongs."""
    mixed = (np.uint64(value) ^ (np.uint64(owner) * _MULTIPLIER)) * _MULTIPLIER
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MULTIPLIER
    mask = len(counts) - 1
    cell = np.int64(mixed >> _SHIFT) & mask
    while counts[cell, OWNER] != 0 and (counts[cell, OWNER] != owner or counts[cell, COUNTED] != value):
        cell = (cell + 1) & mask
    return cell


@compiled_to_allocate()
def with_room(counts, filled, more):  # type: ignore[no-untyped-def]
    """The table itself if it has room for more values, else a new one without unused cells; and cells in use."""
    if 2 * (filled + more) <= len(counts):
        return counts, filled
    live = 0
    for i in range(len(counts)):
        live += counts[i, OCCURRENCES] > 0
    size = FIRST_CELLS
    while size < 4 * (live + more):
        size *= 2
    fresh = np.zeros((size, 3), np.int64)
    for i in range(len(counts)):
        if counts[i, OCCURRENCES] > 0:
            cell = _cell(fresh, counts[i, OWNER], counts[i, COUNTED])
            for part in range(3):  # a loop compiles in a tenth of the time that a slice takes
                fresh[cell, part] = counts[i, part]
    return fresh, live


@compiled()
def add_value(counts, owner, value):  # type: ignore[no-untyped-def]
    """One more occurrence; returns whether the value is new to the window, and whether a free cell was taken."""
    cell = _cell(counts, owner, value)
    taken = counts[cell, OWNER] == 0
    counts[cell, OWNER], counts[cell, COUNTED] = owner, value
    counts[cell, OCCURRENCES] += 1
    return counts[cell, OCCURRENCES] == 1, taken


@compiled()
def remove_value(counts, owner, value):  # type: ignore[no-untyped-def]
    """One occurrence less; returns whether the value has left the window."""
    cell = _cell(counts, owner, value)
    counts[cell, OCCURRENCES] -= 1
    return counts[cell, OCCURRENCES] == 0


@compiled_to_allocate()
def count_distinct(arena, low, high):  # type: ignore[no-untyped-def]
    """Number of different values in arena[low:high]. For a question about the past, whose window no table holds."""
    counts = np.zeros((FIRST_CELLS, 3), np.int64)
    filled, found = np.int64(0), np.int64(0)
    for i in range(low, high):
        value = arena[i, VALUE]
        counts, filled = with_room(counts, filled, np.int64(1))
        new, taken = add_value(counts, np.int64(1), value)
        found += new
        filled += taken
    return found


@compiled_to_allocate()
def most_frequent_value(arena, low, high):  # type: ignore[no-untyped-def]
    """The value that occurs most often in arena[low:high], not empty; among equals the one that occurs last."""
    counts = np.zeros((FIRST_CELLS, 3), np.int64)
    filled = np.int64(0)
    for i in range(low, high):
        value = arena[i, VALUE]
        counts, filled = with_room(counts, filled, np.int64(1))
        _, taken = add_value(counts, np.int64(1), value)
        filled += taken
    best, most = arena[high - 1, VALUE], np.int64(0)
    for i in range(high - 1, low - 1, -1):
        occurrences = counts[_cell(counts, np.int64(1), arena[i, VALUE]), OCCURRENCES]
        if occurrences > most:
            best, most = arena[i, VALUE], occurrences
    return best
