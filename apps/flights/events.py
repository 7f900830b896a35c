"""Derive the three kinds of events from the tables of the source. All times of a result are UTC.

Departure: scheduled local clock time in New York, plus the reported delay in real minutes. Scheduled
arrival: the first instant after the scheduled departure at which the clock at the destination shows the
scheduled arrival time (no flight is scheduled for more than 11 h 40 min). Arrival: that plus the reported
delay in real minutes. The reported clock times of departure and arrival are not used for this but compared
with the result, and counted where they disagree. A departed event is made from what is known at the gate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from apps.flights.clocks import (
    DAY_US,
    HOUR_US,
    MINUTE_US,
    NEW_YORK,
    UNLISTED_ZONES,
    Bools,
    Int64s,
    clock_minutes,
    local_day_us,
    minutes_of_day,
    next_instant_us,
    to_instant_us,
)
from apps.flights.source import INSTANT, Source
from shared_features.errors import HistoryError
from shared_features.timezones import to_local_us

_AIRLINER_ENGINES = pa.array(["Turbo-fan", "Turbo-jet", "Turbo-prop"])
_AIRLINER_SEATS = 20
MAX_WIND_MPH = 260.0
"""No wind above 253 mi/h has ever been measured (WMO, Barrow Island 1996); the source has one of 1,048."""


@dataclass
class Counts:
    """What was met on the way from the source to the events.

    Attributes:
        scheduled: flights in the source.
        cancelled: flights that never left the gate: no event.
        without_arrival: flights that left, but have no arrived event, by reason. The diverted that reached
            their destination later have a clock time but no delay, so that the day is unknown.
        clock_disagreements: rows whose reported clock time is not the one derived, by kind.
        ambiguous_clock_times: scheduled times that a clock shows twice or skips in a change of offset.
        duplicates_removed: rows after the first of an ``event_id``, per event type.
        impossible_values_removed: values set to null, per field.
        planes_not_in_registry, planes_not_airliners: departures whose tail number the registry does not
            have, or has for something that no airline flies.
        unlisted_zones: flights per destination that the package's airports leave out.
    """

    scheduled: int = 0
    cancelled: int = 0
    without_arrival: dict[str, int] = field(default_factory=dict)
    clock_disagreements: dict[str, int] = field(default_factory=dict)
    ambiguous_clock_times: int = 0
    duplicates_removed: dict[str, int] = field(default_factory=dict)
    impossible_values_removed: dict[str, int] = field(default_factory=dict)
    planes_not_in_registry: int = 0
    planes_not_airliners: int = 0
    unlisted_zones: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Timetable:
    """Per row of the source's flights: what its times mean (int64 µs UTC), and its identity.

    ``zones`` has each zone of a destination with the mask of its rows.
    """

    flight_id: pa.Array
    zones: dict[str, Bools]
    scheduled_us: Int64s
    scheduled_arrival_us: Int64s


def derive(source: Source) -> tuple[dict[str, pa.Table], Counts]:
    """Tables of events by type, and what was counted on the way.

    Each has ``event_id``, ``event_time``, ``publish_time`` and its fields; rows are in the source's order.
    Raises HistoryError if a destination's zone is unknown.
    """
    counts = Counts(scheduled=source.flights.num_rows)
    times = timetable(source, counts)
    tables = {
        "departed": departed(source, times, counts),
        "arrived": arrived(source, times, counts),
        "weather": weather(source, counts),
    }
    return {name: _first_of_each(name, table, counts) for name, table in tables.items()}, counts


def timetable(source: Source, counts: Counts) -> Timetable:
    """Resolve the scheduled clock times of every flight, flown or not."""
    flights = source.flights
    day_us = local_day_us(*(_int64(flights, name) for name in ("year", "month", "day")))
    leave_minutes = minutes_of_day(_int64(flights, "sched_dep_time"))
    arrive_minutes = minutes_of_day(_int64(flights, "sched_arr_time"))
    scheduled_us, chosen = to_instant_us(day_us + leave_minutes * MINUTE_US, NEW_YORK)
    counts.ambiguous_clock_times += int(chosen.sum())
    counts.clock_disagreements["scheduled_departure"] = int(
        (scheduled_us // HOUR_US * HOUR_US != _int64(flights, "time_hour")).sum()
    )

    zones, unlisted = _zones(source)
    counts.unlisted_zones = unlisted
    scheduled_arrival_us = np.empty_like(scheduled_us)
    for zone, rows in zones.items():
        instants, chosen = next_instant_us(scheduled_us[rows], arrive_minutes[rows], zone)
        scheduled_arrival_us[rows] = instants
        counts.ambiguous_clock_times += int(chosen.sum())

    date = pa.array(day_us // DAY_US, pa.int32()).cast(pa.date32()).cast(pa.string())
    number = flights["flight"].cast(pa.string())
    flight_id = pc.binary_join_element_wise(
        pc.binary_join_element_wise(flights["carrier"], number, ""), flights["origin"], date, "-"
    )
    return Timetable(flight_id.combine_chunks(), zones, scheduled_us, scheduled_arrival_us)


def departed(source: Source, times: Timetable, counts: Counts) -> pa.Table:
    """An event per flight that left the gate, at the minute it did; cancelled flights are counted."""
    delay_us, flown = _int64(source.flights, "dep_delay") * MINUTE_US, _valid(source.flights, "dep_delay")
    counts.cancelled = int((~flown).sum())
    departed_us = times.scheduled_us + delay_us
    reported = minutes_of_day(_int64(source.flights, "dep_time")) % 1440
    counts.clock_disagreements["departure"] = int((flown & (clock_minutes(departed_us, NEW_YORK) != reported)).sum())
    flights = source.flights.filter(pa.array(flown))
    flight_id = times.flight_id.filter(pa.array(flown))
    duration_us = times.scheduled_arrival_us - times.scheduled_us
    return pa.table(
        {
            "event_id": pc.binary_join_element_wise(flight_id, "departed", "-"),
            "event_time": pa.array(departed_us[flown], INSTANT),
            "publish_time": pa.array(departed_us[flown], INSTANT),
            "flight_id": flight_id,
            "scheduled_at": pa.array(times.scheduled_us[flown], INSTANT),
            "scheduled_arrival_at": pa.array(times.scheduled_arrival_us[flown], INSTANT),
            "scheduled_duration": pa.array(duration_us[flown] / MINUTE_US, pa.float64()),
            "departure_delay": pa.array(delay_us[flown] / MINUTE_US, pa.float64()),
            "carrier": flights["carrier"],
            "flight_number": flights["flight"],
            "tail_number": flights["tailnum"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "distance": flights["distance"],
            **_planes(source, flights["tailnum"], counts),
        }
    )


def arrived(source: Source, times: Timetable, counts: Counts) -> pa.Table:
    """An event per flight that reached its destination's gate, at the minute it did; others are counted."""
    delay_us, landed = _int64(source.flights, "arr_delay") * MINUTE_US, _valid(source.flights, "arr_delay")
    clock_known = _valid(source.flights, "arr_time")
    flown = _valid(source.flights, "dep_time")
    counts.without_arrival = {
        "diverted_arrived_later": int((flown & ~landed & clock_known).sum()),
        "no_arrival_reported": int((flown & ~landed & ~clock_known).sum()),
    }
    arrived_us = times.scheduled_arrival_us + delay_us
    reported = minutes_of_day(_int64(source.flights, "arr_time")) % 1440
    shown = np.empty_like(reported)
    for zone, rows in times.zones.items():
        shown[rows] = clock_minutes(arrived_us[rows], zone)
    counts.clock_disagreements["arrival"] = int((landed & (shown != reported)).sum())
    flights = source.flights.filter(pa.array(landed))
    flight_id = times.flight_id.filter(pa.array(landed))
    return pa.table(
        {
            "event_id": pc.binary_join_element_wise(flight_id, "arrived", "-"),
            "event_time": pa.array(arrived_us[landed], INSTANT),
            "publish_time": pa.array(arrived_us[landed], INSTANT),
            "flight_id": flight_id,
            "arrival_delay": pa.array(delay_us[landed] / MINUTE_US, pa.float64()),
            "carrier": flights["carrier"],
            "tail_number": flights["tailnum"],
            "origin": flights["origin"],
            "dest": flights["dest"],
            "air_time": flights["air_time"].cast(pa.float64()),
        }
    )


