"""Definitions in words short enough for a table: ``mean(departed.departure_delay) by origin over 1h``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INFIX = {
    "add": "+",
    "subtract": "-",
    "multiply": "*",
    "divide": "/",
    "eq": "==",
    "ne": "!=",
    "ge": ">=",
    "gt": ">",
    "le": "<=",
    "lt": "<",
    "and": "&",
    "or": "|",
}
_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("µs", 1))


def said(definition: Any) -> str:
    """An expression's definition as a person would write it; the usual options of aggregates are left out.

    >>> said(["ge", ["field", "departed", "delay"], ["literal", "int64", 15]])
    '(departed.delay >= 15)'
    >>> by = {"by": ["origin", {}], "over_us": 3600000000, "where": None, "closed": "right", "include_self": False}
    >>> said(["mean", ["field", "departed", "delay"], by])
    'mean(departed.delay, by=origin, over=1h, include_self=False)'
    """
    if not isinstance(definition, list) or not definition or not isinstance(definition[0], str):
        return repr(definition)
    name, *rest = definition
    if name == "field":
        return ".".join(map(str, rest))
    if name == "literal":
        value = float.fromhex(rest[1]) if rest[0] == "float64" and isinstance(rest[1], str) else rest[1]
        return repr(value)
    if name in _INFIX and len(rest) == 2:
        return f"({said(rest[0])} {_INFIX[name]} {said(rest[1])})"
    if rest and isinstance(rest[-1], Mapping) and "by" in rest[-1]:
        return f"{name}({', '.join([*map(said, rest[:-1]), *_options(rest[-1])])})"
    if name == "list" and rest:
        return f"[{said(rest[0])}, … {len(rest)} in all]"
    return f"{name}({', '.join(map(said, rest))})"


def _options(options: Mapping[str, Any]) -> list[str]:
    found = [f"by={options['by'][0]}", f"over={over(options['over_us'], options.get('over_events', 0))}"]
    if options.get("where") is not None:
        found.append(f"where={said(options['where'])}")
    if options.get("closed", "right") != "right":
        found.append(f"closed={options['closed']}")
    if not options.get("include_self", True):
        found.append("include_self=False")
    if options.get("k"):
        found.append(f"k={options['k']}")
    if options.get("half_life_us"):
        found.append(f"half_life={over(options['half_life_us'], 0)}")
    return found


def over(window_us: int, events: int) -> str:
    """The length of a window as an app would say it.

    >>> over(5_400_000_000, 0), over(0, 10)
    ('90m', '10 events')
    """
    if events:
        return f"{events} events"
    return next(f"{window_us // size}{unit}" for unit, size in _UNITS if window_us % size == 0)
