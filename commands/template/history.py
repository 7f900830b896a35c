"""The example history: four weeks of a parcel service, made up, the same every time.

Three depots with eight couriers each, who go on two tours of 30 stops a day. How late a parcel is depends on what the
features can see (the courier, the depot's day, the zone, the stops ahead) and on chance.

To use events of your own, give them out here instead, each as a dict with its ``event_type`` and the fields of its
schema. If they lie in Parquet or BigQuery already, no history.py is needed: `sameriver traindata --history`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from shared_features import load_app
from shared_features.history import HistorySummary, write_events

SEED = 1
FIRST_DAY = datetime(2024, 3, 4, tzinfo=UTC)
DAYS = 28
COURIERS = {depot: [f"{depot}-{number}" for number in range(1, 9)] for depot in ("airport", "harbour", "north")}
ZONES = {depot: [f"{depot}-zone-{number}" for number in range(1, 11)] for depot in COURIERS}
TOURS = (timedelta(hours=6, minutes=30), timedelta(hours=12, minutes=30))  # loading begins, UTC
STOPS = 30
MINUTES_A_STOP = 7.0
SERVICES, SLACK = ("express", "standard", "economy"), (15, 35, 60)  # SLACK: minutes between plan and promise


def write_history(folder: str | Path, progress: Callable[[float, str], None] | None = None) -> HistorySummary:
    """Write the events to ``folder``, or find them there; `sameriver data`, `train` and `demo` call this."""
    app = load_app(str(Path(__file__).parent))
    return write_events(app, events(), folder, made_by=__file__, progress=progress)


def events() -> Iterator[dict[str, Any]]:
    """All events, tour by tour."""
    draw = np.random.default_rng(SEED)
    pace_of = {courier: draw.uniform(0.9, 1.25) for couriers in COURIERS.values() for courier in couriers}
    detour_of = {zone: draw.choice([0.0, 0.0, 10.0]) for zones in ZONES.values() for zone in zones}
    for day in range(DAYS):
        for couriers in COURIERS.values():
            trouble = draw.lognormal(0.0, 0.12)  # of the depot's day
            for courier in couriers:
                form = draw.lognormal(0.0, 0.08)  # of the courier's day
                for tour, begins in enumerate(TOURS):
                    pace = pace_of[courier] * trouble * form
                    yield from _tour(draw, FIRST_DAY + timedelta(days=day) + begins, tour, courier, pace, detour_of)


def _tour(
    draw: np.random.Generator, begins: datetime, tour: int, courier: str, pace: float, detour_of: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """A tour's parcels: loaded one after the other, then delivered, each as late as pace, zone and chance have it."""
    depot = courier.rpartition("-")[0]
    zones = draw.choice(ZONES[depot], STOPS)
    services = draw.choice(3, STOPS, p=[0.3, 0.5, 0.2])
    weights = draw.gamma(2.0, 2.0, STOPS).round(1)
    hurry = draw.normal(0.0, 4.0, STOPS)
    at_home, weighed = draw.random(STOPS) > 0.02, draw.random(STOPS) > 0.03
    leaves = begins + timedelta(minutes=STOPS)
    for stop in range(STOPS):
        parcel_id = f"{begins:%Y%m%d}-{courier}-{tour + 1}-{stop + 1:02}"
        whose = {"parcel_id": parcel_id, "depot": depot, "courier": courier, "zone": str(zones[stop])}
        loaded_at = begins + timedelta(minutes=stop)
        promised = leaves + timedelta(minutes=MINUTES_A_STOP * (stop + 1) + SLACK[services[stop]])
        yield {
            "event_type": "loaded",
            "event_id": f"{parcel_id}-loaded",
            "loaded_at": loaded_at,
            "service": SERVICES[services[stop]],
            "stops_ahead": stop,
            "promised_in": (promised - loaded_at) / timedelta(minutes=1),
            "weight": weights[stop] if weighed[stop] else None,
            **whose,
        }
        took = MINUTES_A_STOP * (stop + 1) * pace + detour_of[whose["zone"]] + hurry[stop]
        delivered_at = leaves + timedelta(minutes=round(max(1.0, took)))
        if at_home[stop]:
            yield {
                "event_type": "delivered",
                "event_id": f"{parcel_id}-delivered",
                "delivered_at": delivered_at,
                "minutes_late": (delivered_at - promised) / timedelta(minutes=1),
                **whose,
            }
