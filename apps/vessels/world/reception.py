"""What a feed of AIS positions has of vessels' tracks: who is heard when, with which errors, and how late.

Vessels transmit at the intervals of ITU-R M.1371-5 (annex 1, tables 1 and 2). Near a port a station on shore hears
them, and the feed keeps at most one position every few minutes; elsewhere satellites pass by, each for some minutes,
and hear some of what is sent, much less of the weaker class B. Some vessels fall silent for hours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.vessels.world.places import PORTS, Floats, distance_km
from apps.vessels.world.tracks import DRIFT, FISHING, JIG, PORT, PURSE, Indices, Segments

SHORE_KM = 75.0
SHORE_S, MOORED_S = 120.0, 300.0
"""The feed's thinning near shore: seconds between the positions kept of a vessel under way, and of one moored."""

SHORE_SHARE = 0.85
PASS_S = 480.0
HEARD_A, HEARD_B = 13.6, 4.7
"""Mean number of positions of one vessel that a satellite's pass brings, class A and B."""

SILENT_SHARE = 0.03
"""Of vessels a day that are silent for 6 to 30 hours."""

NOT_AVAILABLE_SHARE, NO_POSITION_SHARE, JUMP_SHARE = 0.004, 0.0005, 0.0002
NO_SPEED, NO_COURSE, NO_LATITUDE, NO_LONGITUDE = 1023, 3600, 91.0, 181.0
"""What AIS sends where a value is not available: tenths of a knot and of a degree, degrees."""

DUPLICATE_SHARE = 0.01
DIRECT_SHARE = 0.6
"""Of what satellites hear: passed on at once. The rest waits for a ground station."""

DOWNLINK_S, LONGEST_DELAY_S = 2400.0, 4 * 3600.0
UNITS_PER_DEGREE = 600_000
"""AIS counts ten thousandths of a minute."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Positions as received, in no order; arrays of one length.

    Attributes:
        vessel: its number in the fleet; int32.
        time_s: of the position, whole seconds from the beginning; int32.
        delay_ms: until it was published; int32.
        latitude, longitude: in 1/600,000 degree, as AIS has them; int32.
        speed, course: tenths of a knot and of a degree; int16.
        activity: what the vessel did, the truth; place in `ACTIVITIES`; int8.
        satellite: whether a satellite heard it; bool.
        again: whether this is the second copy of a position; bool.
    """

    vessel: npt.NDArray[np.int32]
    time_s: npt.NDArray[np.int32]
    delay_ms: npt.NDArray[np.int32]
    latitude: npt.NDArray[np.int32]
    longitude: npt.NDArray[np.int32]
    speed: npt.NDArray[np.int16]
    course: npt.NDArray[np.int16]
    activity: npt.NDArray[np.int8]
    satellite: npt.NDArray[np.bool_]
    again: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.vessel)

    def take(self, rows: Any) -> Reports:
        """The reports at ``rows``, numbers or a slice."""
        return Reports(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[Reports]) -> Reports:
        """All of them, one after the other."""
        return Reports(
            *(np.concatenate([getattr(one, field.name) for one in parts]) for field in dataclasses.fields(Reports))
        )


def transmit_interval_s(knots: Floats, moored: Any, turning: Any, class_b: Any) -> Floats:
    """Seconds between the positions that a transponder sends (ITU-R M.1371-5, annex 1, tables 1 and 2).

    >>> transmit_interval_s(np.array([0.0, 10.0, 16.0, 25.0]), np.array([True, False, False, False]), False, False)
    array([180.,  10.,   6.,   2.])
    >>> transmit_interval_s(np.array([1.0, 5.0]), False, False, True)
    array([180.,  30.])
    """
    under_way = np.select(
        [knots < 14, knots <= 23], [np.where(turning, 10 / 3, 10.0), np.where(turning, 2.0, 6.0)], 2.0
    )
    class_a = np.where(moored & (knots <= 3), 180.0, under_way)
    found: Floats = np.where(class_b, np.where(knots <= 2, 180.0, 30.0), class_a)
    return found


