"""DuckDB: a window with RANGE, and the self-join that a point-in-time table is often made by."""

from __future__ import annotations

import duckdb

from benchmarks.skew.cases import NO_ANSWER, Case, Value

FUNCTIONS = {"mean": "avg", "variance": "var_pop"}
"""SQL's names, where they are other ones."""

WINDOW = """
    SELECT row, {function} OVER (
        PARTITION BY key ORDER BY happened
        RANGE BETWEEN INTERVAL {microseconds} MICROSECONDS PRECEDING AND CURRENT ROW {exclude}
    )
    FROM once
"""

SELF_JOIN = """
    SELECT this.row, {function}
    FROM once AS this LEFT JOIN once AS past
    ON past.key = this.key
        AND past.arrives <= this.arrives
        AND past.happened BETWEEN this.happened - INTERVAL {microseconds} MICROSECONDS AND this.happened
        {exclude}
    GROUP BY this.row
"""


def window(case: Case) -> list[Value]:
    """An aggregate over a RANGE of event time; RANGE has both ends, so the open end is one microsecond shorter."""
    ask = case.ask
    if ask.operation == "last":
        function = "last_value(value IGNORE NULLS)"
    else:
        function = f"{FUNCTIONS.get(ask.operation, ask.operation)}(value)"
    return _ask(case, WINDOW, function, "" if ask.include_self else "EXCLUDE CURRENT ROW")


def self_join(case: Case) -> list[Value]:
    """The aggregate of all events of the key that had arrived by then and lie in the window."""
    ask = case.ask
    if ask.operation == "last":
        function = "max_by(past.value, (past.happened, past.arrives)) FILTER (past.value IS NOT NULL)"
    else:
        function = f"{FUNCTIONS.get(ask.operation, ask.operation)}(past.value)"
    return _ask(case, SELF_JOIN, function, "" if ask.include_self else "AND past.row <> this.row")


def _ask(case: Case, query: str, function: str, exclude: str) -> list[Value]:
    microseconds = case.ask.over_us - (case.ask.closed == "right")
    value_type = "DOUBLE" if case.ask.value_type == "double" else "BIGINT"
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(
            "CREATE TABLE events (row INTEGER, event_id VARCHAR, happened TIMESTAMP, arrives TIMESTAMP, "
            f"key VARCHAR, value {value_type})"
        )
        connection.executemany(
            "INSERT INTO events VALUES (?, ?, make_timestamp(?), make_timestamp(?), ?, ?)",
            [
                (row, event.event_id, event.at_us, event.arrives_us, event.key, event.value)
                for row, event in enumerate(case.events)
            ],
        )
        connection.execute(
            "CREATE VIEW once AS FROM events QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY arrives) = 1"
        )
        query = query.format(function=function, microseconds=microseconds, exclude=exclude)
        by_row = dict(connection.execute(query).fetchall())
    return [by_row.get(row, NO_ANSWER) for row in range(len(case.events))]
