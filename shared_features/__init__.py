"""The feature library that batch and streaming share: definitions, expressions, windows and their kernel."""

from shared_features.aggregates import (
    Key,
    count,
    first,
    lag,
    last,
    max,
    mean,
    min,
    seconds_since_last,
    std,
    sum,
    variance,
)
from shared_features.app import App, Label, Model, Prediction, Reaction, Rule, load_app, prediction
from shared_features.compute import compute
from shared_features.events import EventType
from shared_features.nodes import coalesce, where

__all__ = [
    "App",
    "EventType",
    "Key",
    "Label",
    "Model",
    "Prediction",
    "Reaction",
    "Rule",
    "coalesce",
    "compute",
    "count",
    "first",
    "lag",
    "last",
    "load_app",
    "max",
    "mean",
    "min",
    "prediction",
    "seconds_since_last",
    "std",
    "sum",
    "variance",
    "where",
]