def receive(
    segments: Segments, vessels: Indices, class_b: npt.NDArray[np.bool_], end_s: float, random: np.random.Generator
) -> Reports:
    """What is received of some vessels' tracks.

    Args:
        segments: of the vessels, numbered from 0.
        vessels: their numbers in the fleet.
        class_b: of each vessel.
        end_s: of the simulation.
        random: of everything that is drawn.
    """
    interval_s = transmit_interval_s(
        segments.knots, segments.activity == PORT, _turning(segments), class_b[segments.vessel]
    )
    shore = _near_shore(segments)
    key, satellite = _heard(segments, shore, interval_s, class_b, end_s, random)
    keys_begin = segments.vessel * _SPAN + (segments.begin_s + _BEFORE) * _TICKS
    # On the transponder's own beat.
    segment = np.searchsorted(keys_begin, key, side="right") - 1
    time_s = key % _SPAN // _TICKS - _BEFORE
    beat = interval_s[segment]
    phase = (vessels[segments.vessel[segment]] * 7.31) % beat
    time_s = np.clip(np.rint(np.floor((time_s - phase) / beat) * beat + phase), 0, end_s - 1).astype(np.int64)
    key, first = np.unique(segments.vessel[segment] * _SPAN + (time_s + _BEFORE) * _TICKS, return_index=True)
    segment = np.maximum(np.searchsorted(keys_begin, key, side="right") - 1, 0)
    satellite = satellite[first]
    time_s = key % _SPAN // _TICKS - _BEFORE
    vessel = key // _SPAN
    kept = ~_silent(vessel, time_s, len(vessels), end_s, random) & (segments.vessel[segment] == vessel)
    vessel, time_s, segment, satellite = vessel[kept], time_s[kept], segment[kept], satellite[kept]
    return _reports(segments, segment, vessels[vessel], time_s, satellite, random)


_TICKS = 8
_BEFORE = 400_000_000
_SPAN = 2**33 * _TICKS
"""Vessel and time in one int64 number: seconds from before any beginning, in eighths."""


def _turning(segments: Segments) -> npt.NDArray[np.bool_]:
    """Where the course differs by more than 5 degrees from the segment before."""
    change = np.abs((np.diff(segments.course, prepend=segments.course[:1]) + 180) % 360 - 180)
    found: npt.NDArray[np.bool_] = (change > 5) & (segments.seconds < 1800) & (segments.knots > 3)
    return found


def _near_shore(segments: Segments) -> npt.NDArray[np.bool_]:
    """Where a segment's middle is within reach of a station."""
    latitude = segments.latitude + segments.north * segments.seconds / 2
    longitude = segments.longitude + segments.east * segments.seconds / 2
    near = np.zeros(len(latitude), np.bool_)
    reach = SHORE_KM / 111.0
    for port in PORTS.values():
        rows = np.flatnonzero(np.abs(latitude - port.latitude) < reach)
        near[rows] |= distance_km(latitude[rows], longitude[rows], *np.array(port)[:, None]) < SHORE_KM
    return near


def _heard(
    segments: Segments,
    shore: npt.NDArray[np.bool_],
    interval_s: Floats,
    class_b: npt.NDArray[np.bool_],
    end_s: float,
    random: np.random.Generator,
) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Keys (vessel and time) of what is heard, and whether by satellite."""
    moored = segments.activity == PORT
    every_s = np.maximum(np.where(moored, MOORED_S, SHORE_S), interval_s)
    begin_s = np.maximum(segments.begin_s, 0)
    seconds = np.minimum(segments.begin_s + segments.seconds, end_s) - begin_s
    count = np.where(shore, np.floor(seconds / every_s + random.random(len(seconds))), 0).astype(np.int64)
    which = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    kept = random.random(len(which)) < SHORE_SHARE
    which, number = which[kept], number[kept]
    at_s = np.minimum(begin_s[which] + (number + random.random(len(which))) * every_s[which], end_s - 1)
    on_shore = segments.vessel[which] * _SPAN + ((at_s + _BEFORE) * _TICKS).astype(np.int64)

    # Polar orbits cross more often towards the poles.
    latitude = np.zeros(len(class_b))
    latitude[segments.vessel] = segments.latitude
    period_s = 60 * (8 + 42 * np.cos(np.radians(latitude)))
    passes = np.ceil(end_s / period_s).astype(np.int64) + 1
    vessel = np.repeat(np.arange(len(passes)), passes)
    number = np.arange(len(vessel)) - np.repeat(np.cumsum(passes) - passes, passes)
    begin = (number - random.random(len(passes))[vessel] + 0.3 * random.random(len(vessel))) * period_s[vessel]
    heard = random.poisson(np.where(class_b, HEARD_B, HEARD_A)[vessel])
    vessel, begin = np.repeat(vessel, heard), np.repeat(begin, heard)
    at_s = begin + random.random(len(vessel)) * PASS_S
    inside = (at_s >= 0) & (at_s < end_s)
    from_space = (vessel * _SPAN + ((at_s + _BEFORE) * _TICKS).astype(np.int64))[inside]
    keys_begin = segments.vessel * _SPAN + (segments.begin_s + _BEFORE) * _TICKS
    segment = np.maximum(np.searchsorted(keys_begin, from_space, side="right") - 1, 0)
    from_space = from_space[~shore[segment]]  # where there are stations nobody buys from space
    return np.concatenate([on_shore, from_space]), np.repeat([False, True], [len(on_shore), len(from_space)])


def _silent(
    vessel: Indices, time_s: Indices, vessels: int, end_s: float, random: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Where a vessel is silent: each has at most one silence in ten days."""
    share = min(1.0, SILENT_SHARE * max(end_s / 86_400, 1.0))
    begin = np.where(random.random(vessels) < share, random.uniform(-21_600, end_s, vessels), np.inf)
    end = begin + random.uniform(6, 30, vessels) * 3600
    found: npt.NDArray[np.bool_] = (time_s >= begin[vessel]) & (time_s < end[vessel])
    return found


