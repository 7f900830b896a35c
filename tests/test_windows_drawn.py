"""Windows, drawn: which events each event sees, in tables of at most six rows.

Events are letters; a table lists them in fold order: name, event time in microseconds, and the window's events as they
were seen, oldest first. Letters are in the order of their identities, which decides inside one microsecond.
"""

from __future__ import annotations

from typing import Any

import pytest

from shared_features.aggregates import Aggregate
from shared_features.expressions import Expression
from shared_features.hashing import hash_columns
from tests.readings.events import SECOND, by_station, make_block, reading
from tests.readings.kernel_rows import fold, stages_of

Table = list[tuple[str, int, str]]
MOST = 6


def _ids() -> dict[str, str]:
    """Ids for the letters a to f, such that their identities have the order of the alphabet."""
    block = make_block([{"id": str(i), "t": 0} for i in range(MOST)])
    identities = hash_columns([block.column("event_type"), block.column("event_id")]).tolist()
    return dict(zip("abcdef", [str(i) for i in sorted(range(MOST), key=lambda i: identities[i])], strict=True))


IDS = _ids()


def seen(over: str, table: Table, *, lateness: str = "24h", **options: Any) -> Table:
    """The table as the kernel fills it in: the newest, second newest, … value of each event's window."""
    value: Expression = reading.colour
    lags = [Aggregate("lag", value, by=by_station, over=over, k=k, **options) for k in range(MOST)]
    (stage,) = stages_of(lags, lateness)
    rows = [
        {"id": IDS[name.lower()], "t": t, "station": "kiel", "colour": name if name.islower() else None, "steps": 1}
        for name, t, _ in table
    ]
    found, _ = fold(stage, rows, cuts=range(0, len(rows), 2))
    return [
        (name, t, "".join(reversed([answer[lag.key] for lag in lags if answer[lag.key] is not None])))
        for (name, t, _), answer in zip(table, found, strict=True)
    ]


def test_the_left_edge_is_open() -> None:
    """over="10s" is (t − 10 s, t]: what is exactly as old as the window is out, one microsecond less is in.

    0 s       10 s
    a·b───────c         b stands at 1 µs
      (───────]         c sees b, c
    """
    table = [("a", 0, "a"), ("b", 1, "ab"), ("c", 10 * SECOND, "bc")]
    assert seen("10s", table) == table


def test_the_left_edge_can_be_closed() -> None:
    """closed="both" is [t − 10 s, t]: exactly as old is in, one microsecond more is out.

    −1 µs  0 s       10 s
    a······b─────────c
           [─────────]   c sees b, c
    """
    table = [("a", -1, "a"), ("b", 0, "ab"), ("c", 10 * SECOND, "bc")]
    assert seen("10s", table, closed="both") == table


def test_an_event_can_be_left_out_of_its_own_window() -> None:
    """include_self=False: only the others.

    0 s     5 s       15 s
    a───────b─────────c
    """
    table = [("a", 0, ""), ("b", 5 * SECOND, "a"), ("c", 15 * SECOND, "")]
    assert seen("10s", table, include_self=False) == table
    table = [("a", 0, ""), ("b", 5 * SECOND, "a"), ("c", 15 * SECOND, "b")]
    assert seen("10s", table, include_self=False, closed="both") == table


def test_the_window_is_as_short_as_a_microsecond() -> None:
    """over="1ms" at whole microseconds.

    0     1 µs       1,000 µs
    a·····b··········c          c sees b, c
    """
    table = [("a", 0, "a"), ("b", 1, "ab"), ("c", 1000, "bc")]
    assert seen("1ms", table) == table


def test_events_of_one_microsecond_stand_in_the_order_of_their_identities() -> None:
    """b, then a, then c come at the same time: each sees those that came before it, sorted by identity.

    7 s
    b
    a
    c
    """
    t = 7 * SECOND
    table = [("b", t, "b"), ("a", t, "ab"), ("c", t, "abc")]
    assert seen("10s", table) == table
    assert seen("3 events", table) == table
    table = [("b", t, ""), ("a", t, "b"), ("c", t, "ab")]
    assert seen("10s", table, include_self=False) == table


def test_a_late_event_sees_its_own_past_and_is_seen_by_all_that_comes_later() -> None:
    """b comes after c: it does not see c, and c did not see b; d sees both.

    0 s   5 s   10 s  12 s
    a─────·─────c           folded first
    ·     b                 folded third, late
             (2 s────d]     sees b, c, d
    """
    table = [("a", 0, "a"), ("c", 10 * SECOND, "c"), ("b", 5 * SECOND, "ab"), ("d", 12 * SECOND, "bcd")]
    assert seen("10s", table) == table


def test_a_late_event_at_the_edges_of_a_later_window() -> None:
    """b (2 s) comes exactly on the left edge of d's window, c (2 s + 1 µs) one microsecond inside.

    0 s  2 s          12 s
    ·    b·c          a
         (────────────d]
    """
    s = SECOND
    table = [("a", 11 * s, "a"), ("b", 2 * s, "b"), ("c", 2 * s + 1, "bc"), ("d", 12 * s, "cad")]
    assert seen("10s", table) == table


def test_a_null_value_is_not_in_the_window_but_its_event_asks() -> None:
    """B carries no value: it sees a, and c does not see it.

    0 s   1 s   2 s   20 s
    a─────B─────c
                      D     sees nothing
    """
    table = [("a", 0, "a"), ("B", SECOND, "a"), ("c", 2 * SECOND, "ac"), ("D", 20 * SECOND, "")]
    assert seen("10s", table) == table


