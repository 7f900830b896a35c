"""The compiled window pass: one group of tracks of a keyed stage, event by event, in integers.

For each window of each key the pass keeps the index of the window's left edge and, for each track, the number of its
values and the running integer sums from there to the newest event. An event in time order moves edges and sums forward
(amortised O(1) per window); an event that comes late is inserted in its place, and a question about the past starts
from the running sums or scans its window, whichever is shorter. All give the same bits, because only integers are
added and subtracted (contract C3).

Tracks of a group share events and edges: what an event costs is mostly the memory that is asked for, one time for each
edge. Sums of values are two int64 (of the upper and the lower 32 bits); sums of squares are one wide number
(`shared_features.exact`). Slots are dealt out to partitions, each with arrays of its own, so that threads can run
partitions side by side: what a key's events give does not depend on any other key.
"""

from __future__ import annotations

import numpy as np

from shared_features.answers import answer
from shared_features.arena import (
    ADVANCED,
    ALONE,
    BASE,
    CAPACITY,
    COUNT,
    COUNTING,
    DISTINCT,
    END,
    FIRST,
    FIRST_AT,
    HEAD_CELLS,
    INVERSE,
    LANE_CELLS,
    LARGEST,
    LAST_AT,
    LOWER,
    MOST_EVENTS,
    OLDER,
    OUTPUTS,
    SQUARE_HIGH,
    SQUARE_LOW,
    TRACK,
    UPPER,
    insert,
    lower_bound,
    make_room,
    room_wanted,
)
from shared_features.distinct import add_value, remove_value
from shared_features.exact import (
    LOW_HALF,
    compiled,
    prefetch,
    wide_add,
    wide_product,
    wide_subtract,
)
from shared_features.layout import CELLS, HANDED_OUT, HOLE, LACKING, RECORDED, TIME, VALUE
from shared_features.machine_code import kept

NEVER_US = -(2**62)
"""Before any event."""

SPAN_US, EVENTS, WITH_SELF, WINDOW_FROM, WINDOW_TO = range(5)
"""Layout of a left edge: its windows hold times in [t − span, t], or the last n events; with the event or without."""
LANE, KEEPS, OUTPUT_FROM, OUTPUT_TO = range(4)
"""Layout of a window: its track in the group, what it keeps, its outputs."""
LACKS_RECORDS, LACKS_CELLS, LACKS_ARENA = range(3)
KEEPS_SUM, KEEPS_SQUARES, KEEPS_DISTINCT, KEEPS_FIRST, KEEPS_COUNT = 1, 2, 4, 8, 16

_FAR, _NEAR = 24, 10
"""How many rows ahead memory is asked for: first what belongs to the slot, then the events at the windows' edges."""


@compiled(forceinline=True)
def _keep(keeps, sums, s, u, owner, value, counts, used):  # type: ignore[no-untyped-def]
    """Take a value into the sums of a window; the table of counts has room for it."""
    if keeps & KEEPS_COUNT:
        sums[s, u, COUNT] += 1
    if keeps & KEEPS_SUM:
        sums[s, u, UPPER] += value >> 32
        sums[s, u, LOWER] += value & LOW_HALF
    if keeps & KEEPS_SQUARES:
        high, low = wide_product(value, value)
        sums[s, u, SQUARE_HIGH], sums[s, u, SQUARE_LOW] = wide_add(
            sums[s, u, SQUARE_HIGH], sums[s, u, SQUARE_LOW], high, low
        )
    if keeps & KEEPS_DISTINCT:
        new, taken = add_value(counts, owner, value)
        sums[s, u, DISTINCT] += new
        used[CELLS] += taken


@compiled(forceinline=True)
def _drop(keeps, sums, s, u, owner, value, counts):  # type: ignore[no-untyped-def]
    """Take a value out of the sums of a window."""
    if keeps & KEEPS_COUNT:
        sums[s, u, COUNT] -= 1
    if keeps & KEEPS_SUM:
        sums[s, u, UPPER] -= value >> 32
        sums[s, u, LOWER] -= value & LOW_HALF
    if keeps & KEEPS_SQUARES:
        high, low = wide_product(value, value)
        sums[s, u, SQUARE_HIGH], sums[s, u, SQUARE_LOW] = wide_subtract(
            sums[s, u, SQUARE_HIGH], sums[s, u, SQUARE_LOW], high, low
        )
    if keeps & KEEPS_DISTINCT and remove_value(counts, owner, value):
        sums[s, u, DISTINCT] -= 1


