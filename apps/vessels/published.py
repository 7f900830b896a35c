"""Global Fishing Watch's published logistic fishing score: its columns as features, its coefficients as they are.

The coefficients (gfw_logistic.json) are those of the model ``Logistic`` of Global Fishing Watch's repository
``vessel-scoring``, version 2.0.0: Copyright 2016 SkyTruth, Apache License 2.0. Only the numbers were taken over, none
of the code. docs/vessels.md says what they apply to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared_features import EventType, Key, mean, std, variance
from shared_features.expressions import Expression

WINDOWS_S = (1800, 3600, 10_800, 21_600, 43_200, 86_400)
FASTEST_KNOTS = 17.0
SCALE = 1e-12
"""The published numbers are powers of these columns up to the sixth: the finest scale there is keeps them apart."""


def published_features(position: EventType, by_vessel: Key) -> dict[str, Expression]:
    """The eighteen columns, over the positions in [t − w, t] that have a speed and a course.

    ``measure_speedavg_<w>``, ``measure_speedstddev_<w>`` and ``measure_coursestddev_<w>`` for each window of w seconds,
    in the order of the coefficients. Null where a window has no such position.
    """
    slowness = 1 - (position.speed / FASTEST_KNOTS).clip(high=1.0)
    north, east = (part * 0.5**0.5 for part in (position.course.cos_deg(), position.course.sin_deg()))
    known = ~position.speed.is_null() & ~position.course.is_null()
    found: dict[str, Expression] = {}
    for window_s in WINDOWS_S:
        options: dict[str, Any] = {"by": by_vessel, "over": f"{window_s}s", "closed": "both", "where": known}
        options["scale"] = SCALE
        found[f"measure_speedavg_{window_s}"] = mean(slowness, **options)
        found[f"measure_speedstddev_{window_s}"] = std(slowness, **options)
        spread = variance(north, **options) + variance(east, **options)
        found[f"measure_coursestddev_{window_s}"] = spread.sqrt()
    return found


def published_model(columns: list[str]) -> dict[str, Any]:
    """Options of the model: kind, columns, order, intercept and coefficients."""
    read = json.loads((Path(__file__).parent / "gfw_logistic.json").read_text(encoding="utf-8"))["args"]
    return {
        "kind": "polynomial_logistic",
        "columns": columns,
        "order": read["order"],
        "intercept": read["intercept"][0],
        "coefficients": read["coef"][0],
    }
