"""Eighteen features of a vessel's speed: count, mean, deviation over six windows, 30 min to 24 h; and a small model."""

from typing import Any

from benchmarks.positions import WINDOWS_S, by_vessel, position
from shared_features import App, Model, count, mean, std
from shared_features.expressions import Expression

features: dict[str, Expression] = {}
for window_s in WINDOWS_S:
    options: dict[str, Any] = {"by": by_vessel, "over": f"{window_s}s"}
    features[f"count_{window_s}"] = count(position.speed, **options)
    features[f"mean_{window_s}"] = mean(position.speed, scale=1e-3, **options)
    features[f"std_{window_s}"] = std(position.speed, scale=1e-3, **options)

app = App(
    "bench_vessels",
    predict_on=position,
    event_types=[position],
    features=features,
    models=[Model("slow")],
)
