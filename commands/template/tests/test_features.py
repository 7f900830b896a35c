"""What the features are, on events few enough to be checked by eye: `compute` is the very call that the jobs make."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from shared_features import compute, load_app
from shared_features.app import load_beside
from shared_features.history import write_events

FOLDER = Path(__file__).parent.parent
app = load_app(str(FOLDER))


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2024-03-04T{clock}:00").replace(tzinfo=UTC)


def event(kind: str, clock: str, **fields: Any) -> dict[str, Any]:
    """One event of courier c at depot d in zone z, as a row of a table; a field that is not given is null."""
    values = {"courier": "c", "depot": "d", "zone": "z", **fields}
    row = {"event_type": kind, "event_id": f"{kind} {clock}", "event_time": at(clock)}
    return row | {f"{kind}.{name}": value for name, value in values.items()}


def features(*events: dict[str, Any]) -> list[dict[str, Any]]:
    """The features of each loaded event, in the order of time."""
    columns = dict.fromkeys(name for row in events for name in row)
    table = pa.table({name: [row.get(name) for row in events] for name in columns})
    rows: list[dict[str, Any]] = compute(app, table).to_pylist()
    return rows


def test_how_late_the_courier_was() -> None:
    """
    delivered      08:00 +10 min   10:00 -4 min
    loaded                   09:00           13:30   15:00
    6 h before                10              3       -4      at 15:00 the delivery of 08:00 is out of the window
    """
    rows = features(
        event("delivered", "08:00", minutes_late=10.0),
        event("loaded", "09:00"),
        event("delivered", "10:00", minutes_late=-4.0),
        event("loaded", "13:30"),
        event("loaded", "15:00"),
    )
    assert [row["courier_minutes_late_mean_6h"] for row in rows] == [10.0, 3.0, -4.0]
    assert [row["courier_late_share_24h"] for row in rows] == [1.0, 0.5, 0.5]


def test_another_courier_has_a_day_of_his_own() -> None:
    rows = features(
        event("delivered", "08:00", minutes_late=10.0),
        event("loaded", "09:00", courier="other"),
    )
    assert rows[0]["courier_minutes_late_mean_6h"] is None  # an empty window: null, never 0
    assert rows[0]["depot_minutes_late_mean_3h"] == 10.0  # but it is the same depot


def test_what_is_loaded_counts_the_parcel_itself() -> None:
    rows = features(event("loaded", "09:00", stops_ahead=0), event("loaded", "09:30", stops_ahead=1))
    assert [row["courier_loaded_1h"] for row in rows] == [1, 2]


def test_hours_are_those_of_the_depot() -> None:
    (row,) = features(event("loaded", "06:30"))
    assert (row["hour"], row["weekday"]) == (7, 0)  # Monday, 07:30 in Berlin


def test_the_example_history_is_what_the_job_would_accept(tmp_path: Path) -> None:
    history = load_beside(str(FOLDER), "history")
    assert history is not None
    summary = write_events(app, islice(history.events(), 600), tmp_path, made_by=str(history.__file__))
    assert sum(summary.events.values()) == 600
