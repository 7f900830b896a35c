"""The compiled window pass: one keyed stage, event by event, in integers.

For each window of each key the pass keeps the index of the window's left edge and the running integer sums from
there to the newest event. An event in time order moves edges and sums forward (amortised O(1) per window); an event
that comes late is inserted in its place, and a question about the past starts from the running sums or scans its
window, whichever is shorter. All give the same bits, because only integers are added and subtracted (contract C3).

Sums of values are two int64 (of the upper and the lower 32 bits); sums of squares are one wide number
(`shared_features.exact`). Slots are dealt out to partitions, each with arrays of its own, so that threads can run
partitions side by side: what a key's events give does not depend on any other key.
"""

from __future__ import annotations

import numpy as np

from shared_features.answers import answer
from shared_features.arena import (
    ADVANCED,
    BASE,
    CAPACITY,
    DISTINCT,
    END,
    FIRST,
    LARGEST,
    LEFT,
    LOWER,
    OLDER,
    SQUARE_HIGH,
    SQUARE_LOW,
    TRACK_DISTINCT,
    TRACK_EVENTS,
    TRACK_FROM,
    TRACK_INVERSE,
    TRACK_TO,
    TRACK_TREES,
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
from shared_features.layout import CELLS, HANDED_OUT, LACKING, RECORDED, TIME, VALUE
from shared_features.machine_code import kept

NEVER_US = -(2**62)
"""Before any event."""

SPAN_US, EVENTS, WITH_SELF, KEEPS, OUTPUT_FROM, OUTPUT_TO = range(6)
"""Layout of a window: it holds times in [t − span, t], or the last n events; what it keeps; its outputs."""
LACKS_RECORDS, LACKS_CELLS, LACKS_ARENA = range(3)
KEEPS_SUM, KEEPS_SQUARES, KEEPS_DISTINCT = 1, 2, 4

_FAR, _NEAR = 24, 10
"""How many rows ahead memory is asked for: first what belongs to the slot, then the events at the windows' edges."""


@compiled(forceinline=True)
def _keep(keeps, sums, s, w, owner, value, counts, used):  # type: ignore[no-untyped-def]
    """Take a value into the sums of a window; the table of counts has room for it."""
    if keeps & KEEPS_SUM:
        sums[s, w, UPPER] += value >> 32
        sums[s, w, LOWER] += value & LOW_HALF
    if keeps & KEEPS_SQUARES:
        high, low = wide_product(value, value)
        sums[s, w, SQUARE_HIGH], sums[s, w, SQUARE_LOW] = wide_add(
            sums[s, w, SQUARE_HIGH], sums[s, w, SQUARE_LOW], high, low
        )
    if keeps & KEEPS_DISTINCT:
        new, taken = add_value(counts, owner, value)
        sums[s, w, DISTINCT] += new
        used[CELLS] += taken


@compiled(forceinline=True)
def _drop(keeps, sums, s, w, owner, value, counts):  # type: ignore[no-untyped-def]
    """Take a value out of the sums of a window."""
    if keeps & KEEPS_SUM:
        sums[s, w, UPPER] -= value >> 32
        sums[s, w, LOWER] -= value & LOW_HALF
    if keeps & KEEPS_SQUARES:
        high, low = wide_product(value, value)
        sums[s, w, SQUARE_HIGH], sums[s, w, SQUARE_LOW] = wide_subtract(
            sums[s, w, SQUARE_HIGH], sums[s, w, SQUARE_LOW], high, low
        )
    if keeps & KEEPS_DISTINCT and remove_value(counts, owner, value):
        sums[s, w, DISTINCT] -= 1


@compiled()
def _past_sums(keeps, arena, begin, end, low, high, upper, lower, square_high, square_low):  # type: ignore[no-untyped-def]
    """Sums over arena[low:high], from those over arena[begin:end] if that is nearer than from nothing."""
    if not keeps & KEEPS_SUM:
        return np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    if abs(low - begin) + abs(end - high) >= high - low:
        begin, end = low, low
        upper, lower, square_high, square_low = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for edge, other, sign in ((begin, low, -1), (high, end, -1), (low, begin, 1), (end, high, 1)):
        for i in range(edge, other):
            value = arena[i, VALUE]
            upper += sign * (value >> 32)
            lower += sign * (value & LOW_HALF)
            if keeps & KEEPS_SQUARES:
                a, b = wide_product(value, value)
                if sign > 0:
                    square_high, square_low = wide_add(square_high, square_low, a, b)
                else:
                    square_high, square_low = wide_subtract(square_high, square_low, a, b)
    return upper, lower, square_high, square_low


@compiled(forceinline=True)
def _ask(  # type: ignore[no-untyped-def]
    with_self, row, s, k, t, reach, tracks, windows, outputs, heads, sums, arena, tree, counts,
    answers, floats, valid, records, recorded,
):  # fmt: skip
    """Answer the windows of track ``k`` that do, or do not, hold the event itself; returns the number of records."""
    base = heads[s, k, BASE]
    first, stop = base + heads[s, k, FIRST], base + heads[s, k, END]
    in_order = t >= heads[s, k, ADVANCED] and (first == stop or arena[stop - 1, TIME] <= t)
    if in_order:
        heads[s, k, ADVANCED] = t
    for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
        if windows[w, WITH_SELF] != with_self:
            continue
        keeps, events = windows[w, KEEPS], windows[w, EVENTS]
        earliest = max(t - windows[w, SPAN_US], reach)
        left = base + sums[s, w, LEFT]
        if in_order:
            edge, right = left, stop
            owner = s * len(windows) + w + 1
            while edge < stop and (right - edge > events if events > 0 else arena[edge, TIME] < earliest):
                _drop(keeps, sums, s, w, owner, arena[edge, VALUE], counts)
                edge += 1
            sums[s, w, LEFT] = edge - base
            upper, lower = sums[s, w, UPPER], sums[s, w, LOWER]
            square_high, square_low = sums[s, w, SQUARE_HIGH], sums[s, w, SQUARE_LOW]
            distinct = sums[s, w, DISTINCT]
        else:
            right = lower_bound(arena, first, stop, t + 1)
            if events > 0:
                edge = min(right, max(first, right - events, base + heads[s, k, OLDER] - events))
            else:
                edge = lower_bound(arena, first, right, earliest)
            upper, lower, square_high, square_low = _past_sums(
                keeps, arena, left, stop, edge, right,
                sums[s, w, UPPER], sums[s, w, LOWER], sums[s, w, SQUARE_HIGH], sums[s, w, SQUARE_LOW],
            )  # fmt: skip
            distinct = np.int64(-1)
        recorded = answer(
            row, t, arena, tree, edge, right, upper, lower, square_high, square_low, distinct,
            heads[s, k, LARGEST], tracks[k, TRACK_INVERSE], windows[w, OUTPUT_FROM], windows[w, OUTPUT_TO], outputs,
            answers, floats, valid, records, recorded,
        )  # fmt: skip
    return recorded


@compiled(forceinline=True)
def _evict(s, k, reach, tracks, windows, heads, sums, arena, counts):  # type: ignore[no-untyped-def]
    """Drop what lies before ``reach``, but for the last events that a window of events can reach (contract C2)."""
    base, events = heads[s, k, BASE], tracks[k, TRACK_EVENTS]
    while (
        heads[s, k, FIRST] < heads[s, k, END]
        and arena[base + heads[s, k, FIRST], TIME] < reach
        and (events == 0 or heads[s, k, OLDER] - heads[s, k, FIRST] > events)
    ):
        first = heads[s, k, FIRST]
        for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
            if sums[s, w, LEFT] == first:
                _drop(windows[w, KEEPS], sums, s, w, s * len(windows) + w + 1, arena[base + first, VALUE], counts)
                sums[s, w, LEFT] += 1
        heads[s, k, FIRST] += 1


@kept(
    "int64(int64, int64[::1], int64[::1], int64[::1], int64[::1], bool[:, ::1], bool[::1], int64[:, ::1], int64, "
    "int64, int64[:, ::1], int64[:, ::1], int64[:, ::1], int64[::1], int64[:, :, ::1], int64[:, :, ::1], "
    "int64[:, ::1], int64[::1], int64[:, ::1], int64[:, ::1], int64[:, ::1], "
    "bool[::1], int64[:, ::1], float64[:, ::1], bool[:, ::1])"
)
def fold_and_ask(  # type: ignore[no-untyped-def]
    start, rows, slots, times, identities, folded, asked, values, lateness_us, longest_us, tracks, windows, outputs,
    newest, heads, sums, arena, used, tree, counts, records, late, answers, floats, valid,
):  # fmt: skip
    """Fold and answer the rows of one partition, in order.

    Args:
        start: the first of ``rows`` to do.
        rows: int64 [n], which rows of the block belong to the partition.
        slots: int64 [rows], slot of each row's key within its partition.
        times, identities: int64 [rows], event time in µs; identity with its highest bit flipped.
        folded: bool [tracks, rows], which rows enter which track. asked: bool [rows].
        values: int64 [tracks, rows], encoded values, used where folded.
        lateness_us, longest_us: of the stage, the longest event-time window.
        tracks, windows, outputs: the stage's layout, int64; see the constants. An output is (operation, k).
        newest: int64 [slots], greatest event time folded. heads, sums, arena: see `shared_features.arena`.
        used: int64 [4], elements of the arena handed out, cells of the table in use, records written, what
            was lacking when the pass returned early.
        tree: see `shared_features.extremes`. counts: see `shared_features.distinct`.
        records: int64 [room, 8], for answers to be divided by the caller.
        late, answers, floats, valid: written; bool [rows], int64 and float64 [rows, outputs] (the same memory),
            bool [rows, outputs]. Outputs of a row lie together: partitions that run side by side, or one after the
            other, would all visit every cache line of a column.

    Returns:
        The number of rows; or the first row for which the arena, the table of counts or the records have no room,
        before anything of it is done. The caller makes room and calls again from there.
    """
    stride, sum_stride = heads.shape[1] * heads.shape[2] * 8, sums.shape[1] * sums.shape[2] * 8
    for n in range(start, len(rows)):
        if n + _FAR < len(rows):
            s = slots[rows[n + _FAR]]
            for offset in range(0, stride, 64):
                prefetch(heads.ctypes.data + s * stride + offset)
            for offset in range(0, sum_stride, 64):
                prefetch(sums.ctypes.data + s * sum_stride + offset)
            s = slots[rows[n + _NEAR]]
            for k in range(len(tracks)):
                place = arena.ctypes.data + heads[s, k, BASE] * 24
                prefetch(place + heads[s, k, END] * 24)
                for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
                    edge = place + sums[s, w, LEFT] * 24
                    prefetch(edge)
                    prefetch(edge + 40)  # the value of this event and the time of the next may lie in another line
        row = rows[n]
        s, t = slots[row], times[row]
        if used[RECORDED] + len(outputs) > len(records):
            used[LACKING] = LACKS_RECORDS
            return n
        wanted = used[HANDED_OUT]
        for k in range(len(tracks)):
            if folded[k, row]:
                wanted += room_wanted(heads, s, k)
                if 2 * (used[CELLS] + tracks[k, TRACK_DISTINCT]) > len(counts):
                    used[LACKING] = LACKS_CELLS
                    return n
        if wanted > len(arena):
            used[LACKING] = LACKS_ARENA
            return n
        newest[s] = max(newest[s], t)
        grace = newest[s] - lateness_us
        reach = grace - longest_us
        late[row] = t < grace
        for k in range(len(tracks)):
            events = tracks[k, TRACK_EVENTS]
            if events > 0:
                base = heads[s, k, BASE]
                while heads[s, k, OLDER] < heads[s, k, END] and arena[base + heads[s, k, OLDER], TIME] < grace:
                    heads[s, k, OLDER] += 1
            _evict(s, k, reach, tracks, windows, heads, sums, arena, counts)
            for with_self in range(2):
                if with_self == 1 and folded[k, row] and (t >= reach or events > 0):
                    if heads[s, k, END] == heads[s, k, CAPACITY]:
                        make_room(tracks, heads, sums, arena, tree, used, s, k)
                    value = values[k, row]
                    place = insert(heads, arena, tree, s, k, tracks[k, TRACK_TREES], t, identities[row], value)
                    if events > 0 and t < grace:
                        heads[s, k, OLDER] += 1
                    for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
                        if place < sums[s, w, LEFT]:
                            sums[s, w, LEFT] += 1
                        else:
                            _keep(windows[w, KEEPS], sums, s, w, s * len(windows) + w + 1, value, counts, used)
                if asked[row]:
                    used[RECORDED] = _ask(
                        with_self, row, s, k, t, reach, tracks, windows, outputs, heads, sums, arena, tree, counts,
                        answers, floats, valid, records, used[RECORDED],
                    )  # fmt: skip
    return len(rows)


@kept(
    "boolean(int64[::1], int64[:, ::1], int64[:, ::1], int64[:, :, ::1], int64[:, :, ::1], int64[:, ::1], "
    "int64[:, ::1], int64[::1])"
)
def sum_all(at, tracks, windows, heads, sums, arena, counts, used):  # type: ignore[no-untyped-def]
    """Sums over all retained events of every slot: a restored window begins at the first of them.

    Goes on at the slot, track and event ``at`` (int64 [3]); returns whether it came to the end: the table of counts
    lacks room otherwise.
    """
    while at[0] < len(heads):
        s, k = at[0], at[1]
        if k == len(tracks):
            at[0], at[1] = s + 1, 0
        elif at[2] == heads[s, k, END]:
            at[1], at[2] = k + 1, 0
        elif 2 * (used[CELLS] + tracks[k, TRACK_DISTINCT]) > len(counts):
            return False
        else:
            value = arena[heads[s, k, BASE] + at[2], VALUE]
            heads[s, k, LARGEST] = max(heads[s, k, LARGEST], abs(value))
            for w in range(tracks[k, TRACK_FROM], tracks[k, TRACK_TO]):
                _keep(windows[w, KEEPS], sums, s, w, s * len(windows) + w + 1, value, counts, used)
            at[2] += 1
    return True
