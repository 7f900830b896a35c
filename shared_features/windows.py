"""The compiled window pass: one track of one keyed stage, event by event, in integers.

A track holds, per key, the retained events that carry a value, sorted by (event time, identity): three parallel
arrays in one arena, a range of it per key slot. For each window it keeps the index of the window's left edge and
the running integer sums from there to the end. An event in time order moves edges and sums forward (amortised
O(1) per window); an event that comes late is inserted in its place, and a question about the past is answered by
scanning its window. Both give the same bits, because only integers are added and subtracted (contract C3).

Sums of values are two int64 (of the upper and the lower 32 bits); sums of squares are 128 bit in two uint64.
Division happens once: here if all parts are below 2^53, where the IEEE quotient is the exact one rounded;
otherwise the integers go to `Exact` records, and `kernel` divides them as Python integers.
"""

from __future__ import annotations

import numba
import numpy as np

FOLD, QUERY = 1, 2

COUNT, SUM_INTEGER, SUM_FLOAT, MEAN, VARIANCE, VARIANCE_SAMPLE, STD, STD_SAMPLE = range(8)
MIN, MAX, FIRST, LAST, LAG, SECONDS_SINCE_LAST = range(8, 14)

NULL, DONE, EXACT = 0, 1, 2
"""State of an answer: null, written, or to be divided exactly by the caller."""

_LIMIT = 2.0**53
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@numba.njit(nogil=True)
def _square(value):  # type: ignore[no-untyped-def]
    """High and low 64 bits of value², for |value| up to 2^63 − 1."""
    a = np.uint64(abs(value))
    high, low = a >> _SHIFT, a & _MASK
    middle = high * low
    low_square = low * low
    carried = (low_square >> _SHIFT) + ((middle & _MASK) << np.uint64(1))
    return (
        high * high + ((middle >> _SHIFT) << np.uint64(1)) + (carried >> _SHIFT),
        (carried << _SHIFT) | (low_square & _MASK),
    )


@numba.njit(nogil=True)
def _lower_bound(times, low, high, t):  # type: ignore[no-untyped-def]
    """First index in [low, high) whose time is at least ``t``."""
    while low < high:
        middle = (low + high) >> 1
        if times[middle] < t:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(nogil=True)
def _answer(  # type: ignore[no-untyped-def]
    row, t, times, values, low, high, upper, lower, square_high, square_low,
    output_from, output_to, operations, ks, inverse, integers, floats, states, exact, exact_count,
):  # fmt: skip
    """Write every output of one window for one row; the window is values[low:high], its sums are given."""
    n = high - low
    for f in range(output_from, output_to):
        operation = operations[f]
        state = DONE
        if operation == COUNT:
            integers[f, row] = n
        elif n == 0:
            state = NULL
        elif operation == LAST:
            integers[f, row] = values[high - 1]
        elif operation == FIRST:
            integers[f, row] = values[low]
        elif operation == LAG:
            if n > ks[f]:
                integers[f, row] = values[high - 1 - ks[f]]
            else:
                state = NULL
        elif operation == SECONDS_SINCE_LAST:
            floats[f, row] = (t - times[high - 1]) / 1e6
        elif operation == MIN:
            best = values[low]
            for i in range(low + 1, high):
                best = min(best, values[i])
            integers[f, row] = best
        elif operation == MAX:
            best = values[low]
            for i in range(low + 1, high):
                best = max(best, values[i])
            integers[f, row] = best
        else:
            approximate = float(upper) * 4294967296.0 + float(lower)
            small = abs(approximate) < 4.0e18
            total = (upper << 32) + lower if small else 0
            state = EXACT
            if operation == SUM_INTEGER:
                if small:
                    integers[f, row] = total
                    state = DONE
            elif operation == SUM_FLOAT:
                if abs(approximate) < _LIMIT:
                    floats[f, row] = total / float(inverse)
                    state = DONE
            elif operation == MEAN:
                if abs(approximate) < _LIMIT and float(n) * float(inverse) < _LIMIT:
                    floats[f, row] = total / float(n * inverse)
                    state = DONE
            elif n == 1 and (operation == VARIANCE_SAMPLE or operation == STD_SAMPLE):
                state = NULL
            else:
                m = n - 1 if operation == VARIANCE_SAMPLE or operation == STD_SAMPLE else n
                divisor = float(n) * float(m) * float(inverse) * float(inverse)
                if (
                    square_high == np.uint64(0)
                    and float(n) * float(square_low) < 4.0e18
                    and abs(approximate) < 2.0e9
                    and divisor < _LIMIT
                ):
                    spread = n * np.int64(square_low) - total * total
                    if float(spread) < _LIMIT:
                        result = float(spread) / divisor
                        if operation == STD or operation == STD_SAMPLE:
                            result = np.sqrt(result)
                        floats[f, row] = result
                        state = DONE
            if state == EXACT:
                e = exact_count[0]
                exact[e, 0], exact[e, 1], exact[e, 2] = f, row, n
                exact[e, 3], exact[e, 4] = upper, lower
                exact[e, 5], exact[e, 6] = np.int64(square_high), np.int64(square_low)
                exact_count[0] = e + 1
        states[f, row] = state


