"""The flights' history: instants of known real flights, nothing from the future, the same bytes every time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from apps.flights import clocks, source
from apps.flights.events import derive
from apps.flights.history import SCHEMAS, HistorySummary
from shared_features import load_app
from shared_features.blocks import flatten

ROOT = Path(__file__).parent.parent
AFTER_DEPARTURE = ("arr_time", "arr_delay", "air_time")

Written = tuple[Path, HistorySummary]


@pytest.fixture(scope="module")
def tables() -> source.Source:
    return source.read(source.locate())


@pytest.fixture(scope="module")
def history(written: Written) -> pa.Table:
    """All rows, as they lie in the files one after the other, with dotted columns."""
    return flatten(pa.concat_tables(pq.read_table(path) for path in sorted(written[0].glob("*.parquet"))))


@pytest.fixture(scope="module")
def by_id(history: pa.Table) -> Mapping[str, dict[str, Any]]:
    """The rows of the flights and hours that the tests name, by event id."""
    ids = [f"{known[0]}-{kind}" for known in KNOWN for kind in ("departed", "arrived")]
    ids += [f"{flight}-{kind}" for flight in (CANCELLED, DIVERTED) for kind in ("departed", "arrived")]
    ids += [hour[0] for hour in KNOWN_HOURS] + ["EWR-2013-02-12T08Z", HELICOPTER]
    rows = history.filter(pc.is_in(history["event_id"], value_set=pa.array(ids))).to_pylist()
    return {row["event_id"]: row for row in rows}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}:00+00:00")


KNOWN = [
    # flight, scheduled, left the gate, scheduled arrival, arrived (UTC; the clock on the spot behind it)
    # The first row of the year: 05:15 EST, 2 min late; Houston is an hour behind.
    ("UA1545-EWR-2013-01-01", "2013-01-01T10:15", "2013-01-01T10:17", "2013-01-01T14:19", "2013-01-01T14:30"),
    # Ten hours and fifty minutes to Honolulu, with and without daylight-saving time in New York.
    ("HA51-JFK-2013-01-01", "2013-01-01T14:00", "2013-01-01T13:57", "2013-01-02T01:30", "2013-01-02T01:16"),
    ("HA51-JFK-2013-07-01", "2013-07-01T14:00", "2013-07-01T14:05", "2013-07-02T00:30", "2013-07-02T01:27"),
    # The longest delay of the year, 21 h 41 min: left at 06:41 of the next day.
    ("HA51-JFK-2013-01-09", "2013-01-09T14:00", "2013-01-10T11:41", "2013-01-10T01:30", "2013-01-10T22:42"),
    # Left a minute after 23:59, which the source writes as 2400; San Juan's island is an hour ahead in winter.
    ("B6745-JFK-2013-11-27", "2013-11-28T04:59", "2013-11-28T05:00", "2013-11-28T08:45", "2013-11-28T09:15"),
    # Late across midnight, and the arrival too.
    ("EV4368-EWR-2013-03-10", "2013-03-11T01:00", "2013-03-11T04:41", "2013-03-11T02:57", "2013-03-11T06:30"),
    # No daylight-saving time in Phoenix; an own zone in Anchorage.
    ("UA1138-EWR-2013-07-01", "2013-07-01T10:58", "2013-07-01T10:55", "2013-07-01T16:15", "2013-07-01T15:55"),
    ("UA887-EWR-2013-07-06", "2013-07-06T20:15", "2013-07-06T20:29", "2013-07-07T03:53", "2013-07-07T03:54"),
    # 10 March, clocks jump from 02:00 to 03:00 in each zone in turn. Scheduled 23:59 EST, left 00:53 EST.
    ("B6727-JFK-2013-03-09", "2013-03-10T04:59", "2013-03-10T05:53", "2013-03-10T08:38", "2013-03-10T09:04"),
    # Scheduled for 00:34 EST, arrived 03:03 EDT; the source says 02:03, which that night did not have.
    ("B635-JFK-2013-03-09", "2013-03-10T02:45", "2013-03-10T04:06", "2013-03-10T05:34", "2013-03-10T07:03"),
    # The first departure after it, 04:54 EDT.
    ("US1113-EWR-2013-03-10", "2013-03-10T09:00", "2013-03-10T08:54", "2013-03-10T10:48", "2013-03-10T10:28"),
    # 3 November, 01:00 to 02:00 comes twice. Left 23:51 EDT; Puerto Rico keeps its time.
    ("B6839-JFK-2013-11-02", "2013-11-03T03:59", "2013-11-03T03:51", "2013-11-03T07:37", "2013-11-03T07:38"),
    # In the air while New York's clocks went back, down at 01:14 PDT, before Los Angeles' did.
    ("VX413-JFK-2013-11-02", "2013-11-02T20:55", "2013-11-03T02:17", "2013-11-03T03:15", "2013-11-03T08:14"),
    # That evening: 17:27 EST to 21:00 PST.
    ("UA376-EWR-2013-11-03", "2013-11-03T22:06", "2013-11-03T22:27", "2013-11-04T04:00", "2013-11-04T05:00"),
]
CANCELLED = "EV4308-EWR-2013-01-01"
DIVERTED = "MQ4525-LGA-2013-01-01"
HELICOPTER = "B697-JFK-2013-03-09-departed"
KNOWN_HOURS = [
    # hour, known at, temperature
    ("JFK-2013-03-10T06Z", "2013-03-10T07:00", 35.06),  # 01:00 EST, the last before the jump
    ("JFK-2013-03-10T07Z", "2013-03-10T08:00", 30.92),  # 03:00 EDT
    ("JFK-2013-11-03T05Z", "2013-11-03T06:00", 53.96),  # 01:00 EDT
    ("JFK-2013-11-03T06Z", "2013-11-03T07:00", 51.98),  # 01:00 EST, the same clock time again
    ("JFK-2013-11-03T07Z", "2013-11-03T08:00", 51.08),  # 02:00 EST
]


@pytest.mark.parametrize(("flight", "scheduled", "left", "due", "landed"), KNOWN, ids=[k[0] for k in KNOWN])
def test_instants_of_known_flights(
    by_id: Mapping[str, dict[str, Any]], flight: str, scheduled: str, left: str, due: str, landed: str
) -> None:
    departed, arrived = by_id[f"{flight}-departed"], by_id[f"{flight}-arrived"]
    assert departed["departed.scheduled_at"] == utc(scheduled)
    assert departed["event_time"] == departed["publish_time"] == utc(left)
    assert departed["departed.departure_delay"] == (utc(left) - utc(scheduled)).total_seconds() / 60
    assert departed["departed.scheduled_arrival_at"] == utc(due)
    assert departed["departed.scheduled_duration"] == (utc(due) - utc(scheduled)).total_seconds() / 60
    assert arrived["event_time"] == arrived["publish_time"] == utc(landed)
    assert arrived["arrived.arrival_delay"] == (utc(landed) - utc(due)).total_seconds() / 60
    assert departed["departed.flight_id"] == arrived["arrived.flight_id"] == flight


def test_first_row_of_the_year_in_full(by_id: Mapping[str, dict[str, Any]]) -> None:
    row = by_id["UA1545-EWR-2013-01-01-departed"]
    assert {name: value for name, value in row.items() if value is not None} == {
        "event_type": "departed",
        "event_id": "UA1545-EWR-2013-01-01-departed",
        "event_time": utc("2013-01-01T10:17"),
        "publish_time": utc("2013-01-01T10:17"),
        "departed.flight_id": "UA1545-EWR-2013-01-01",
        "departed.scheduled_at": utc("2013-01-01T10:15"),
        "departed.scheduled_arrival_at": utc("2013-01-01T14:19"),
        "departed.scheduled_duration": 244.0,
        "departed.departure_delay": 2.0,
        "departed.carrier": "UA",
        "departed.flight_number": 1545,
        "departed.tail_number": "N14228",
        "departed.origin": "EWR",
        "departed.dest": "IAH",
        "departed.distance": 1400,
        "departed.plane_year": 1999,
        "departed.plane_manufacturer": "BOEING",
        "departed.plane_model": "737-824",
        "departed.plane_engines": 2,
        "departed.plane_seats": 149,
    }


def test_cancelled_and_diverted_flights(by_id: Mapping[str, dict[str, Any]]) -> None:
    assert f"{CANCELLED}-departed" not in by_id
    assert f"{CANCELLED}-arrived" not in by_id
    assert f"{DIVERTED}-departed" in by_id
    assert f"{DIVERTED}-arrived" not in by_id


@pytest.mark.parametrize(("hour", "known_at", "temperature"), KNOWN_HOURS, ids=[k[0] for k in KNOWN_HOURS])
def test_weather_hours_around_the_clock_changes(
    by_id: Mapping[str, dict[str, Any]], hour: str, known_at: str, temperature: float
) -> None:
    row = by_id[hour]
    assert row["event_time"] == row["publish_time"] == utc(known_at)
    assert row["weather.temperature"] == temperature


def test_impossible_values_are_missing(by_id: Mapping[str, dict[str, Any]]) -> None:
    assert by_id["EWR-2013-02-12T08Z"]["weather.wind_speed"] is None  # 1,048 mi/h in the source
    assert by_id[HELICOPTER]["departed.tail_number"] == "N537JB"  # by the registry a Robinson R66
    assert by_id[HELICOPTER]["departed.plane_model"] is None


def test_every_instant_against_the_clock_row_by_row(tables: source.Source, history: pa.Table) -> None:
    """One flight in 97, with Python's own dates and zones, the slow and obvious way."""
    new_york = ZoneInfo("America/New_York")
    listed = dict(zip(tables.airports["faa"].to_pylist(), tables.airports["tzone"].to_pylist(), strict=True))
    rows = tables.flights.take(pa.array(range(0, tables.flights.num_rows, 97))).to_pylist()
    found = {kind: _seconds(history, kind) for kind in ("departed", "arrived")}
    for row in rows:
        day = datetime.combine(date(row["year"], row["month"], row["day"]), datetime.min.time())
        leave, due = (divmod(row[name], 100) for name in ("sched_dep_time", "sched_arr_time"))
        scheduled = (day + timedelta(hours=leave[0], minutes=leave[1])).replace(tzinfo=new_york)
        flight = f"{row['carrier']}{row['flight']}-{row['origin']}-{day:%Y-%m-%d}"
        if row["dep_delay"] is None:
            assert flight not in found["departed"]
            continue
        left = scheduled.timestamp() + 60 * row["dep_delay"]
        assert found["departed"][flight] == left
        clock = datetime.fromtimestamp(left, new_york)
        assert clock.hour * 100 + clock.minute == row["dep_time"] % 2400
        if row["arr_delay"] is None:
            assert flight not in found["arrived"]
            continue
        zone = ZoneInfo(listed.get(row["dest"]) or clocks.UNLISTED_ZONES[row["dest"]])
        there = datetime.fromtimestamp(scheduled.timestamp(), zone).replace(hour=due[0], minute=due[1])
        if there.timestamp() <= scheduled.timestamp():
            there += timedelta(days=1)
        assert found["arrived"][flight] == there.timestamp() + 60 * row["arr_delay"]