def _reports(
    segments: Segments,
    segment: Indices,
    vessel: Indices,
    time_s: Indices,
    satellite: npt.NDArray[np.bool_],
    random: np.random.Generator,
) -> Reports:
    rows = len(segment)
    since_s = time_s - segments.begin_s[segment]
    latitude = segments.latitude[segment] + segments.north[segment] * since_s
    longitude = segments.longitude[segment] + segments.east[segment] * since_s
    latitude += random.normal(0, 5e-5, rows)  # 5 m
    longitude += random.normal(0, 5e-5, rows)
    jumps = np.flatnonzero(random.random(rows) < JUMP_SHARE)
    latitude[jumps] += random.uniform(2, 8, len(jumps)) * random.choice([-1, 1], len(jumps))
    longitude = (longitude + 180.0) % 360.0 - 180.0
    lost = np.flatnonzero(random.random(rows) < NO_POSITION_SHARE)
    latitude = np.clip(latitude, -90, 90)
    latitude[lost], longitude[lost] = NO_LATITUDE, NO_LONGITUDE
    activity = segments.activity[segment]
    # What a vessel that hardly moves tells of its course is noise.
    knots = segments.knots[segment]
    speed = np.rint(np.maximum(knots + random.normal(0, 0.13, rows), 0) * 10).astype(np.int16)
    idle = np.isin(activity, (PORT, DRIFT, JIG, PURSE))
    spread = np.where(idle, 60.0 / (0.6 + knots), 3.0 + 12.0 / (1.0 + knots))
    course = segments.course[segment] + random.normal(0, 1, rows) * spread
    course_tenths = (np.rint(course * 10) % 3600).astype(np.int16)
    unknown = np.flatnonzero(random.random(rows) < NOT_AVAILABLE_SHARE)
    speed[unknown], course_tenths[unknown] = NO_SPEED, NO_COURSE
    delay_ms = random.uniform(400, 5_000, rows)
    waits = satellite & (random.random(rows) >= DIRECT_SHARE)
    delay_ms[satellite] += random.uniform(5_000, 90_000, int(satellite.sum()))
    delay_ms[waits] += np.minimum(random.exponential(DOWNLINK_S, int(waits.sum())), LONGEST_DELAY_S) * 1000
    found = Reports(
        vessel.astype(np.int32),
        time_s.astype(np.int32),
        delay_ms.astype(np.int32),
        np.rint(latitude * UNITS_PER_DEGREE).astype(np.int32),
        np.rint(longitude * UNITS_PER_DEGREE).astype(np.int32),
        speed,
        course_tenths,
        activity,
        satellite,
        np.zeros(rows, np.bool_),
    )
    copied = found.take(np.flatnonzero(random.random(rows) < DUPLICATE_SHARE))
    late_ms = random.uniform(500, 600_000, len(copied)).astype(np.int32)
    copied = dataclasses.replace(copied, delay_ms=copied.delay_ms + late_ms, again=np.ones(len(copied), np.bool_))
    return Reports.concatenate([found, copied])


def is_fishing(reports: Reports) -> npt.NDArray[np.bool_]:
    """The truth."""
    found: npt.NDArray[np.bool_] = FISHING[reports.activity]
    return found
