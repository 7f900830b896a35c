"""How each kind of vessel spends its time. The figures, and where they come from, are in docs/vessels.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from apps.vessels.world.places import GROUNDS, HOPS, PORTS, Floats, bearing, distance_km, place, route
from apps.vessels.world.tracks import (
    DRIFT,
    ENCIRCLE,
    HAUL,
    HOUR_S,
    JIG,
    PORT,
    PURSE,
    SEARCH,
    SET,
    TOW,
    TRANSIT,
    Indices,
    Tracks,
)

DAY_S = 24 * HOUR_S
MOST_WORK = 10_000


@dataclass(frozen=True, slots=True)
class Gear:
    """A kind of fishing vessel.

    Attributes:
        steaming_knots: between port and ground.
        trip_days, port_days: mean lengths.
        work: goes through one cycle of fishing with some vessels, wherever they are.
    """

    steaming_knots: float
    trip_days: float
    port_days: float
    work: Callable[[Tracks, Indices], None]


def _trawl(tracks: Tracks, of: Indices) -> None:
    """Steam a little, tow for some four hours nearly straight at 3.5 knots, haul, seldom wait."""
    tracks.wander(of, tracks.normal(of, 0.6, 0.4, 0.1, 2.5) * HOUR_S, 1500, 8.5, 20.0, TRANSIT)
    tracks.wander(of, tracks.normal(of, 3.9, 0.9, 1.5, 6.5) * HOUR_S, 1500, 3.5, 14.0, TOW)
    tracks.wander(of, tracks.normal(of, 0.4, 0.1, 0.2, 0.8) * HOUR_S, 700, 1.2, 30.0, HAUL)
    waits = of[tracks.random.random(len(of)) < 0.12]
    tracks.drift(waits, tracks.normal(waits, 3.0, 1.0, 1.0, 6.0) * HOUR_S, 0.7, DRIFT)


def _longline(tracks: Tracks, of: Indices) -> None:
    """Set the line for five hours at 8.5 knots, let it soak, haul it for eleven at 4, move on."""
    tracks.wander(of, tracks.normal(of, 5.2, 0.6, 4.0, 7.0) * HOUR_S, 2400, 8.5, 7.0, SET)
    tracks.drift(of, tracks.normal(of, 4.0, 0.8, 2.0, 6.0) * HOUR_S, 0.8, DRIFT)
    tracks.course[of] += 180.0
    tracks.wander(of, tracks.normal(of, 11.0, 1.2, 8.0, 15.0) * HOUR_S, 500, 4.0, 28.0, HAUL)
    tracks.wander(of, tracks.normal(of, 3.0, 1.5, 0.5, 7.0) * HOUR_S, 3000, 9.0, 12.0, TRANSIT)


def _seine(tracks: Tracks, of: Indices) -> None:
    """By day search at 12 knots and set round what is found; by night drift."""
    hour = tracks.solar_hour(of)
    night = of[(hour < 5.0) | (hour >= 18.5)]
    tracks.drift(night, ((29.0 - tracks.solar_hour(night)) % 24.0) * HOUR_S + 60, 0.7, DRIFT)
    day = of[(hour >= 5.0) & (hour < 18.5)]
    tracks.wander(day, tracks.normal(day, 3.2, 1.5, 0.5, 8.0) * HOUR_S, 1300, 12.0, 45.0, SEARCH)
    side = np.where(tracks.random.random(len(day)) < 0.5, 45.0, -45.0)
    for _ in range(8):  # a net of 1.5 to 2 km round the school, in some eight minutes
        tracks.leg(
            day,
            tracks.normal(day, 62, 6, 45, 90),
            tracks.normal(day, 8.5, 1.0, 6, 11),
            tracks.course[day] + side,
            ENCIRCLE,
        )
    tracks.drift(day, tracks.normal(day, 2.4, 0.6, 1.2, 4.5) * HOUR_S, 0.8, PURSE)


def _jig(tracks: Tracks, of: Indices) -> None:
    """By night drift at a sea anchor under lights; by day lie and drift, or move on."""
    hour = tracks.solar_hour(of)
    night = of[(hour < 5.0) | (hour >= 18.5)]
    tracks.drift(night, ((29.0 - tracks.solar_hour(night)) % 24.0) * HOUR_S + 60, 0.9, JIG)
    day = of[(hour >= 5.0) & (hour < 18.5)]
    moves = tracks.random.random(len(day)) < 0.45
    tracks.wander(day[moves], tracks.normal(day[moves], 3.0, 1.2, 0.5, 7.0) * HOUR_S, 2400, 9.0, 15.0, TRANSIT)
    rest = (18.6 - tracks.solar_hour(day)).clip(0.1, 14.0) * HOUR_S
    tracks.drift(day, rest, 0.5, DRIFT)


GEARS: Mapping[str, Gear] = {
    "trawler": Gear(9.5, 8.0, 2.0, _trawl),
    "drifting_longliner": Gear(10.0, 45.0, 5.0, _longline),
    "purse_seiner": Gear(12.0, 21.0, 4.0, _seine),
    "squid_jigger": Gear(10.0, 60.0, 5.0, _jig),
}


@dataclass(frozen=True, slots=True)
class Trade:
    """A kind of merchant ship: speed and its deviation in knots, mean hours in port."""

    knots: float
    deviation: float
    port_hours: float


TRADES: Mapping[str, Trade] = {
    "cargo": Trade(13.5, 2.4, 40.0),
    "tanker": Trade(12.0, 1.3, 50.0),
    "passenger": Trade(19.5, 2.5, 9.0),
}

ROUTES = 400
"""How many ways, there and back, ships go between two ports."""

USUAL_KM = 2500.0
"""Trade falls off with distance by this length."""


def fish(gear: str, vessels: int, end_s: float, random: np.random.Generator) -> Tracks:
    """Tracks of vessels of one fishing gear: at work on a ground, in port, or on the way."""
    kind, grounds = GEARS[gear], GROUNDS[gear]
    chosen = random.integers(0, len(grounds), vessels)
    middle = np.array([ground[:2] for ground in grounds])[chosen]
    radius_km = np.array([ground.radius_km for ground in grounds])[chosen]
    home = np.array([PORTS[ground.port] for ground in grounds])[chosen]
    in_port = random.random(vessels) < kind.port_days / (kind.port_days + kind.trip_days)
    at = np.where(in_port[:, None], home, _around(middle, radius_km, random))
    tracks = Tracks(at[:, 0], at[:, 1], random.uniform(-DAY_S, 0, vessels), end_s, random)
    trip_ends_s = random.exponential(kind.trip_days * DAY_S, vessels)
    if in_port.any():
        _visit(tracks, np.flatnonzero(in_port), kind, home, middle, radius_km, trip_ends_s)
    for _ in range(MOST_WORK):
        active = tracks.active()
        if not len(active):
            break
        done = tracks.time_s[active] >= trip_ends_s[active]
        returning = active[done]
        if len(returning):
            knots = tracks.normal(returning, kind.steaming_knots, 0.8, 6, 16)
            tracks.sail(returning, home[returning, 0], home[returning, 1], knots)
            _visit(tracks, returning, kind, home, middle, radius_km, trip_ends_s)
        working = active[~done]
        _turn_back(tracks, working, middle, radius_km)
        kind.work(tracks, working)
    return tracks


def _around(middle: Floats, radius_km: Floats, random: np.random.Generator) -> Floats:
    """A random place in each circle; degrees, shape [circles, 2]."""
    away_km, to = radius_km * np.sqrt(random.random(len(middle))), random.uniform(0, 2 * np.pi, len(middle))
    north = away_km * np.cos(to) / 111.195
    east = away_km * np.sin(to) / 111.195 / np.cos(np.radians(middle[:, 0]))
    return middle + np.stack([north, east], axis=1)


def _visit(
    tracks: Tracks, of: Indices, kind: Gear, home: Floats, middle: Floats, radius_km: Floats, trip_ends_s: Floats
) -> None:
    """Lie in port, go out to the ground; the next trip begins."""
    tracks.latitude[of], tracks.longitude[of] = home[of, 0], home[of, 1]
    tracks.stay(of, tracks.random.exponential(kind.port_days * DAY_S, len(of)) + HOUR_S, PORT)
    out = _around(middle[of], radius_km[of], tracks.random)
    tracks.sail(of, out[:, 0], out[:, 1], tracks.normal(of, kind.steaming_knots, 0.8, 6, 16))
    trip_ends_s[of] = tracks.time_s[of] + tracks.random.exponential(kind.trip_days * DAY_S, len(of))


def _turn_back(tracks: Tracks, of: Indices, middle: Floats, radius_km: Floats) -> None:
    """Vessels that have left their ground head for its middle."""
    here = tracks.latitude[of], tracks.longitude[of]
    there = middle[of, 0], middle[of, 1]
    away = distance_km(*here, *there) > radius_km[of]
    tracks.course[of[away]] = bearing(*here, *there)[away]


def trade(kind: str, vessels: int, end_s: float, random: np.random.Generator) -> Tracks:
    """Tracks of merchant ships: along the lanes from port to port."""
    ways, legs = _ways(kind)
    way = random.integers(0, len(ways), vessels)
    trade = TRADES[kind]
    knots = np.clip(random.normal(trade.knots, trade.deviation, vessels), 7.0, 27.0)
    began = ways[way, 0]
    length_s = _length_km(ways, legs)[way] / (knots * 1.852) * HOUR_S
    stay_s = random.exponential(trade.port_hours * HOUR_S, vessels) + HOUR_S
    # A ship is met at any moment of its voyage or of its time in port alike.
    begin_s = -random.random(vessels) * (length_s + stay_s)
    tracks = Tracks(began[:, 0], began[:, 1], begin_s, end_s, random)
    of = np.arange(vessels)
    tracks.stay(of, stay_s)
    for _ in range(MOST_WORK):
        for leg in range(1, ways.shape[1]):
            going = of[(legs[way[of]] > leg) & (tracks.time_s[of] < end_s)]
            if len(going):
                now = knots[going] + random.normal(0, 0.4, len(going))
                there = ways[way[going], leg]
                tracks.sail(going, there[:, 0], there[:, 1], now)
        of = tracks.active()
        if not len(of):
            break
        # Every way comes with its way back, next to it.
        way[of] ^= 1
        tracks.stay(of, random.exponential(trade.port_hours * HOUR_S, len(of)) + HOUR_S)
    return tracks


def _ways(kind: str) -> tuple[Floats, Indices]:
    """Places of every way, padded to one length, shape [ways, places, 2]; and how many each has."""
    pairs = HOPS if kind == "passenger" else _pairs()
    found = [[place(a), *route(a, b)] for one, other in pairs for a, b in ((one, other), (other, one))]
    legs = np.array([len(way) for way in found])
    ways = np.zeros((len(found), int(legs.max()), 2))
    for row, way in zip(ways, found, strict=True):
        row[: len(way)] = way
    return ways, legs


def _pairs() -> tuple[tuple[str, str], ...]:
    """Pairs of ports with trade between them, the same in every world; near ones more often."""
    draw, names = np.random.default_rng(17), sorted(PORTS)
    at = np.array([PORTS[name] for name in names])
    away_km = distance_km(at[:, None, 0], at[:, None, 1], at[None, :, 0], at[None, :, 1])
    one, other = np.triu_indices(len(names), 1)
    weight = np.exp(-away_km[one, other] / USUAL_KM)
    chosen = draw.choice(len(one), ROUTES // 2, replace=False, p=weight / weight.sum())
    return tuple((names[one[place]], names[other[place]]) for place in chosen)


def _length_km(ways: Floats, legs: Indices) -> Floats:
    steps = distance_km(ways[:, :-1, 0], ways[:, :-1, 1], ways[:, 1:, 0], ways[:, 1:, 1])
    found: Floats = np.where(np.arange(1, ways.shape[1]) < legs[:, None], steps, 0.0).sum(axis=1)
    return found