def _seconds(history: pa.Table, kind: str) -> dict[str, int]:
    """Event times in seconds UTC by flight."""
    rows = history.filter(pc.equal(history["event_type"], kind))
    seconds = pc.divide(rows["event_time"].cast(pa.int64()), 1_000_000).to_pylist()
    return dict(zip(rows[f"{kind}.flight_id"].to_pylist(), seconds, strict=True))


def test_columns_and_order(written: Written, history: pa.Table) -> None:
    instant = pa.timestamp("us", tz="UTC")
    envelope = {"event_type": pa.string(), "event_id": pa.string()}
    envelope |= {"event_time": instant, "publish_time": instant}
    fields = {field.name: field.type for schema in SCHEMAS.values() for field in schema.block_fields}
    assert dict(zip(history.schema.names, history.schema.types, strict=True)) == envelope | fields
    assert all(history[name].null_count == 0 for name in envelope)

    order = [(name, "ascending") for name in ("publish_time", "event_type", "event_id")]
    assert pc.sort_indices(history, sort_keys=order).to_pylist() == list(range(history.num_rows))
    for path in written[0].glob("*.parquet"):
        stored = pq.read_table(path)
        assert stored.schema.names == [*envelope, "departed", "arrived", "weather"]
        assert {text[:7] for text in stored["publish_time"].cast(pa.string()).unique().to_pylist()} == {path.stem}
        for name in SCHEMAS:
            others = pc.not_equal(stored["event_type"], name)
            assert stored[name].is_null().equals(others)


