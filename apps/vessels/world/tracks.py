"""Tracks of many vessels at once: every call moves some of them one step on and notes what they did.

A track is a chain of segments, each with a constant speed and course, short enough (an hour of steaming) that a
straight line in degrees is as good as the great circle. Times are seconds from the beginning of the simulation and may
lie before it: what ended by then, or begins after the end, is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from apps.vessels.world.places import KM_PER_NAUTICAL_MILE, Floats, bearing, between, distance_km

Indices = npt.NDArray[np.int64]

PORT, TRANSIT, SEARCH, DRIFT, TOW, SET, HAUL, ENCIRCLE, PURSE, JIG = range(10)
ACTIVITIES = ("port", "transit", "search", "drift", "tow", "set", "haul", "encircle", "purse", "jig")
FISHING = np.isin(np.arange(len(ACTIVITIES)), (TOW, SET, HAUL, ENCIRCLE, PURSE, JIG))
"""By activity: whether gear is in the water or being brought in. Searching and soaking count as not fishing."""

HOUR_S = 3600.0
KM_PER_DEGREE = 111.195
LONGEST_S = HOUR_S


@dataclass(frozen=True, slots=True)
class Segments:
    """What vessels did, by (vessel, begin); arrays of one length.

    Attributes:
        vessel: its number; int64.
        begin_s, seconds: when, and how long; float64.
        latitude, longitude: degrees, at the beginning; longitudes may lie beyond ±180.
        north, east: degrees of latitude and longitude a second.
        knots, course: over ground; the course in degrees.
        activity: place in `ACTIVITIES`; int8.
    """

    vessel: Indices
    begin_s: Floats
    seconds: Floats
    latitude: Floats
    longitude: Floats
    north: Floats
    east: Floats
    knots: Floats
    course: Floats
    activity: npt.NDArray[np.int8]


class Tracks:
    """The vessels' present state, and the segments so far.

    Args:
        latitude, longitude: where each begins, degrees.
        begin_s: when; 0 or before.
        end_s: nothing is kept from there on.
        random: the generator of everything that is drawn.
    """

    def __init__(
        self, latitude: Floats, longitude: Floats, begin_s: Floats, end_s: float, random: np.random.Generator
    ) -> None:
        self.latitude, self.longitude, self.time_s = latitude.copy(), longitude.copy(), begin_s.copy()
        self.course = random.uniform(0, 360, len(latitude))
        self.end_s, self.random = end_s, random
        self._parts: list[tuple[Any, ...]] = []

    def active(self) -> Indices:
        """Vessels whose track has not reached the end."""
        return np.flatnonzero(self.time_s < self.end_s)

    def normal(self, of: Indices, mean: float, deviation: float, low: float, high: float) -> Floats:
        """A normal variate for each of some vessels, clipped to [low, high]."""
        return np.clip(self.random.normal(mean, deviation, len(of)), low, high)

    def solar_hour(self, of: Indices) -> Floats:
        """Local solar time, in hours from 0 to 24."""
        found: Floats = (self.time_s[of] / HOUR_S + self.longitude[of] / 15.0) % 24.0
        return found

    def leg(self, of: Indices, seconds: Any, knots: Any, course: Any, activity: int) -> None:
        """Keep one speed and course for a while, an hour at most; the course stays the vessel's."""
        if not len(of):
            return
        seconds, knots, course = (np.broadcast_to(value, of.shape).astype(float) for value in (seconds, knots, course))
        degrees_a_second = knots * KM_PER_NAUTICAL_MILE / HOUR_S / KM_PER_DEGREE
        north = degrees_a_second * np.cos(np.radians(course))
        east = degrees_a_second * np.sin(np.radians(course)) / np.cos(np.radians(self.latitude[of]))
        self.course[of] = course % 360.0
        self._note(of, seconds, north, east, knots, course % 360.0, activity)

    def wander(self, of: Indices, seconds: Any, step_s: float, knots: float, turn: float, activity: int) -> None:
        """Go on for ``seconds`` in steps, about ``knots`` fast, with a normal turn of deviation ``turn`` at each."""
        left = np.broadcast_to(seconds, of.shape).astype(float).copy()
        usual = self.normal(of, knots, knots * 0.12, knots * 0.6, knots * 1.5)
        while len(of):
            step = np.minimum(left, step_s * self.random.uniform(0.6, 1.4, len(of)))
            speed = np.maximum(usual + self.random.normal(0, 0.07 * knots, len(of)), 0.05)
            self.leg(of, step, speed, self.course[of] + self.random.normal(0, turn, len(of)), activity)
            left -= step
            on = (left > 1.0) & (self.time_s[of] < self.end_s)
            of, left, usual = of[on], left[on], usual[on]

    def drift(self, of: Indices, seconds: Any, knots: float, activity: int) -> None:
        """Drift with the current: slow, and the course turns slowly."""
        self.wander(of, seconds, 0.9 * HOUR_S, knots, 12.0, activity)

    def sail(self, of: Indices, latitude: Floats, longitude: Floats, knots: Floats, activity: int = TRANSIT) -> None:
        """Along the great circle to a place, in pieces of an hour at most."""
        if not len(of):
            return
        here = self.latitude[of], self.longitude[of]
        length_km = distance_km(*here, latitude, longitude)
        total_s = length_km / (knots * KM_PER_NAUTICAL_MILE) * HOUR_S
        pieces = np.maximum(np.ceil(total_s / LONGEST_S), 1).astype(np.int64)
        begin_s = self.time_s[of]
        first = np.clip(np.floor(-begin_s / total_s.clip(1e-9) * pieces), 0, pieces - 1).astype(np.int64)
        last = np.clip(np.ceil((self.end_s - begin_s) / total_s.clip(1e-9) * pieces), 1, pieces).astype(np.int64)
        count = np.maximum(last - first, 1)
        which = np.repeat(np.arange(len(of)), count)
        number = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + first[which]
        ends = [
            between(share / pieces[which], here[0][which], here[1][which], latitude[which], longitude[which])
            for share in (number, number + 1.0)
        ]
        seconds = (total_s / pieces)[which]
        step = (ends[1][1] - ends[0][1] + 180.0) % 360.0 - 180.0
        safe_s = np.maximum(seconds, 1e-9)
        course = bearing(*ends[0], *ends[1])
        kind = np.full(len(which), activity, np.int8)
        north, east = (ends[1][0] - ends[0][0]) / safe_s, step / safe_s
        began_s = begin_s[which] + number * seconds
        self._parts.append((of[which], began_s, seconds, *ends[0], north, east, knots[which], course, kind))
        self.latitude[of], self.longitude[of] = latitude, longitude
        self.time_s[of] = begin_s + total_s
        self.course[of] = course[np.cumsum(count) - 1]

    def stay(self, of: Indices, seconds: Any, activity: int = PORT) -> None:
        """Lie still."""
        seconds = np.broadcast_to(seconds, of.shape).astype(float)
        still = np.zeros(len(of))
        self._note(of, seconds, still, still, still, self.course[of], activity)

    def _note(
        self, of: Indices, seconds: Floats, north: Floats, east: Floats, knots: Floats, course: Floats, activity: int
    ) -> None:
        kind = np.full(len(of), activity, np.int8)
        here = self.latitude[of], self.longitude[of]
        self._parts.append((of.copy(), self.time_s[of], seconds, *here, north, east, knots, course, kind))
        self.latitude[of] += north * seconds
        self.longitude[of] += east * seconds
        self.time_s[of] += seconds

    def segments(self) -> Segments:
        """All of them, those outside the simulated time left out."""
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        kept = np.flatnonzero((columns[1] < self.end_s) & (columns[1] + columns[2] > 0) & (columns[2] > 0))
        order = kept[np.lexsort((columns[1][kept], columns[0][kept]))]
        return Segments(*(column[order] for column in columns))
