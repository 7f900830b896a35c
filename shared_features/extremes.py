"""Minimum and maximum over any range of the arena in logarithmic time: trees of block extremes.

Level 1 holds the extreme of each 16 elements of the arena, level 2 of each 256, then 4,096 and 65,536. Blocks are cut
by arena index, so one block may straddle two slots; only blocks that lie wholly inside the asked range are used,
and these belong to one slot and are full.
"""

from __future__ import annotations

from shared_features.exact import compiled
from shared_features.layout import VALUE

MINIMA, MAXIMA = 0, 1
_GREATEST, _LEAST = 2**63 - 1, -(2**63)


def tree_cells(room: int) -> int:
    """Cells of a tree over an arena of ``room`` elements."""
    return (room >> 4) + (room >> 8) + (room >> 12) + (room >> 16) + 4


@compiled()
def append_extreme(tree, room, index, value):  # type: ignore[no-untyped-def]
    """Take the element just appended at arena ``index`` into its blocks."""
    offset = 0
    for shift in (4, 8, 12, 16):
        cell = offset + (index >> shift)
        if index & ((1 << shift) - 1) == 0:
            tree[MINIMA, cell] = value
            tree[MAXIMA, cell] = value
        else:
            tree[MINIMA, cell] = min(tree[MINIMA, cell], value)
            tree[MAXIMA, cell] = max(tree[MAXIMA, cell], value)
        offset += (room >> shift) + 1


@compiled()
def rebuild_extremes(tree, arena, low, high):  # type: ignore[no-untyped-def]
    """Make the blocks of arena[low:high] anew, after elements in it have moved; ``high`` is the slot's end."""
    room = len(arena)
    if high <= low:
        return
    begin = (low >> 4) << 4
    for cell in range(begin >> 4, ((high - 1) >> 4) + 1):
        least, greatest = _GREATEST, _LEAST
        for i in range(cell << 4, min((cell + 1) << 4, high)):
            least, greatest = min(least, arena[i, VALUE]), max(greatest, arena[i, VALUE])
        tree[MINIMA, cell], tree[MAXIMA, cell] = least, greatest
    below, offset = 0, (room >> 4) + 1
    for shift in (8, 12, 16):
        last_below = (high - 1) >> (shift - 4)
        for cell in range(low >> shift, ((high - 1) >> shift) + 1):
            least, greatest = _GREATEST, _LEAST
            for child in range(cell << 4, min(((cell + 1) << 4) - 1, last_below) + 1):
                least = min(least, tree[MINIMA, below + child])
                greatest = max(greatest, tree[MAXIMA, below + child])
            tree[MINIMA, offset + cell], tree[MAXIMA, offset + cell] = least, greatest
        below = offset
        offset += (room >> shift) + 1


@compiled()
def extreme(tree, arena, low, high, kind):  # type: ignore[no-untyped-def]
    """The least (``kind`` MINIMA) or greatest (MAXIMA) value of arena[low:high], which is not empty."""
    room = len(arena)
    best = arena[low, VALUE]
    i = low
    while i < high:
        if i & 15 != 0 or i + 16 > high:
            value = arena[i, VALUE]
            i += 1
        else:
            shift, offset = 4, 0
            while shift < 16 and i & ((16 << shift) - 1) == 0 and i + (16 << shift) <= high:
                offset += (room >> shift) + 1
                shift += 4
            value = tree[kind, offset + (i >> shift)]
            i += 1 << shift
        best = min(best, value) if kind == MINIMA else max(best, value)
    return best
