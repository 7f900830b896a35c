"""What a fold that goes forward only asks of rows in order, key by key: is the row in time, and what does it switch."""

from __future__ import annotations

from shared_features.machine_code import kept


@kept("void(int64[::1], int64[::1], int64[::1], bool[::1])")
def in_order(slots, times, newest, found):  # type: ignore[no-untyped-def]
    """Which rows are not older than the newest one of their slot before them.

    Args:
        slots: int64 [rows], whose row it is.
        times: int64 [rows].
        newest: int64 [slots], the newest time of each; moved on, in place.
        found: bool [rows], written.

    >>> import numpy as np
    >>> newest, found = np.array([0, 2]), np.empty(4, bool)
    >>> in_order(np.array([0, 0, 1, 0]), np.array([5, 3, 1, 5]), newest, found)
    >>> found.tolist(), newest.tolist()
    ([True, False, False, True], [5, 2])
    """
    for row in range(len(slots)):
        found[row] = times[row] >= newest[slots[row]]
        if found[row]:
            newest[slots[row]] = times[row]


@kept("void(int64[::1], bool[::1], bool[::1], bool[::1], bool[::1])")
def switch(slots, starts, ends, on, started):  # type: ignore[no-untyped-def]
    """Hysteresis: what is off is switched on by a row that starts, what is on is switched off by one that ends.

    Args:
        slots: int64 [rows], whose row it is.
        starts: bool [rows]; afterwards whether the row has switched.
        ends: bool [rows].
        on: bool [slots], moved on, in place.
        started: bool [rows], written: whether it is on after the row.

    >>> import numpy as np
    >>> starts, on, started = np.array([True, True, False, True]), np.array([False]), np.empty(4, bool)
    >>> switch(np.zeros(4, np.int64), starts, np.array([False, False, True, True]), on, started)
    >>> starts.tolist(), started.tolist()
    ([True, False, True, True], [True, True, False, True])
    """
    for row in range(len(slots)):
        slot = slots[row]
        starts[row] = ends[row] if on[slot] else starts[row]
        if starts[row]:
            on[slot] = not on[slot]
        started[row] = on[slot]