def test_required_fields_are_never_null_and_numbers_are_finite(history: pa.Table) -> None:
    for name, schema in SCHEMAS.items():
        rows = history.filter(pc.equal(history["event_type"], name))
        for column in schema.block_fields:
            values = rows[column.name]
            if not schema.fields[column.name.split(".")[1]].nullable:
                assert values.null_count == 0, column.name
            if pa.types.is_floating(column.type):
                assert pc.all(pc.is_finite(values)).as_py(), column.name


def test_delays_are_whole_minutes(history: pa.Table) -> None:
    """The app's scales of one minute, and README, build on it."""
    for name in ("departed.departure_delay", "arrived.arrival_delay", "arrived.air_time"):
        assert pc.all(pc.equal(history[name], pc.round(history[name]))).as_py()


def test_history_and_app_have_the_same_event_types() -> None:
    app = load_app("flights")
    assert {name: kind.canonical for name, kind in app.event_types.items()} == {
        name: schema.canonical for name, schema in SCHEMAS.items()
    }


def test_readme_quotes_the_counts(written: Written) -> None:
    """The table in the app's README is the summary."""
    text = (ROOT / "apps" / "flights" / "README.md").read_text("utf-8")
    table = dict(re.findall(r"^\| \**([^|]+?)\** \| \**([0-9,]+)\** \|$", text, re.MULTILINE))
    figures = {int(number.replace(",", "")) for number in table.values()}
    counts = written[1].counts
    told = [counts.scheduled, counts.cancelled, counts.planes_not_in_registry, counts.planes_not_airliners]
    told += [*written[1].events.values(), *counts.without_arrival.values(), sum(counts.unlisted_zones.values())]
    assert set(told) <= figures
    assert len(table) == 16


