"""The flights of 2013, real until the end of June; from July on the causes of delays are others.

From `CHANGE` on what is lost at departure is made up in the air, all but five minutes of it, and a new congestion holds
what flies for two hours or more and lands from 18 h New York time on: for three quarters of an hour. Nothing else is
touched; schedules, departures, weather and what is random in an arrival are those of 2013.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apps.flights.history import write_history

CHANGE = datetime(2013, 7, 1, tzinfo=UTC)
MADE_UP_ALL_BUT_MIN = 5.0
CONGESTION_MIN = 45.0
FAR_MIN = 120.0
FROM_HOUR = 18


def events(folder: Path) -> pa.Table:
    """The year's events in the columns and the order of a history; the real ones are written into ``folder`` first."""
    write_history(folder)
    months = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return changed(pa.concat_tables(months).combine_chunks())


def weeks(table: pa.Table, first: datetime) -> Iterator[tuple[datetime, pa.Table]]:
    """Events by week of publication from ``first`` on: (when the week ends, its events)."""
    week_us, begin_us = 7 * 86_400_000_000, int(first.timestamp() * 1e6)
    at = table["publish_time"].cast(pa.int64()).to_numpy()
    for number in range(-(-(int(at.max()) - begin_us) // week_us)):
        begin, end = np.searchsorted(at, [begin_us + number * week_us, begin_us + (number + 1) * week_us])
        yield (
            datetime.fromtimestamp(begin_us / 1e6 + (number + 1) * week_us / 1e6, UTC),
            table.slice(begin, end - begin),
        )


def changed(table: pa.Table) -> pa.Table:
    """A history in which delays after `CHANGE` have the other causes."""
    departed, arrived = (table[name].combine_chunks() for name in ("departed", "arrived"))
    ids, lost = departed.field("flight_id"), departed.field("departure_delay")
    there = pc.and_(departed.is_valid(), ids.is_valid())
    places = pc.index_in(arrived.field("flight_id"), value_set=ids.filter(there))
    at_departure = lost.filter(there).take(places).fill_null(0.0).to_numpy(zero_copy_only=False)
    delay = arrived.field("arrival_delay").cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    hour = pc.hour(table["event_time"].cast(pa.timestamp("us", "America/New_York"))).to_numpy()
    far = arrived.field("air_time").cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) >= FAR_MIN
    held = far & (hour >= FROM_HOUR)
    after = pc.greater_equal(table["event_time"], pa.scalar(CHANGE, table.schema.field("event_time").type)).to_numpy()
    new = delay - np.maximum(at_departure - MADE_UP_ALL_BUT_MIN, 0.0) + np.where(held, CONGESTION_MIN, 0.0)
    valid = np.asarray(arrived.field("arrival_delay").is_valid())
    values = pa.array(np.rint(np.where(after, new, delay)), mask=~valid)
    fields = [values if one.name == "arrival_delay" else arrived.field(one.name) for one in arrived.type]
    struct = pa.StructArray.from_arrays(fields, fields=list(arrived.type), mask=pc.invert(arrived.is_valid()))
    return table.set_column(table.schema.get_field_index("arrived"), "arrived", struct)
