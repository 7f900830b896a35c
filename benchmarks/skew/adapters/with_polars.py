"""Polars: ``rolling_<aggregate>_by`` over a key."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import polars as pl

from benchmarks.skew.cases import NO_ANSWER, Case, Value

CLOSED: dict[tuple[str, bool], Literal["left", "right", "both", "none"]] = {
    ("right", True): "right",
    ("both", True): "both",
    ("right", False): "none",
    ("both", False): "left",
}
"""How `closed` is said, with and without the event itself."""


def rolling(case: Case) -> list[Value]:
    """The feature over the finished table, one row per event after duplicates are dropped."""
    events = pl.DataFrame(
        [(event.event_id, event.at_us, event.key, event.value) for event in case.events],
        schema={
            "event_id": pl.String,
            "at": pl.Int64,
            "key": pl.String,
            "value": pl.Float64 if case.ask.value_type == "double" else pl.Int64,
        },
        orient="row",
    ).with_row_index("row")
    events = (
        events.with_columns(pl.col("at").cast(pl.Datetime("us", "UTC")))
        .unique("event_id", keep="first", maintain_order=True)
        .sort("at", maintain_order=True)
        .with_columns(_feature(case).over("key").alias("feature"))
    )
    by_row = dict(zip(events["row"].to_list(), events["feature"].to_list(), strict=True))
    return [by_row.get(row, NO_ANSWER) for row in range(len(case.events))]


def _feature(case: Case) -> pl.Expr:
    ask, value = case.ask, pl.col("value")
    window, closed = timedelta(microseconds=ask.over_us), CLOSED[ask.closed, ask.include_self]
    match ask.operation:
        case "count":
            return value.is_not_null().cast(pl.Int64).rolling_sum_by("at", window, closed=closed)
        case "sum":
            return value.rolling_sum_by("at", window, closed=closed)
        case "mean":
            return value.rolling_mean_by("at", window, closed=closed)
        case "variance":
            return value.rolling_var_by("at", window, closed=closed, ddof=0)
        case "min":
            return value.rolling_min_by("at", window, closed=closed)
        case "max":
            return value.rolling_max_by("at", window, closed=closed)
        case _:  # last, which rolling_*_by lacks
            return value.drop_nulls().last().rolling("at", period=window, closed=closed)