def weather(source: Source, counts: Counts) -> pa.Table:
    """An event per origin and hour, at the end of that hour.

    The source takes the station's first report of each hour but not its minute, and the precipitation of
    the whole hour: the row is known for certain only when the hour is over. ``time_hour`` (UTC, start of the
    hour) tells the two hours apart that the clock shows twice in autumn; the clock columns cannot.
    """
    table = source.weather
    start_us = _int64(table, "time_hour")
    clock_us = local_day_us(*(_int64(table, name) for name in ("year", "month", "day")))
    clock_us += _int64(table, "hour") * HOUR_US
    counts.clock_disagreements["weather_hour"] = int((to_local_us(start_us, NEW_YORK) != clock_us).sum())

    wind_speed = pc.if_else(pc.greater(table["wind_speed"], MAX_WIND_MPH), None, table["wind_speed"])
    counts.impossible_values_removed["weather.wind_speed"] = wind_speed.null_count - table["wind_speed"].null_count
    end = pa.array(start_us + HOUR_US, INSTANT)
    hour = pc.utf8_slice_codeunits(pa.array(start_us // 1_000_000, pa.timestamp("s")).cast(pa.string()), 0, 13)
    hour = pc.binary_join_element_wise(pc.replace_substring(hour, " ", "T"), "Z", "")
    return pa.table(
        {
            "event_id": pc.binary_join_element_wise(table["origin"], hour, "-"),
            "event_time": end,
            "publish_time": end,
            "origin": table["origin"],
            "temperature": table["temp"],
            "dew_point": table["dewp"],
            "humidity": table["humid"],
            "wind_direction": table["wind_dir"],
            "wind_speed": wind_speed,
            "wind_gust": table["wind_gust"],
            "precipitation": table["precip"],
            "pressure": table["pressure"],
            "visibility": table["visib"],
        }
    )


def _planes(source: Source, tail_number: pa.ChunkedArray, counts: Counts) -> dict[str, pa.ChunkedArray]:
    """Columns of the aircraft by tail number; null where the registry has none or something else.

    The registry is a later state than the flights: some tail numbers had passed to light aircraft and
    helicopters by then (N537JB, an airliner of JetBlue in 2013, is a Robinson R66 in it).
    """
    planes = source.planes
    airliner = pc.and_(
        pc.and_(
            pc.equal(planes["type"], "Fixed wing multi engine"),
            pc.is_in(planes["engine"], value_set=_AIRLINER_ENGINES),
        ),
        pc.greater_equal(planes["seats"], _AIRLINER_SEATS),
    )
    listed = pc.index_in(tail_number, value_set=planes["tailnum"]).null_count
    airliners = planes.filter(airliner)
    index = pc.index_in(tail_number, value_set=airliners["tailnum"])
    counts.planes_not_in_registry = listed
    counts.planes_not_airliners = index.null_count - listed
    return {
        "plane_year": airliners["year"].take(index),
        "plane_manufacturer": airliners["manufacturer"].take(index),
        "plane_model": airliners["model"].take(index),
        "plane_engines": airliners["engines"].take(index),
        "plane_seats": airliners["seats"].take(index),
    }


def _zones(source: Source) -> tuple[dict[str, Bools], dict[str, int]]:
    """Rows per zone of the destination, and the flights to airports that the package does not list."""
    airports = zip(source.airports["faa"].to_pylist(), source.airports["tzone"].to_pylist(), strict=True)
    listed = {airport: zone for airport, zone in airports if zone is not None}
    destinations = source.flights["dest"].combine_chunks().dictionary_encode()
    names, codes = destinations.dictionary.to_pylist(), destinations.indices.to_numpy()
    flights = np.bincount(codes, minlength=len(names)).tolist()
    unlisted = {name: count for name, count in zip(names, flights, strict=True) if name not in listed}
    unknown = sorted(set(unlisted) - set(UNLISTED_ZONES))
    if unknown:
        raise HistoryError(
            f"the time zone of destination {unknown[0]} is needed for its arrivals, but neither the package's"
            " airports nor UNLISTED_ZONES has it: add it to UNLISTED_ZONES in apps/flights/clocks.py"
        )
    zones = np.array([{**UNLISTED_ZONES, **listed}[name] for name in names])
    rows = {zone: (zones == zone)[codes] for zone in sorted(set(zones.tolist()))}
    return rows, dict(sorted(unlisted.items()))


def _first_of_each(name: str, table: pa.Table, counts: Counts) -> pa.Table:
    """Keep the first row of each ``event_id``; the others are counted."""
    counts.duplicates_removed[name] = table.num_rows - pc.count_distinct(table["event_id"]).as_py()
    if not counts.duplicates_removed[name]:
        return table
    _, first = np.unique(table["event_id"].to_numpy(zero_copy_only=False), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _int64(table: pa.Table, name: str) -> Int64s:
    """Column as int64 (instants in µs), 0 where it is null."""
    values: Int64s = pc.fill_null(table[name].cast(pa.int64()), 0).to_numpy()
    return values


def _valid(table: pa.Table, name: str) -> Bools:
    values: Bools = table[name].is_valid().to_numpy()
    return values
