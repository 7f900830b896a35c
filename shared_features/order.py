"""Which rows come in the order of their time, key by key: what folds that go forward only ask."""

from __future__ import annotations

import numpy as np


def in_order(groups: np.ndarray, times: np.ndarray, newest: np.ndarray) -> np.ndarray:
    """Which rows are not older than the newest one of their group before them.

    Args:
        groups: int64 [rows], whose row it is; in any order.
        times: int64 [rows].
        newest: int64 [rows], the newest time of the row's group before the first of these rows.

    Returns:
        bool [rows].

    >>> in_order(np.array([7, 7, 8, 7]), np.array([5, 3, 1, 5]), np.array([0, 0, 2, 0])).tolist()
    [True, False, False, True]
    """
    found: np.ndarray = times >= newest
    if len(groups) > 1:
        order = np.argsort(groups, kind="stable")
        _, ranks = np.unique(times[order], return_inverse=True)
        begins = np.cumsum(np.diff(groups[order], prepend=groups[order][:1]) != 0)
        place = begins * (len(groups) + 1) + ranks  # compares as time does within a group, and cannot overflow
        found[order] &= place >= np.maximum.accumulate(place)
    return found
