"""A tenth of the case, and variants of it: fewer rows, one hot key, late events; then what each aggregate costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import shared_features as sf
from benchmarks.live import features, warm
from benchmarks.positions import Positions, app_of, blocks, by_vessel, case, position, read, write
from shared_features.expressions import Expression
from shared_features.plan import Plan, make_plan
from shared_features.state import StageState

TIMES_MEAN = 5.0
"""An aggregate that costs more than this many times the mean is flagged."""

OVER = ("6h", "10 events")

Aggregate = Callable[..., Expression]

# What is measured as which name: one line each, called with by= and over=.
speed, exact = position.speed, 1e-3
AGGREGATES: Mapping[str, Aggregate] = {
    "mean": partial(sf.mean, speed, scale=exact),
    "count": partial(sf.count, speed),
    "sum": partial(sf.sum, speed, scale=exact),
    "variance": partial(sf.variance, speed, scale=exact),
    "std": partial(sf.std, speed, scale=exact),
    "std(sample)": partial(sf.std, speed, scale=exact, sample=True),
    "min": partial(sf.min, speed),
    "max": partial(sf.max, speed),
    "first": partial(sf.first, speed),
    "last": partial(sf.last, speed),
    "lag(3)": partial(sf.lag, speed, 3),
    "last_values(5)": partial(sf.last_values, speed, 5),
    "difference": partial(sf.difference, speed),
    "seconds_since_last": partial(sf.seconds_since_last, speed, include_self=False),
    "rate": partial(sf.rate, speed),
    "share": partial(sf.share, speed > 5),
    "distinct_count": partial(sf.distinct_count, speed),
    "most_frequent": partial(sf.most_frequent, speed),
    "slope": partial(sf.slope, speed, scale=exact),
    "decayed_sum(1h)": partial(sf.decayed_sum, speed, "1h", scale=exact),
    "decayed_mean(1h)": partial(sf.decayed_mean, speed, "1h", scale=exact),
}
REASONS: Mapping[str, str] = {
    "most_frequent": "counts the values of its window anew for every row, in a hash table",
    "slope": "adds up time times value over its window for every row: 128 bits each, relative to the first event",
    "decayed_sum(1h)": "weighs every event of its window anew: exact weights of whole numbers depend on the age",
    "decayed_mean(1h)": "weighs every event of its window anew: exact weights of whole numbers depend on the age",
}
"""Why an aggregate may be flagged. Over the last few events none is."""

WITHOUT_LENGTH = {"rate"}
"""Aggregates that a window of the last n events cannot have."""

VARIANTS: Mapping[str, dict[str, Any]] = {
    "mixed": {},
    "uniform": {"vessels": "uniform"},
    "hot": {"vessels": "hot"},
    "late": {"late_share": 0.1},
}


def timed(plan: Plan, file: Path, rows: int | None = None) -> float:
    """Seconds that the features of the file take, from an empty state; reading is not timed."""
    state, seconds = StageState(plan.stages[0]), 0.0
    for block in blocks(read(file, rows=rows)):
        begin = time.perf_counter()
        features(plan, state, block)
        seconds += time.perf_counter() - begin
    return seconds


def measure(folder: Path, rows: int, repetitions: int) -> dict[str, Any]:
    """Median seconds of each variant at ``rows`` rows, and the aggregates' costs at half of them."""
    for name, options in VARIANTS.items():
        write(Positions(rows, **options).generate(), folder / f"{name}.arrow")
    plan = make_plan(case())
    measure_speed = 1 - sf.where(speed > 17, 1.0, speed / 17)
    plans = {name: (plan, folder / f"{name}.arrow") for name in VARIANTS}
    plans["measure_speed"] = (make_plan(case(measure_speed, scale=1e-6)), folder / "mixed.arrow")
    for variant, file in plans.values():
        warm(variant, file)
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for _ in range(repetitions):
        for name, (variant, file) in plans.items():
            seconds[name].append(timed(variant, file))
    medians = {name: median(taken) for name, taken in seconds.items()}
    return {"rows": rows, "seconds": medians, "aggregates": costs(folder / "mixed.arrow", rows // 2, repetitions)}


def costs(file: Path, rows: int, repetitions: int) -> list[dict[str, Any]]:
    """Nanoseconds a row of an app of one feature, each aggregate over each of `OVER`, the block's way included."""
    plans: dict[tuple[str, str], Plan] = {}
    for over in OVER:
        for name, aggregate in AGGREGATES.items():
            if over.endswith("events") and name in WITHOUT_LENGTH:
                continue
            plans[name, over] = make_plan(app_of({"feature": aggregate(by=by_vessel, over=over)}))
            warm(plans[name, over], file)
    taken: dict[tuple[str, str], list[float]] = {place: [] for place in plans}
    for _ in range(repetitions):
        for place, plan in plans.items():
            taken[place].append(timed(plan, file, rows))
    ns = {place: median(seconds) / rows * 1e9 for place, seconds in taken.items()}
    return [
        {
            "aggregate": name,
            "over": over,
            "ns_per_row": round(cost, 1),
            "times_mean": round(cost / ns["mean", over], 2),
            "flagged": cost > TIMES_MEAN * ns["mean", over],
            "reason": REASONS.get(name, "") if cost > TIMES_MEAN * ns["mean", over] else "",
        }
        for (name, over), cost in ns.items()
    ]