def test_readme_quotes_the_rule(history: pa.Table) -> None:
    """What README says of "left 15 minutes late or more", counted."""
    rows = {kind: history.filter(pc.equal(history["event_type"], kind)) for kind in ("departed", "arrived")}
    left = rows["departed"].select(["departed.flight_id", "event_time", "departed.departure_delay"])
    landed = rows["arrived"].select(["arrived.flight_id", "event_time", "arrived.arrival_delay"])
    joined = left.rename_columns(["flight_id", "left", "departure_delay"]).join(
        landed.rename_columns(["flight_id", "landed", "arrival_delay"]), "flight_id", join_type="inner"
    )
    named, late = (joined[f"{kind}_delay"].to_numpy() >= 15 for kind in ("departure", "arrival"))
    text = (ROOT / "apps" / "flights" / "README.md").read_text("utf-8")
    assert f"({(late & ~named).sum():,} of {late.sum():,})" in text
    assert f"({(named & ~late).sum():,} of {named.sum():,})" in text
    minutes = (joined["landed"].to_numpy() - joined["left"].to_numpy()) / np.timedelta64(1, "m")
    assert np.median(minutes) == 160  # 2 h 40 min


def test_identities_are_unique_and_flights_join(history: pa.Table) -> None:
    assert pc.count_distinct(history["event_id"]).as_py() == history.num_rows
    left, landed = _seconds(history, "departed"), _seconds(history, "arrived")
    assert len(left) == 328_521
    assert len(landed) == 327_346
    assert landed.keys() <= left.keys()
    # From Newark, Hartford took 33 min once, Honolulu 12 h 18 min.
    minutes = [(landed[flight] - left[flight]) / 60 for flight in landed]
    assert min(minutes) == 33
    assert max(minutes) == 738