@compiled()
def _past_sums(  # type: ignore[no-untyped-def]
    keeps, alone, arena, cell, begin, end, low, high, count, upper, lower, square_high, square_low
):
    """Count and sums over arena[low:high], from those over arena[begin:end] if that is nearer than from nothing."""
    if alone and not keeps & KEEPS_SUM:
        return high - low, np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    if abs(low - begin) + abs(end - high) >= high - low:
        begin, end, count = low, low, np.int64(0)
        upper, lower, square_high, square_low = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for edge, other, sign in ((begin, low, -1), (high, end, -1), (low, begin, 1), (end, high, 1)):
        for i in range(edge, other):
            value = arena[i, cell]
            if value == HOLE:
                continue
            count += sign
            upper += sign * (value >> 32)
            lower += sign * (value & LOW_HALF)
            if keeps & KEEPS_SQUARES:
                a, b = wide_product(value, value)
                if sign > 0:
                    square_high, square_low = wide_add(square_high, square_low, a, b)
                else:
                    square_high, square_low = wide_subtract(square_high, square_low, a, b)
    return count, upper, lower, square_high, square_low


@compiled(forceinline=True)
def _ask(  # type: ignore[no-untyped-def]
    with_self, row, s, t, reach, shape, tracks, edges, windows, outputs, heads, sums, arena, tree, counts,
    answers, floats, valid, records, recorded,
):  # fmt: skip
    """Answer the windows that do, or do not, hold the event itself; returns the number of records."""
    base, lefts = heads[s, BASE], HEAD_CELLS + LANE_CELLS * len(tracks)
    begin, stop = base + heads[s, FIRST], base + heads[s, END]
    in_order = t >= heads[s, ADVANCED] and (begin == stop or arena[stop - 1, TIME] <= t)
    if in_order:
        heads[s, ADVANCED] = t
    for v in range(len(edges)):
        if edges[v, WITH_SELF] != with_self:
            continue
        events = edges[v, EVENTS]
        earliest = max(t - edges[v, SPAN_US], reach)
        left = base + heads[s, lefts + v]
        if in_order:
            low, high = left, stop
            while low < stop and (high - low > events if events > 0 else arena[low, TIME] < earliest):
                _leave(v, s, low, edges, windows, sums, arena, counts)
                low += 1
            heads[s, lefts + v] = low - base
        else:
            high = lower_bound(arena, begin, stop, t + 1)
            if events > 0:
                low = min(high, max(begin, high - events, base + heads[s, OLDER] - events))
            else:
                low = lower_bound(arena, begin, high, earliest)
        for u in range(edges[v, WINDOW_FROM], edges[v, WINDOW_TO]):
            k, keeps = windows[u, LANE], windows[u, KEEPS]
            cell, lane = VALUE + k, HEAD_CELLS + LANE_CELLS * k
            n, upper, lower = high - low, sums[s, u, UPPER], sums[s, u, LOWER]
            if keeps & KEEPS_COUNT:
                n = sums[s, u, COUNT]
            square_high, square_low = sums[s, u, SQUARE_HIGH], sums[s, u, SQUARE_LOW]
            distinct, first, last = sums[s, u, DISTINCT], low, base + heads[s, lane + LAST_AT]
            if in_order:
                if keeps & KEEPS_FIRST:
                    first = max(low, base + sums[s, u, FIRST_AT])
                    while first < stop and arena[first, cell] == HOLE:
                        first += 1
                    sums[s, u, FIRST_AT] = first - base
            else:
                n, upper, lower, square_high, square_low = _past_sums(
                    keeps, shape[ALONE], arena, cell, left, stop, low, high, n, upper, lower, square_high, square_low
                )
                distinct, last = np.int64(-1), high - 1
                n = high - low if shape[ALONE] else n
                if n > 0:
                    while arena[first, cell] == HOLE:
                        first += 1
                    while arena[last, cell] == HOLE:
                        last -= 1
            recorded = answer(
                row, t, arena, tree, low, high, cell, n, first, last, upper, lower, square_high, square_low, distinct,
                heads[s, lane + LARGEST], tracks[k, INVERSE], windows[u, OUTPUT_FROM], windows[u, OUTPUT_TO], outputs,
                answers, floats, valid, records, recorded,
            )  # fmt: skip
    return recorded


@compiled(forceinline=True)
def _enter(v, s, place, edges, windows, sums, arena, counts, used):  # type: ignore[no-untyped-def]
    """Take the values of an element into the windows of an edge."""
    for u in range(edges[v, WINDOW_FROM], edges[v, WINDOW_TO]):
        value = arena[place, VALUE + windows[u, LANE]]
        if value != HOLE:
            _keep(windows[u, KEEPS], sums, s, u, s * len(windows) + u + 1, value, counts, used)


