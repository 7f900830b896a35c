"""Where vessels go: real ports, fishing grounds, and the sea lanes that join them.

Positions are those of harbour entrances and open water, to about a tenth of a degree. Grounds and lanes are drawn by
hand from atlases: they say roughly where such fleets work and which way ships go, not where any ship was. A route is
the shortest way along the lanes, each leg a great circle.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

EARTH_RADIUS_KM = 6371.0088
KM_PER_NAUTICAL_MILE = 1.852


class Place(NamedTuple):
    """Degrees north and east."""

    latitude: float
    longitude: float


class Ground(NamedTuple):
    """Where a fleet works: its middle, how far it goes from there, and the port it comes from."""

    latitude: float
    longitude: float
    radius_km: float
    port: str


PORTS: Mapping[str, Place] = {
    # Atlantic, north
    "Rotterdam": Place(52.0, 3.9), "Hamburg": Place(54.0, 8.2), "Antwerp": Place(51.5, 3.2),
    "Le Havre": Place(49.6, -0.1), "Algeciras": Place(36.0, -5.4), "Lisbon": Place(38.6, -9.4),
    "Vigo": Place(42.15, -8.95), "Peterhead": Place(57.5, -1.6), "Reykjavik": Place(64.2, -22.1),
    "Tromso": Place(70.3, 18.6), "Murmansk": Place(69.4, 33.6), "New York": Place(40.4, -73.8),
    "Norfolk": Place(36.9, -75.8), "New Bedford": Place(41.4, -70.9), "Halifax": Place(44.5, -63.5),
    "St Johns": Place(47.5, -52.6), "Savannah": Place(31.9, -80.7), "Houston": Place(29.2, -94.6),
    "New Orleans": Place(28.8, -89.4), "Colon": Place(9.5, -79.9), "Kingston": Place(17.8, -76.8),
    # Mediterranean and Black Sea
    "Barcelona": Place(41.3, 2.3), "Genoa": Place(44.3, 8.9), "Piraeus": Place(37.8, 23.6),
    "Port Said": Place(31.5, 32.4),
    # Atlantic, south
    "Santos": Place(-24.2, -46.3), "Buenos Aires": Place(-35.3, -56.0), "Mar del Plata": Place(-38.1, -57.4),
    "Montevideo": Place(-35.1, -56.2), "Puerto Madryn": Place(-42.8, -64.5), "Lagos": Place(6.2, 3.4),
    "Abidjan": Place(5.1, -4.0), "Dakar": Place(14.6, -17.6), "Las Palmas": Place(28.1, -15.3),
    "Nouadhibou": Place(20.7, -17.2), "Walvis Bay": Place(-22.9, 14.3), "Cape Town": Place(-33.9, 18.2),
    # Indian Ocean
    "Suez": Place(29.7, 32.55), "Jeddah": Place(21.4, 39.0), "Fujairah": Place(25.3, 56.5),
    "Ras Tanura": Place(26.9, 50.3), "Mumbai": Place(18.8, 72.6), "Kochi": Place(9.9, 76.0),
    "Colombo": Place(6.9, 79.7), "Chennai": Place(13.1, 80.5), "Chittagong": Place(21.9, 91.6),
    "Victoria": Place(-4.5, 55.6), "Durban": Place(-29.9, 31.2), "Fremantle": Place(-32.0, 115.5),
    "Port Hedland": Place(-20.1, 118.5),
    # Pacific, west
    "Singapore": Place(1.2, 104.0), "Laem Chabang": Place(12.9, 100.7), "Ho Chi Minh City": Place(10.1, 107.2),
    "Manila": Place(14.3, 120.4), "General Santos": Place(5.6, 125.0), "Hong Kong": Place(22.0, 114.3),
    "Kaohsiung": Place(22.5, 120.2), "Zhoushan": Place(29.8, 122.8), "Shanghai": Place(31.0, 122.6),
    "Qingdao": Place(35.8, 120.7), "Busan": Place(34.9, 129.2), "Yokohama": Place(34.9, 139.7),
    "Hachinohe": Place(40.6, 141.8), "Vladivostok": Place(42.8, 131.9), "Darwin": Place(-12.2, 130.6),
    "Brisbane": Place(-26.9, 153.5), "Sydney": Place(-33.9, 151.5), "Auckland": Place(-36.4, 175.0),
    "Nelson": Place(-40.8, 173.2), "Suva": Place(-18.3, 178.4), "Rabaul": Place(-4.1, 152.3),
    "Majuro": Place(7.0, 171.2), "Honolulu": Place(21.2, -157.9),
    # Pacific, east
    "Dutch Harbor": Place(54.1, -166.4), "Kodiak": Place(57.6, -152.0), "Vancouver": Place(48.5, -124.8),
    "Oakland": Place(37.7, -122.8), "Long Beach": Place(33.6, -118.2), "Manzanillo": Place(18.9, -104.4),
    "Balboa": Place(8.6, -79.5), "Manta": Place(-0.8, -80.9), "Callao": Place(-12.1, -77.3),
    "Chimbote": Place(-9.1, -78.8), "Valparaiso": Place(-33.0, -71.8),
}  # fmt: skip

CROSSINGS: Mapping[str, Place] = {
    "Dover": Place(51.0, 1.4), "Ushant": Place(48.8, -5.9), "Finisterre": Place(43.3, -9.9),
    "St Vincent": Place(36.8, -9.4), "Gibraltar": Place(35.95, -5.8), "Alboran": Place(36.3, -2.0),
    "Sicily": Place(37.3, 11.0), "South of Crete": Place(34.3, 24.0), "Mid Atlantic": Place(44.0, -40.0),
    "Bab el Mandeb": Place(12.6, 43.3), "Gulf of Aden": Place(12.5, 50.0), "Ras al Hadd": Place(22.8, 60.2),
    "Hormuz": Place(26.3, 56.7), "Dondra Head": Place(5.6, 80.6), "Banda Aceh": Place(6.2, 94.8),
    "Malacca": Place(3.2, 100.4), "Natuna": Place(5.5, 109.5), "Paracel": Place(15.0, 113.3),
    "Taiwan Strait": Place(24.5, 119.3), "Luzon Strait": Place(20.5, 121.3), "Korea Strait": Place(34.0, 128.0),
    "Osumi": Place(30.8, 131.0), "Tsugaru": Place(41.5, 141.6), "North Pacific": Place(48.0, -175.0),
    "Unimak": Place(53.9, -165.5), "Good Hope": Place(-35.2, 18.0), "Madagascar": Place(-27.5, 48.5),
    "Cape Verde": Place(15.0, -18.5), "Gulf of Guinea": Place(3.5, -6.0), "Cabo Frio": Place(-23.5, -41.0),
    "Recife": Place(-7.5, -34.0), "Florida": Place(24.3, -81.5), "Windward": Place(20.0, -74.0),
    "Hatteras": Place(35.0, -74.5), "Sunda": Place(-6.6, 104.8), "Lombok": Place(-9.2, 115.6),
    "Torres": Place(-10.5, 142.5), "Coral Sea": Place(-15.0, 150.0), "Bass": Place(-39.2, 148.5),
    "Leeuwin": Place(-35.0, 114.5), "Galapagos way": Place(5.0, -85.0), "Otranto": Place(36.2, 18.5),
    "Skagen": Place(58.0, 6.5), "North Cape": Place(71.6, 25.0), "Solomon": Place(-12.0, 160.5),
}  # fmt: skip

LANES: tuple[tuple[str, ...], ...] = (
    ("Hamburg", "Rotterdam", "Antwerp", "Dover", "Le Havre", "Ushant", "Finisterre", "Vigo", "Lisbon", "St Vincent"),
    ("St Vincent", "Gibraltar", "Algeciras", "Alboran", "Sicily", "Otranto", "South of Crete", "Port Said", "Suez"),
    ("Suez", "Jeddah", "Bab el Mandeb", "Gulf of Aden", "Dondra Head", "Banda Aceh", "Malacca", "Singapore"),
    ("Alboran", "Barcelona", "Genoa"), ("Otranto", "Piraeus"), ("South of Crete", "Piraeus"),
    ("Gulf of Aden", "Ras al Hadd", "Fujairah", "Hormuz", "Ras Tanura"), ("Ras al Hadd", "Mumbai", "Kochi", "Colombo"),
    ("Colombo", "Dondra Head", "Chennai", "Chittagong"), ("Fujairah", "Dondra Head"),
    ("Singapore", "Natuna", "Paracel", "Hong Kong", "Taiwan Strait", "Shanghai", "Qingdao"),
    ("Natuna", "Ho Chi Minh City"), ("Singapore", "Laem Chabang"), ("Paracel", "Manila"), ("Hong Kong", "Kaohsiung"),
    ("Kaohsiung", "Luzon Strait", "Hong Kong"), ("Shanghai", "Zhoushan"), ("Shanghai", "Korea Strait", "Busan"),
    ("Shanghai", "Osumi", "Yokohama"), ("Busan", "Osumi"), ("Luzon Strait", "Osumi"), ("Manila", "Luzon Strait"),
    ("Yokohama", "Hachinohe", "Tsugaru", "North Pacific", "Unimak", "Vancouver"), ("Tsugaru", "Vladivostok"),
    ("Unimak", "Oakland"), ("Vancouver", "Oakland", "Long Beach", "Manzanillo", "Galapagos way", "Balboa", "Colon"),
    ("Yokohama", "Honolulu", "Long Beach"), ("Honolulu", "Oakland"), ("Unimak", "Dutch Harbor"),
    ("Vancouver", "Kodiak", "Unimak"), ("Galapagos way", "Manta", "Chimbote", "Callao", "Valparaiso"),
    ("Colon", "Kingston", "Windward", "Hatteras", "New York"), ("Windward", "Savannah", "Hatteras", "Norfolk"),
    ("Kingston", "Florida", "New Orleans", "Houston"), ("Florida", "Savannah"), ("Norfolk", "New York"),
    ("New York", "New Bedford", "Halifax", "St Johns", "Mid Atlantic", "Ushant"), ("Hatteras", "Mid Atlantic"),
    ("New York", "Mid Atlantic", "Finisterre"), ("Windward", "St Vincent"), ("Recife", "Kingston"),
    ("St Vincent", "Las Palmas", "Nouadhibou", "Dakar", "Cape Verde", "Recife", "Cabo Frio", "Santos"),
    ("Santos", "Montevideo", "Buenos Aires"), ("Montevideo", "Mar del Plata", "Puerto Madryn"),
    ("Cape Verde", "Gulf of Guinea", "Abidjan", "Lagos"), ("Gulf of Guinea", "Walvis Bay", "Cape Town", "Good Hope"),
    ("Cabo Frio", "Good Hope", "Durban", "Madagascar", "Sunda"), ("Durban", "Victoria", "Gulf of Aden"),
    ("Cape Verde", "Walvis Bay"), ("Victoria", "Dondra Head"), ("Madagascar", "Dondra Head"),
    ("Sunda", "Singapore"), ("Sunda", "Leeuwin", "Fremantle"), ("Lombok", "Port Hedland", "Fremantle"),
    ("Lombok", "Darwin", "Torres", "Coral Sea", "Brisbane", "Sydney", "Bass"), ("Leeuwin", "Bass"),
    ("Sydney", "Auckland", "Suva", "Honolulu"), ("Coral Sea", "Solomon", "Majuro"), ("Solomon", "Rabaul"),
    ("Auckland", "Nelson"), ("Osumi", "Rabaul"), ("General Santos", "Rabaul"), ("General Santos", "Luzon Strait"),
    ("Majuro", "Yokohama"), ("Suva", "Solomon"), ("Rotterdam", "Peterhead", "Reykjavik", "St Johns"),
    ("Hamburg", "Skagen", "Tromso", "North Cape", "Murmansk"), ("Peterhead", "Skagen"),
    ("Auckland", "Balboa"), ("Honolulu", "Majuro"), ("Lombok", "General Santos"),
)  # fmt: skip

GROUNDS: Mapping[str, tuple[Ground, ...]] = {
    "trawler": (
        Ground(56.0, 3.5, 180, "Peterhead"), Ground(58.8, 0.8, 120, "Peterhead"), Ground(72.8, 28.0, 200, "Tromso"),
        Ground(71.0, 40.0, 180, "Murmansk"), Ground(65.2, -26.0, 120, "Reykjavik"),
        Ground(41.6, -67.5, 120, "New Bedford"), Ground(45.5, -51.0, 160, "St Johns"),
        Ground(43.2, -9.7, 60, "Vigo"), Ground(20.0, -18.0, 100, "Nouadhibou"),
        Ground(-45.5, -62.5, 200, "Puerto Madryn"), Ground(-40.5, -57.0, 120, "Mar del Plata"),
        Ground(-23.5, 13.2, 100, "Walvis Bay"), Ground(-35.8, 20.5, 90, "Cape Town"),
        Ground(57.5, -172.5, 250, "Dutch Harbor"), Ground(56.8, -154.5, 90, "Kodiak"),
        Ground(-43.5, 177.5, 150, "Auckland"), Ground(30.8, 124.2, 170, "Zhoushan"),
        Ground(35.6, 123.0, 110, "Qingdao"), Ground(20.6, 112.5, 130, "Hong Kong"),
        Ground(9.2, 107.9, 120, "Ho Chi Minh City"), Ground(20.3, 71.3, 90, "Mumbai"),
        Ground(40.9, 142.4, 50, "Hachinohe"), Ground(41.0, 132.5, 110, "Vladivostok"),
    ),
    "drifting_longliner": (
        Ground(18.0, -158.0, 800, "Honolulu"), Ground(2.0, -165.0, 900, "Majuro"), Ground(-8.0, 172.0, 700, "Suva"),
        Ground(-18.0, -172.0, 700, "Suva"), Ground(25.0, 140.5, 600, "Kaohsiung"),
        Ground(33.0, 160.0, 700, "Yokohama"), Ground(-10.0, 72.0, 800, "Colombo"),
        Ground(-22.0, 62.0, 600, "Victoria"), Ground(-28.0, 92.0, 700, "Fremantle"),
        Ground(4.0, -25.0, 700, "Dakar"), Ground(-25.0, -20.0, 800, "Cape Town"), Ground(38.0, -45.0, 600, "Vigo"),
        Ground(-12.0, -105.0, 900, "Callao"), Ground(6.0, -115.0, 700, "Manta"),
    ),
    "purse_seiner": (
        Ground(2.5, 160.0, 700, "Majuro"), Ground(-1.0, 150.0, 150, "Rabaul"),
        Ground(4.0, 132.0, 350, "General Santos"), Ground(-1.0, 51.0, 500, "Victoria"),
        Ground(-2.0, -9.0, 500, "Abidjan"), Ground(-2.0, -92.0, 600, "Manta"),
        Ground(9.0, -103.0, 500, "Manzanillo"), Ground(-9.5, -80.0, 90, "Chimbote"),
        Ground(-12.8, -78.3, 70, "Callao"), Ground(63.0, 3.0, 150, "Tromso"), Ground(33.5, 127.0, 80, "Busan"),
        Ground(29.0, -12.5, 60, "Las Palmas"),
    ),
    "squid_jigger": (
        Ground(-45.8, -60.3, 150, "Montevideo"), Ground(-18.0, -80.5, 350, "Callao"),
        Ground(-1.0, -98.0, 300, "Manta"), Ground(39.5, 133.8, 150, "Busan"), Ground(41.5, 152.0, 400, "Hachinohe"),
        Ground(15.5, 61.5, 350, "Zhoushan"), Ground(-41.0, 170.5, 80, "Nelson"),
    ),
}  # fmt: skip
"""Fishing grounds by gear."""

HOPS: tuple[tuple[str, str], ...] = (
    ("Barcelona", "Genoa"), ("Algeciras", "Barcelona"), ("Rotterdam", "Le Havre"), ("Hamburg", "Peterhead"),
    ("Kingston", "Colon"), ("Kaohsiung", "Hong Kong"), ("Busan", "Shanghai"), ("Honolulu", "Majuro"),
    ("Vancouver", "Kodiak"), ("Sydney", "Brisbane"), ("Piraeus", "Port Said"), ("Singapore", "Laem Chabang"),
    ("Antwerp", "Peterhead"), ("Manila", "Hong Kong"), ("Auckland", "Nelson"), ("Savannah", "Kingston"),
)  # fmt: skip
"""Between which ports passenger ships go to and fro."""


@cache
def _graph() -> dict[str, dict[str, float]]:
    graph: dict[str, dict[str, float]] = {}
    for lane in LANES:
        for here, there in itertools.pairwise(lane):
            length = float(distance_km(*(np.array(value) for value in (*place(here), *place(there)))))
            graph.setdefault(here, {})[there] = length
            graph.setdefault(there, {})[here] = length
    return graph


def place(name: str) -> Place:
    """A port or a crossing of lanes."""
    return PORTS[name] if name in PORTS else CROSSINGS[name]


@cache
def route(start: str, end: str) -> tuple[Place, ...]:
    """The shortest way from one port to another along the lanes (Dijkstra): places after the start.

    >>> len(route("Rotterdam", "Singapore")) > 10
    True
    """
    graph, best, done = _graph(), {start: (0.0, "")}, set[str]()
    queue = [(0.0, start)]
    while queue:
        length, here = heapq.heappop(queue)
        if here == end:
            break
        if here in done:
            continue
        done.add(here)
        for there, step in graph[here].items():
            if there not in best or length + step < best[there][0]:
                best[there] = (length + step, here)
                heapq.heappush(queue, (length + step, there))
    way, here = list[Place](), end
    while here != start:
        way.append(place(here))
        here = best[here][1]
    return tuple(reversed(way))


def distance_km(latitude_1: Floats, longitude_1: Floats, latitude_2: Floats, longitude_2: Floats) -> Floats:
    """Great-circle distance (haversine), degrees in, shape of the arguments."""
    north, east = np.radians(latitude_2 - latitude_1), np.radians(longitude_2 - longitude_1)
    cosines = np.cos(np.radians(latitude_1)) * np.cos(np.radians(latitude_2))
    haversine = np.sin(north / 2) ** 2 + cosines * np.sin(east / 2) ** 2
    found: Floats = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(haversine, 1.0)))
    return found


def bearing(latitude_1: Floats, longitude_1: Floats, latitude_2: Floats, longitude_2: Floats) -> Floats:
    """Initial course of the great circle from the first place to the second, degrees in [0, 360)."""
    phi_1, phi_2, east = np.radians(latitude_1), np.radians(latitude_2), np.radians(longitude_2 - longitude_1)
    x = np.sin(east) * np.cos(phi_2)
    y = np.cos(phi_1) * np.sin(phi_2) - np.sin(phi_1) * np.cos(phi_2) * np.cos(east)
    found: Floats = np.degrees(np.arctan2(x, y)) % 360.0
    return found


def between(
    share: Floats, latitude_1: Floats, longitude_1: Floats, latitude_2: Floats, longitude_2: Floats
) -> tuple[Floats, Floats]:
    """The place at a share, 0 to 1, of the great circle from the first place to the second; degrees."""
    angle = distance_km(latitude_1, longitude_1, latitude_2, longitude_2) / EARTH_RADIUS_KM
    whole = np.maximum(np.sin(angle), 1e-12)
    a = np.where(angle < 1e-9, 1.0 - share, np.sin((1.0 - share) * angle) / whole)
    b = np.where(angle < 1e-9, share, np.sin(share * angle) / whole)
    phi_1, phi_2, lambda_1, lambda_2 = (np.radians(v) for v in (latitude_1, latitude_2, longitude_1, longitude_2))
    x = a * np.cos(phi_1) * np.cos(lambda_1) + b * np.cos(phi_2) * np.cos(lambda_2)
    y = a * np.cos(phi_1) * np.sin(lambda_1) + b * np.cos(phi_2) * np.sin(lambda_2)
    z = a * np.sin(phi_1) + b * np.sin(phi_2)
    return np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))
