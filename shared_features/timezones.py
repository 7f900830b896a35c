"""Wall-clock time in named zones, from one pinned edition of the IANA data, the same on every machine.

The system's own zone files differ between machines; the ``tzdata`` package is pinned in the lock file, and its
edition is part of the fingerprint of every app that uses a zone.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import tzdata

from shared_features.errors import DefinitionError

EDITION: str = tzdata.IANA_VERSION
_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(/[A-Za-z0-9_+-]{1,32}){0,2}")
_FIRST_YEAR, _LAST_YEAR = 1970, 2101
_DAY_S = 86_400


@functools.cache
def _names() -> frozenset[str]:
    text = importlib.resources.files("tzdata").joinpath("zones").read_text("utf-8")
    return frozenset(text.split())


def check_zone(zone: str) -> None:
    """Raise DefinitionError unless ``zone`` is a name of the IANA data."""
    if not _NAME.fullmatch(zone) or zone not in _names():
        raise DefinitionError(f"time zone {zone!r} is unknown: wanted an IANA name such as 'America/New_York'")


@functools.cache
def _transitions(zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Instants (int64 µs UTC) from which an offset holds, and the offsets (int64 µs east of UTC).

    Found by asking the zone once a day and halving the days in which the offset changes: no zone changes
    twice and back within one day.
    """
    check_zone(zone)
    with importlib.resources.files("tzdata.zoneinfo").joinpath(*zone.split("/")).open("rb") as file:
        info = ZoneInfo.from_file(file, key=zone)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    def offset_s(at_s: int) -> int:
        offset = (epoch + timedelta(seconds=at_s)).astimezone(info).utcoffset()
        assert offset is not None
        return int(offset.total_seconds())

    end_s = int((datetime(_LAST_YEAR, 1, 1, tzinfo=UTC) - epoch).total_seconds())
    instants, offsets = [0], [offset_s(0)]
    for day_s in range(_DAY_S, end_s + 1, _DAY_S):
        while offset_s(day_s) != offsets[-1]:
            low, high = max(day_s - _DAY_S, instants[-1]), day_s
            while high - low > 1:
                middle = (low + high) // 2
                if offset_s(middle) == offsets[-1]:
                    low = middle
                else:
                    high = middle
            instants.append(high)
            offsets.append(offset_s(high))
    begins = np.array(instants, np.int64) * 1_000_000
    begins[0] = np.iinfo(np.int64).min  # the first offset holds for all that is before, too
    return begins, np.array(offsets, np.int64) * 1_000_000


def to_local_us(utc_us: np.ndarray, zone: str) -> np.ndarray:
    """Wall-clock microseconds since 1970-01-01 00:00 local, for instants in microseconds UTC.

    >>> to_local_us(np.array([1363561200_000_000]), "America/New_York") // 3_600_000_000 % 24
    array([19])
    """
    if zone == "UTC":
        return utc_us
    instants, offsets = _transitions(zone)
    local: np.ndarray = utc_us + offsets[instants.searchsorted(utc_us, "right") - 1]
    return local