def test_a_window_of_the_last_events_has_no_limit_in_time() -> None:
    """over="3 events": the last three, however old.

    0 s  1 s  2 s         100 days
    a────b────c ·······  d
         (───────────────]     d sees b, c, d
    """
    table = [("a", 0, "a"), ("b", SECOND, "ab"), ("c", 2 * SECOND, "abc"), ("d", 8_640_000 * SECOND, "bcd")]
    assert seen("3 events", table) == table
    table = [("a", 0, ""), ("b", SECOND, "a"), ("c", 2 * SECOND, "ab"), ("d", 8_640_000 * SECOND, "abc")]
    assert seen("3 events", table, include_self=False) == table


def test_a_window_of_the_last_events_counts_those_that_carry_the_value() -> None:
    """B and C carry none: the last two events of E are a and e's predecessors with a value.

    0 s  1 s  2 s  3 s  4 s
    a────B────C────d────e
    """
    table = [("a", 0, "a"), ("B", 1, "a"), ("C", 2, "a"), ("d", 3, "ad"), ("e", 4, "de")]
    assert seen("2 events", table) == table


def test_a_late_event_takes_its_place_among_the_last_events() -> None:
    """over="3 events": b is late by four seconds, and looks back from its own time.

    0 s  1 s  2 s  3 s  5 s  6 s
    a    ·    c    d    e          folded first
         b                         sees a, b
    (              ────────  f]    sees d, e, f
    """
    s = SECOND
    table = [("a", 0, "a"), ("c", 2 * s, "ac"), ("d", 3 * s, "acd"), ("b", s, "ab"), ("e", 5 * s, "cde")]
    assert seen("3 events", table) == table
    table = [("a", 0, "a"), ("c", 2 * s, "ac"), ("b", s, "ab"), ("d", 3 * s, "bcd")]
    assert seen("3 events", table) == table


def test_the_reach_of_a_window_of_time_ends_to_the_microsecond() -> None:
    """lateness 5 s, over="10s", newest d at 60 s: grace from 55 s on, reach from 45 s on.

    45 s − 1 µs  45 s      50 s   55 s    60 s
    a            b         c      ·       d
    ·············|reach           |grace
    a is out of reach of itself; b is in reach; c sees what is left of its window.
    """
    s = SECOND
    table = [("d", 60 * s, "d"), ("a", 45 * s - 1, ""), ("b", 45 * s, "b"), ("c", 50 * s, "bc")]
    assert seen("10s", table, lateness="5s") == table


def test_what_went_out_of_reach_is_out_for_good_in_memory_or_not() -> None:
    """lateness 5 s, over="10s": b stood in c's window until d moved the reach from 6 s to 46 s.

    7 s   12 s   21 s          61 s
    b·····c                    d
          a  (late: sees b)    then e at 12 s sees nothing
    """
    s = SECOND
    table = [("b", 7 * s, "b"), ("c", 21 * s, "c"), ("a", 12 * s, "ba"), ("d", 61 * s, "d"), ("e", 12 * s, "")]
    assert seen("10s", table, lateness="5s") == table


def test_the_reach_of_the_last_events_is_the_latest_of_those_older_than_the_grace() -> None:
    """lateness 5 s, over="2 events": newest d at 60 s, so that a, b and c are older than 55 s: b and c are in reach.

    0 s  1 s  2 s           55 s    60 s
    a    b    c             |grace  d
              ↑ E (2 s + 1 µs, without a value) sees b, c
         ↑ F (1 s + 1 µs, without a value) sees b; a is out of reach
    """
    s = SECOND
    table = [("a", 0, "a"), ("b", s, "ab"), ("c", 2 * s, "bc"), ("d", 60 * s, "cd"), ("E", 2 * s + 1, "bc")]
    assert seen("2 events", table, lateness="5s") == table
    table = [*table[:4], ("F", s + 1, "b")]
    assert seen("2 events", table, lateness="5s") == table


def test_a_late_event_beyond_grace_takes_one_of_the_last_places() -> None:
    """As before; e comes at 1.5 s with a value: among the two latest before 55 s are now e and c, b is out for good.

    0 s  1 s  1.5 s  2 s     60 s
    a    b    ·      c       d
              e               sees e alone; F at 1 s sees nothing
    """
    s = SECOND
    table = [("b", s, "b"), ("c", 2 * s, "bc"), ("d", 60 * s, "cd"), ("e", 3 * s // 2, "e"), ("F", s, "")]
    assert seen("2 events", table, lateness="5s") == table


def test_within_the_grace_the_last_events_reach_back_without_limit_in_number() -> None:
    """lateness 60 s, over="2 events": all are younger than the grace, so that e (late) sees its own two.

    0 s  1 s  2 s  3 s
    a    b    c    d
         E                sees a, b
    """
    s = SECOND
    table = [("a", 0, "a"), ("b", s, "ab"), ("c", 2 * s, "bc"), ("d", 3 * s, "cd"), ("E", s, "ab")]
    assert seen("2 events", table, lateness="60s") == table


@pytest.mark.parametrize("over", ["10s", "3 events"])
def test_a_condition_leaves_events_out(over: str) -> None:
    """where=steps is null for all: no event is in any window, and all of them ask."""
    table = [("a", 0, ""), ("b", SECOND, "")]
    assert seen(over, table, where=reading.steps > 1) == table