@numba.njit(nogil=True)
def _query(  # type: ignore[no-untyped-def]
    include_self, row, s, t, w_span, w_self, w_sums, w_from, w_to, operations, ks, inverse,
    base, first, end, advanced, left, uppers, lowers, squares_high, squares_low,
    times, values, integers, floats, states, exact, exact_count,
):  # fmt: skip
    """Answer the windows that do (or do not) hold the event itself, for one row."""
    b, stop = base[s], base[s] + end[s]
    in_order = t >= advanced[s] and (end[s] == first[s] or times[stop - 1] <= t)
    if in_order:
        advanced[s] = t
    for j in range(len(w_span)):
        if w_self[j] != include_self:
            continue
        earliest = t - w_span[j]
        if in_order:
            edge = b + left[s, j]
            upper, lower = uppers[s, j], lowers[s, j]
            high, low = squares_high[s, j], squares_low[s, j]
            while edge < stop and times[edge] < earliest:
                if w_sums[j] > 0:
                    upper -= values[edge] >> 32
                    lower -= values[edge] & 0xFFFFFFFF
                if w_sums[j] > 1:
                    square = _square(values[edge])
                    high -= square[0] + (np.uint64(1) if low < square[1] else np.uint64(0))
                    low -= square[1]
                edge += 1
            left[s, j] = edge - b
            uppers[s, j], lowers[s, j] = upper, lower
            squares_high[s, j], squares_low[s, j] = high, low
            right = stop
        else:
            edge = _lower_bound(times, b + first[s], stop, earliest)
            right = _lower_bound(times, edge, stop, t + 1)
            upper, lower = np.int64(0), np.int64(0)
            high, low = np.uint64(0), np.uint64(0)
            if w_sums[j] > 0:
                for i in range(edge, right):
                    upper += values[i] >> 32
                    lower += values[i] & 0xFFFFFFFF
                    if w_sums[j] > 1:
                        square = _square(values[i])
                        low += square[1]
                        high += square[0] + (np.uint64(1) if low < square[1] else np.uint64(0))
        _answer(
            row, t, times, values, edge, right, upper, lower, high, low, w_from[j], w_to[j],
            operations, ks, inverse, integers, floats, states, exact, exact_count,
        )  # fmt: skip


@numba.njit(nogil=True)
def _evict(  # type: ignore[no-untyped-def]
    s, reach, w_sums, base, first, end, left, uppers, lowers, squares_high, squares_low, times, values
):  # fmt: skip
    """Drop what lies before ``reach``: no window can see it any more (contract C2)."""
    b = base[s]
    while first[s] < end[s] and times[b + first[s]] < reach:
        value = values[b + first[s]]
        for j in range(len(w_sums)):
            if left[s, j] == first[s]:
                if w_sums[j] > 0:
                    uppers[s, j] -= value >> 32
                    lowers[s, j] -= value & 0xFFFFFFFF
                if w_sums[j] > 1:
                    square = _square(value)
                    borrow = np.uint64(1) if squares_low[s, j] < square[1] else np.uint64(0)
                    squares_high[s, j] -= square[0] + borrow
                    squares_low[s, j] -= square[1]
                left[s, j] += 1
        first[s] += 1


@numba.njit(nogil=True)
def _insert(  # type: ignore[no-untyped-def]
    s, t, identity, value, w_sums, base, first, end, left, uppers, lowers, squares_high, squares_low,
    times, identities, values,
):  # fmt: skip
    """Put one event in its place by (time, identity); the caller has made room for it."""
    b, stop = base[s], base[s] + end[s]
    place = stop
    while place > b + first[s] and (
        times[place - 1] > t or (times[place - 1] == t and identities[place - 1] > identity)
    ):
        place -= 1
    for i in range(stop, place, -1):
        times[i], identities[i], values[i] = times[i - 1], identities[i - 1], values[i - 1]
    times[place], identities[place], values[place] = t, identity, value
    end[s] += 1
    for j in range(len(w_sums)):
        if place - b < left[s, j]:
            left[s, j] += 1
            continue
        if w_sums[j] > 0:
            uppers[s, j] += value >> 32
            lowers[s, j] += value & 0xFFFFFFFF
        if w_sums[j] > 1:
            square = _square(value)
            squares_low[s, j] += square[1]
            carry = np.uint64(1) if squares_low[s, j] < square[1] else np.uint64(0)
            squares_high[s, j] += square[0] + carry