@compiled(forceinline=True)
def _leave(v, s, place, edges, windows, sums, arena, counts):  # type: ignore[no-untyped-def]
    """Take the values of an element out of the windows of an edge."""
    for u in range(edges[v, WINDOW_FROM], edges[v, WINDOW_TO]):
        value = arena[place, VALUE + windows[u, LANE]]
        if value != HOLE:
            _drop(windows[u, KEEPS], sums, s, u, s * len(windows) + u + 1, value, counts)


@compiled(forceinline=True)
def _evict(s, reach, shape, tracks, edges, windows, heads, sums, arena, counts):  # type: ignore[no-untyped-def]
    """Drop what lies before ``reach``, but for the last events that a window of events can reach (contract C2)."""
    base, events, lefts = heads[s, BASE], shape[MOST_EVENTS], HEAD_CELLS + LANE_CELLS * len(tracks)
    while (
        heads[s, FIRST] < heads[s, END]
        and arena[base + heads[s, FIRST], TIME] < reach
        and (events == 0 or heads[s, OLDER] - heads[s, FIRST] > events)
    ):
        first = heads[s, FIRST]
        for v in range(len(edges)):
            if heads[s, lefts + v] == first:
                _leave(v, s, base + first, edges, windows, sums, arena, counts)
                heads[s, lefts + v] += 1
        heads[s, FIRST] += 1


@compiled(forceinline=True)
def _fold(  # type: ignore[no-untyped-def]
    s, t, identity, row, shape, tracks, edges, windows, folded, values, heads, sums, arena, tree, counts, used
):
    """Put one event in its place, and into the windows that reach so far back."""
    if heads[s, END] == heads[s, CAPACITY]:
        make_room(shape, heads, sums, arena, tree, used, s)
    lefts = HEAD_CELLS + LANE_CELLS * len(tracks)
    place = insert(shape, tracks, heads, arena, tree, s, t, identity, row, folded, values)
    for v in range(len(edges)):
        for u in range(edges[v, WINDOW_FROM], edges[v, WINDOW_TO]):
            if windows[u, KEEPS] & KEEPS_FIRST:
                sums[s, u, FIRST_AT] = min(sums[s, u, FIRST_AT], place)
        if place < heads[s, lefts + v]:
            heads[s, lefts + v] += 1
        else:
            _enter(v, s, heads[s, BASE] + place, edges, windows, sums, arena, counts, used)


@kept("void(int64[::1], int64[::1], int64[::1], int64, int64[::1], int64[::1], bool[::1])")
def advance(rows, slots, times, lateness_us, newest, graces, late):  # type: ignore[no-untyped-def]
    """The newest time of each key as the rows of one partition come, in order.

    Args:
        rows: int64 [n], which rows of the block belong to the partition.
        slots, times: int64 [rows], slot of each row's key within its partition, event time in µs.
        lateness_us: of the stage.
        newest: int64 [slots], greatest event time folded; moved on.
        graces: int64 [n], written: the newest time of the row's key, the row's own included, less the lateness.
        late: bool [rows], written: whether a row is older than that.
    """
    for n in range(len(rows)):
        row = rows[n]
        s, t = slots[row], times[row]
        newest[s] = max(newest[s], t)
        graces[n] = newest[s] - lateness_us
        late[row] = t < graces[n]


@compiled(forceinline=True)
def _ask_for_memory(n, rows, slots, lefts, heads, sums, arena):  # type: ignore[no-untyped-def]
    """Of rows that come soon: first what belongs to the slot, then the events at both ends and at the edges."""
    if n + _FAR >= len(rows):
        return
    s, stride, sum_stride = slots[rows[n + _FAR]], heads.shape[1] * 8, sums.shape[1] * sums.shape[2] * 8
    for offset in range(0, stride, 64):
        prefetch(heads.ctypes.data + s * stride + offset)
    for offset in range(0, sum_stride, 64):
        prefetch(sums.ctypes.data + s * sum_stride + offset)
    s, size = slots[rows[n + _NEAR]], arena.shape[1] * 8
    begin = arena.ctypes.data + heads[s, BASE] * size
    prefetch(begin + heads[s, FIRST] * size)
    prefetch(begin + heads[s, END] * size)
    prefetch(begin + (heads[s, END] + 1) * size - 8)
    for v in range(lefts, heads.shape[1]):
        edge = begin + heads[s, v] * size
        prefetch(edge)
        prefetch(edge + size)  # the values of this event and the time of the next may lie in another line


