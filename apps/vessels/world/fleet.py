"""Who is at sea: a seeded fleet, and its world simulated chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from apps.vessels.world.gears import GEARS, fish, trade
from apps.vessels.world.reception import Reports, receive

FLEET: Mapping[str, float] = {
    "trawler": 0.22,
    "drifting_longliner": 0.08,
    "purse_seiner": 0.06,
    "squid_jigger": 0.04,
    "cargo": 0.34,
    "tanker": 0.14,
    "passenger": 0.12,
}
"""Share of each kind in the fleet."""

KINDS = tuple(FLEET)
CHUNK = 3_000
COUNTRIES = (224, 257, 273, 310, 338, 412, 416, 431, 440, 503, 512, 525, 533, 548, 574, 636, 701, 710, 725, 760)
"""Maritime identification digits (ITU) that the vessels' MMSI begin with."""

SHIP_TYPES: Mapping[str, tuple[int, ...]] = {
    "cargo": (70, 71, 74, 79),
    "tanker": (80, 81, 84, 89),
    "passenger": (60, 69),
}
"""AIS ship types; fishing vessels say 30, and one in ten says 0, not available."""


@dataclass(frozen=True, slots=True)
class World:
    """What to simulate.

    Attributes:
        vessels: size of the fleet.
        hours: how long.
        start: when it begins; a whole second, UTC.
        seed: of everything that is drawn. The same settings give the same world.
    """

    vessels: int = 60_000
    hours: float = 24.0
    start: datetime = field(default=datetime(2024, 6, 15, tzinfo=UTC))
    seed: int = 1

    @property
    def start_us(self) -> int:
        """Its beginning in microseconds since 1970."""
        return int(self.start.timestamp()) * 1_000_000

    def fleet(self) -> Fleet:
        """The vessels."""
        random = np.random.default_rng([self.seed, 1])
        number = np.arange(self.vessels)
        edges = np.cumsum(list(FLEET.values()))
        # The shares hold in any piece of the fleet.
        kind = np.searchsorted(edges, (number * 0.6180339887498949 + 0.5) % 1.0 * edges[-1], side="right")
        mmsi = random.choice(COUNTRIES, self.vessels) * 1_000_000 + number
        ship_type = np.where(random.random(self.vessels) < 0.1, 0, 30)
        for name, types in SHIP_TYPES.items():
            ship_type = np.where(kind == KINDS.index(name), random.choice(types, self.vessels), ship_type)
        class_b = (kind < len(GEARS)) & (random.random(self.vessels) < 0.35)
        return Fleet(mmsi, kind.astype(np.int8), ship_type.astype(np.int16), class_b)

    def reports(self, fleet: Fleet, threads: int = 2) -> Iterator[tuple[int, Reports]]:
        """What is received of each chunk of the fleet, with the chunk's first vessel, in order."""

        def chunk(first: int) -> tuple[int, Reports]:
            return first, self._chunk(fleet, first)

        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(chunk, range(0, self.vessels, CHUNK))

    def _chunk(self, fleet: Fleet, first: int) -> Reports:
        parts = []
        for number, name in enumerate(KINDS):
            chosen = first + np.flatnonzero(fleet.kind[first : first + CHUNK] == number)
            if len(chosen):
                random = np.random.default_rng([self.seed, 2, first, number])
                sail = fish if name in GEARS else trade
                tracks = sail(name, len(chosen), self.hours * 3600.0, random)
                parts.append(receive(tracks.segments(), chosen, fleet.class_b[chosen], self.hours * 3600.0, random))
        return Reports.concatenate(parts)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The vessels, by number.

    Attributes:
        mmsi: Maritime Mobile Service Identity; int64.
        kind: place in `KINDS`; int8.
        ship_type: as AIS says it; int16.
        class_b: whether the vessel has the smaller kind of transponder; bool.
    """

    mmsi: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int8]
    ship_type: npt.NDArray[np.int16]
    class_b: npt.NDArray[np.bool_]
