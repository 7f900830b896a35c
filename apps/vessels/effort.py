"""Hours of fishing: what each position stands for, and what cells of a grid had.

A position stands for half the time since the vessel's position before it and half the time until the next one (Kroodsma
et al., Tracking the global footprint of fisheries, Science 359, 2018); beyond a gap of `LONGEST_GAP_US` nothing is
assumed. Times are whole microseconds and are halved last, so sums do not depend on any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FISHING = 0.5
"""Probability from which a vessel counts as fishing."""

LONGEST_GAP_US = 24 * 3_600_000_000
HALF_US_PER_HOUR = 2 * 3_600_000_000


def fishing_hours(positions: pa.Table) -> npt.NDArray[np.float64]:
    """Hours that each position stands for, 0 where the vessel is not fishing; float64, shape [rows].

    Args:
        positions: ``key``, ``time_us`` (int64) and ``probability`` (null is not fishing), in any order; one row a
            position.
    """
    fishing = pc.fill_null(pc.greater_equal(positions["probability"], FISHING), False)
    return np.where(fishing.to_numpy(zero_copy_only=False), half_us(positions) / HALF_US_PER_HOUR, 0.0)


def half_us(positions: pa.Table) -> npt.NDArray[np.int64]:
    """Twice the microseconds that each position stands for; int64, shape [rows]."""
    by = [("key", "ascending"), ("time_us", "ascending")]
    order = pc.sort_indices(positions.select(["key", "time_us"]), sort_keys=by).to_numpy()
    times = positions["time_us"].to_numpy()[order]
    keys = positions["key"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)[order]
    found = np.empty(len(times), np.int64)
    found[order] = half_us_of(keys, times)
    return found


def half_us_of(keys: npt.NDArray[Any], times_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`half_us` of positions that are sorted by key, then by time."""
    gaps = np.diff(times_us)
    gaps = np.where((keys[1:] == keys[:-1]) & (gaps <= LONGEST_GAP_US), gaps, 0)
    found: npt.NDArray[np.int64] = np.append(gaps, 0) + np.insert(gaps, 0, 0)
    return found


def on_grid(positions: pa.Table, hours: npt.NDArray[np.float64], degrees: float) -> pa.Table:
    """Hours by cell: ``latitude`` and ``longitude`` of the cell's middle, ``hours``; cells without any left out."""
    cells = {}
    for name in ("latitude", "longitude"):
        values = positions[name].to_numpy()
        cells[name] = (np.floor(values / degrees) + 0.5) * degrees
    table = pa.table({**cells, "hours": hours}).filter(pa.array((hours > 0) & np.isfinite(cells["latitude"])))
    found = table.group_by(["latitude", "longitude"]).aggregate([("hours", "sum")])
    order = [("latitude", "ascending"), ("longitude", "ascending")]
    return found.sort_by(order).rename_columns(["latitude", "longitude", "hours"])