@numba.njit(nogil=True)
def fold_and_query(  # type: ignore[no-untyped-def]
    start, slots, event_times, event_identities, actions, event_values, reaches,
    w_span, w_self, w_sums, w_from, w_to, operations, ks, inverse,
    base, capacity, first, end, advanced, left, uppers, lowers, squares_high, squares_low,
    times, identities, values, used, integers, floats, states, exact, exact_count,
):  # fmt: skip
    """Fold and answer the rows from ``start`` on, in order.

    Args:
        start: first row to do.
        slots: int64 [rows], slot of the row's key.
        event_times, reaches: int64 [rows], µs; what lies before the reach no window can see.
        event_identities: uint64 [rows], hash of the identity, the order within one microsecond.
        actions: uint8 [rows], FOLD and QUERY bits. event_values: int64 [rows], used where FOLD is set.
        w_span: int64 [windows], µs; a window at t holds times in [t − span, t]. w_self: whether with the event.
        w_sums: 0, 1 (sum) or 2 (sum and squares). w_from, w_to: range of its outputs.
        operations, ks: int64 [outputs]. inverse: 1 / scale.
        base … squares_low: state per slot, and per slot and window. times, identities, values: the arena.
        used: int64 [1], elements of the arena handed out.
        integers, floats, states: [outputs, rows], written. exact: int64 [room, 7] and its count.

    Returns:
        The row at which the arena or the room for exact records ran out, before touching it; else the number
        of rows. The caller makes room and calls again from there.
    """
    outputs = len(operations)
    for row in range(start, len(slots)):
        action = actions[row]
        if action == 0:
            continue
        s, t = slots[row], event_times[row]
        if action & QUERY and exact_count[0] + outputs > len(exact):
            return row
        if action & FOLD and end[s] == capacity[s]:
            live = end[s] - first[s]
            source = base[s] + first[s]
            if capacity[s] > 0 and first[s] * 2 >= capacity[s]:
                target = base[s]
            else:
                room = max(4, 2 * live)
                if used[0] + room > len(times):
                    return row
                target = used[0]
                used[0] += room
                base[s], capacity[s] = target, room
            for i in range(live):
                times[target + i] = times[source + i]
                identities[target + i] = identities[source + i]
                values[target + i] = values[source + i]
            for j in range(len(w_span)):
                left[s, j] -= first[s]
            first[s], end[s] = 0, live
        _evict(
            s, reaches[row], w_sums, base, first, end, left, uppers, lowers, squares_high, squares_low, times, values
        )  # fmt: skip
        for include_self in range(2):
            if include_self and action & FOLD and t >= reaches[row]:
                _insert(
                    s, t, event_identities[row], event_values[row], w_sums, base, first, end, left,
                    uppers, lowers, squares_high, squares_low, times, identities, values,
                )  # fmt: skip
            if action & QUERY:
                _query(
                    include_self, row, s, t, w_span, w_self, w_sums, w_from, w_to, operations, ks, inverse,
                    base, first, end, advanced, left, uppers, lowers, squares_high, squares_low,
                    times, values, integers, floats, states, exact, exact_count,
                )  # fmt: skip
    return len(slots)


@numba.njit(nogil=True)
def move_arena(base, capacity, first, end, left, source, target):  # type: ignore[no-untyped-def]
    """Copy every slot's live range into ``target`` (times, identities, values), with room to grow by half.

    Returns the number of elements handed out.
    """
    used = 0
    for s in range(len(base)):
        live = end[s] - first[s]
        room = live + (live >> 1) + 2 if live > 0 else 0
        for i in range(live):
            position = base[s] + first[s] + i
            target[0][used + i] = source[0][position]
            target[1][used + i] = source[1][position]
            target[2][used + i] = source[2][position]
        for j in range(left.shape[1]):
            left[s, j] -= first[s]
        base[s], capacity[s], first[s], end[s] = used, room, 0, live
        used += room
    return used


@numba.njit(nogil=True)
def advance_newest(slots, event_times, newest, lateness_us, longest_us, reaches, late):  # type: ignore[no-untyped-def]
    """Greatest event time per key, row by row; writes each row's reach and whether it is beyond grace.

    ``newest`` [slots] holds the greatest event time folded so far (−2^62 for none).
    """
    for row in range(len(slots)):
        s, t = slots[row], event_times[row]
        if s < 0:
            continue
        if t > newest[s]:
            newest[s] = t
        reaches[row] = newest[s] - lateness_us - longest_us
        late[row] = t < newest[s] - lateness_us


@numba.njit(nogil=True)
def sum_all(end, base, w_sums, values, uppers, lowers, squares_high, squares_low):  # type: ignore[no-untyped-def]
    """Sums over all retained events of every slot: a restored window begins at the first of them."""
    for s in range(len(end)):
        for i in range(base[s], base[s] + end[s]):
            square = _square(values[i])
            for j in range(len(w_sums)):
                if w_sums[j] > 0:
                    uppers[s, j] += values[i] >> 32
                    lowers[s, j] += values[i] & 0xFFFFFFFF
                if w_sums[j] > 1:
                    squares_low[s, j] += square[1]
                    carry = np.uint64(1) if squares_low[s, j] < square[1] else np.uint64(0)
                    squares_high[s, j] += square[0] + carry
