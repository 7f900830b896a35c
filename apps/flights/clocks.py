"""From clock times at an airport to instants, in whole columns.

The zones come from the pinned IANA data of `shared_features.timezones`, never from the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shared_features.timezones import to_local_us

Int64s: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 86_400_000_000

NEW_YORK = "America/New_York"
"""Zone of the three origins and of the clock columns of the weather."""

UNLISTED_ZONES: Mapping[str, str] = {
    "BQN": "America/Puerto_Rico",
    "PSE": "America/Puerto_Rico",
    "SJU": "America/Puerto_Rico",
    "STT": "America/St_Thomas",
}
"""Destinations that the package's table of airports leaves out, with their IANA zones."""


def minutes_of_day(clock: Int64s) -> Int64s:
    """Minutes since midnight of clock times written HHMM; 2400 gives 1440.

    >>> minutes_of_day(np.array([5, 517, 2400]))
    array([   5,  317, 1440])
    """
    return clock // 100 * 60 + clock % 100


def local_day_us(year: Int64s, month: Int64s, day: Int64s) -> Int64s:
    """Wall-clock microseconds since 1970-01-01 00:00 local at which the given local days begin."""
    months = (year - 1970) * 12 + month - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return (first + day - 1) * DAY_US


def clock_minutes(instant_us: Int64s, zone: str) -> Int64s:
    """Minutes since midnight that a clock in ``zone`` shows at the given instants (µs UTC), 0 to 1439."""
    return to_local_us(instant_us, zone) % DAY_US // MINUTE_US


def to_instant_us(local_us: Int64s, zone: str) -> tuple[Int64s, Bools]:
    """Instants (µs UTC) of wall-clock times (µs since 1970-01-01 00:00 local) in ``zone``.

    Returns the instants, and where the answer was a choice: of a time that the clock shows twice the first is
    taken, a time that it skips is read with the offset before the gap (PEP 495, ``fold=0``). Zones may change
    their offset at most once in two days.

    >>> noon_of_july_the_first_us = 15_887 * DAY_US + 12 * HOUR_US
    >>> to_instant_us(np.array([noon_of_july_the_first_us]), NEW_YORK)[0] // HOUR_US % 24
    array([16])
    """
    before = to_local_us(local_us - DAY_US, zone) - (local_us - DAY_US)
    after = to_local_us(local_us + DAY_US, zone) - (local_us + DAY_US)
    first, second = local_us - before, local_us - after
    first_fits = to_local_us(first, zone) == local_us
    second_fits = to_local_us(second, zone) == local_us
    instants = np.where(first_fits | ~second_fits, first, second)
    return instants, (before != after) & (first_fits == second_fits)


def next_instant_us(after_us: Int64s, minutes: Int64s, zone: str) -> tuple[Int64s, Bools]:
    """First instants (µs UTC) later than ``after_us`` at which a clock in ``zone`` shows ``minutes``.

    ``minutes`` are those since midnight. Returns also where the answer was a choice, as `to_instant_us` does.
    """
    midnight = to_local_us(after_us, zone) // DAY_US * DAY_US
    today, today_chosen = to_instant_us(midnight + minutes * MINUTE_US, zone)
    tomorrow, tomorrow_chosen = to_instant_us(midnight + DAY_US + minutes * MINUTE_US, zone)
    later = today > after_us
    return np.where(later, today, tomorrow), np.where(later, today_chosen, tomorrow_chosen)
