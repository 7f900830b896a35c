"""pandas: ``rolling(window, on=time)`` of each key, the usual way to a feature over a window of time."""

from __future__ import annotations

from typing import Literal

import pandas as pd

from benchmarks.skew.cases import NO_ANSWER, Case, Value

CLOSED: dict[tuple[str, bool], Literal["left", "right", "both", "neither"]] = {
    ("right", True): "right",
    ("both", True): "both",
    ("right", False): "neither",
    ("both", False): "left",
}
"""How `closed` is said, with and without the event itself."""

NAMES = {"variance": "var"}


def rolling(case: Case) -> list[Value]:
    """The feature over the finished table, one row per event after duplicates are dropped."""
    ask = case.ask
    events = pd.DataFrame(
        {
            "event_id": [event.event_id for event in case.events],
            "at": pd.to_datetime([event.at_us for event in case.events], unit="us", utc=True),
            "key": [event.key for event in case.events],
            "value": pd.array(
                [event.value for event in case.events], dtype="Int64" if ask.value_type == "long" else "float64"
            ),
        }
    )
    events = events.drop_duplicates("event_id").sort_values("at", kind="stable")
    window, closed = pd.Timedelta(ask.over_us, "us"), CLOSED[ask.closed, ask.include_self]
    fewest = 0 if ask.operation == "count" else None  # or a count of nothing would be NaN
    groups = [group.rolling(window, fewest, on="at", closed=closed)["value"] for _, group in events.groupby("key")]
    options = {"ddof": 0} if ask.operation == "variance" else {}
    events["feature"] = pd.concat(
        [getattr(group, NAMES.get(ask.operation, ask.operation))(**options) for group in groups]
    )
    by_row = events["feature"].to_dict()
    return [_plain(by_row[row]) if row in by_row else NO_ANSWER for row in range(len(case.events))]


def _plain(value: float) -> Value:
    return None if pd.isna(value) else value  # pandas writes null as NaN