@kept(
    "int64(int64, int64[::1], int64[::1], int64[::1], int64[::1], bool[:, ::1], bool[::1], int64[:, ::1], "
    "int64[::1], int64, int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], "
    "int64[:, ::1], int64[:, :, ::1], int64[:, ::1], int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], "
    "int64[:, ::1], float64[:, ::1], bool[:, ::1])"
)
def fold_and_ask(  # type: ignore[no-untyped-def]
    start, rows, slots, times, identities, folded, asked, values, graces, longest_us, shape, tracks, edges, windows,
    outputs, heads, sums, arena, used, tree, counts, records, answers, floats, valid,
):  # fmt: skip
    """Fold and answer the rows of one partition, in order, as far as one group of tracks goes.

    Args:
        start: the first of ``rows`` to do.
        rows: int64 [n], which rows of the block belong to the partition.
        slots: int64 [rows], slot of each row's key within its partition.
        times, identities: int64 [rows], event time in µs; identity with its highest bit flipped.
        folded: bool [tracks of the stage, rows], which rows enter which track. asked: bool [rows].
        values: int64 [tracks of the stage, rows], encoded values, used where folded.
        graces: int64 [n], what `advance` wrote.
        longest_us: the longest event-time window of the stage.
        shape, tracks, edges, windows: the group's layout, int64; see the constants here and in
            `shared_features.arena`.
        outputs: int64 [outputs of the stage, 2]: operation and k.
        heads, sums, arena: see `shared_features.arena`.
        used: int64 [4], elements of the arena handed out, cells of the table in use, records written, what
            was lacking when the pass returned early.
        tree: see `shared_features.extremes`. counts: see `shared_features.distinct`.
        records: int64 [room, 13], for answers to be divided by the caller.
        answers, floats, valid: written; int64 and float64 [rows, outputs] (the same memory), bool [rows, outputs].
            Outputs of a row lie together: partitions that run side by side, or one after the other, would all visit
            every cache line of a column.

    Returns:
        The number of rows; or the first row for which the arena, the table of counts or the records have no room,
        before anything of it is done. The caller makes room and calls again from there.
    """
    lefts, events = HEAD_CELLS + LANE_CELLS * len(tracks), shape[MOST_EVENTS]
    for n in range(start, len(rows)):
        _ask_for_memory(n, rows, slots, lefts, heads, sums, arena)
        row = rows[n]
        s, t, grace, folds = slots[row], times[row], graces[n], False
        reach = grace - longest_us
        for k in range(len(tracks)):
            folds |= folded[tracks[k, TRACK], row]
        folds &= t >= reach or events > 0
        if used[RECORDED] + shape[OUTPUTS] > len(records):
            used[LACKING] = LACKS_RECORDS
            return n
        if folds and 2 * (used[CELLS] + shape[COUNTING]) > len(counts):
            used[LACKING] = LACKS_CELLS
            return n
        if folds and used[HANDED_OUT] + room_wanted(heads, s) > len(arena):
            used[LACKING] = LACKS_ARENA
            return n
        base = heads[s, BASE]
        if events > 0:
            while heads[s, OLDER] < heads[s, END] and arena[base + heads[s, OLDER], TIME] < grace:
                heads[s, OLDER] += 1
        _evict(s, reach, shape, tracks, edges, windows, heads, sums, arena, counts)
        for with_self in range(2):
            if with_self == 1 and folds:
                _fold(
                    s, t, identities[row], row, shape, tracks, edges, windows, folded, values, heads, sums, arena, tree,
                    counts, used,
                )  # fmt: skip
                if events > 0 and t < grace:
                    heads[s, OLDER] += 1
            if asked[row]:
                used[RECORDED] = _ask(
                    with_self, row, s, t, reach, shape, tracks, edges, windows, outputs, heads, sums, arena, tree,
                    counts, answers, floats, valid, records, used[RECORDED],
                )  # fmt: skip
    return len(rows)


@kept(
    "boolean(int64[::1], int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[:, :, ::1], "
    "int64[:, ::1], int64[:, ::1], int64[::1])"
)
def sum_all(at, shape, tracks, edges, windows, heads, sums, arena, counts, used):  # type: ignore[no-untyped-def]
    """Sums over all retained events of every slot: a restored window begins at the first of them.

    Goes on at the slot and event ``at`` (int64 [2]); returns whether it came to the end: the table of counts lacks
    room otherwise.
    """
    while at[0] < len(heads):
        s = at[0]
        if at[1] == heads[s, END]:
            at[0], at[1] = s + 1, 0
        elif 2 * (used[CELLS] + shape[COUNTING]) > len(counts):
            return False
        else:
            place = heads[s, BASE] + at[1]
            for k in range(len(tracks)):
                value, lane = arena[place, VALUE + k], HEAD_CELLS + LANE_CELLS * k
                if value != HOLE:
                    heads[s, lane + LARGEST] = max(heads[s, lane + LARGEST], abs(value))
                    heads[s, lane + LAST_AT] = at[1]
            for v in range(len(edges)):
                _enter(v, s, place, edges, windows, sums, arena, counts, used)
            at[1] += 1
    return True