def test_time_on_the_ground_is_plausible(history: pa.Table) -> None:
    """Gate to gate less time in the air: a zone wrong by an hour would give less than nothing, or an hour more."""
    rows = {
        kind: history.filter(pc.equal(history["event_type"], kind)).select(
            [f"{kind}.flight_id", "event_time", *(["arrived.air_time", "arrived.dest"] * (kind == "arrived"))]
        )
        for kind in ("departed", "arrived")
    }
    left = rows["departed"].rename_columns(["flight_id", "left"])
    landed = rows["arrived"].rename_columns(["flight_id", "landed", "air_time", "dest"])
    joined = landed.join(left, "flight_id", join_type="inner")
    gate = pc.subtract(joined["landed"].cast(pa.int64()), joined["left"].cast(pa.int64())).to_numpy() / 60e6
    ground = gate - joined["air_time"].to_numpy()
    assert ground.min() >= 5
    assert ground.max() <= 240
    dest = joined["dest"].to_numpy(zero_copy_only=False)
    for name in np.unique(dest):
        assert 15 <= np.median(ground[dest == name]) <= 45, name


def test_summary_counts(written: Written, tables: source.Source, history: pa.Table) -> None:
    folder, summary = written
    flights = tables.flights
    assert summary.events == {"departed": 328_521, "arrived": 327_346, "weather": 26_115}
    assert summary.events == dict(Counter(history["event_type"].to_pylist()))
    counts = summary.counts
    assert counts.scheduled == flights.num_rows == 336_776
    assert counts.cancelled == flights["dep_time"].null_count == 8_255
    assert counts.scheduled == summary.events["departed"] + counts.cancelled
    assert counts.without_arrival == {"diverted_arrived_later": 717, "no_arrival_reported": 458}
    assert summary.events["departed"] == summary.events["arrived"] + sum(counts.without_arrival.values())
    assert counts.clock_disagreements == {
        "scheduled_departure": 0,
        "departure": 0,
        "arrival": 1,  # B6 35 of 9 March, see KNOWN
        "weather_hour": 0,
    }
    assert counts.ambiguous_clock_times == 0
    assert counts.duplicates_removed == {"departed": 0, "arrived": 0, "weather": 0}
    assert counts.impossible_values_removed == {"weather.wind_speed": 1}
    assert counts.unlisted_zones == {"BQN": 896, "PSE": 365, "SJU": 5_819, "STT": 522}
    missing: dict[str, int] = {}
    for name in SCHEMAS:
        rows = history.filter(pc.equal(history["event_type"], name))
        missing |= {c: rows[c].null_count for c in rows.column_names if c.startswith(name) and rows[c].null_count}
    assert summary.missing == missing
    assert summary.missing["departed.plane_model"] == counts.planes_not_in_registry + counts.planes_not_airliners
    assert summary.files == len(list(folder.glob("*.parquet"))) == 13
    assert summary.first_publish == history["publish_time"][0].as_py().isoformat()
    assert summary.last_publish == history["publish_time"][-1].as_py().isoformat()
    told = json.loads(json.dumps(summary.as_dict()))
    assert told["cancelled"] == 8_255
    assert told["events"] == summary.events
    assert "counts" not in told


def test_a_departure_holds_nothing_from_its_future(tables: source.Source) -> None:
    """Other arrivals, the same departures: reversed, missing or absurd columns change no row of theirs."""
    flights = tables.flights
    for name in AFTER_DEPARTURE:
        values = flights[name].take(pa.array(np.arange(flights.num_rows)[::-1]))
        flights = flights.set_column(flights.schema.get_field_index(name), name, values)
    before, _ = derive(tables)
    after, _ = derive(source.Source(flights, tables.weather, tables.planes, tables.airports))
    assert after["departed"].equals(before["departed"])
    assert not after["arrived"].equals(before["arrived"])
    assert after["weather"].equals(before["weather"])
