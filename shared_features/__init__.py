"""The feature library that batch and streaming share: definitions, expressions, windows and their kernel."""

from shared_features.aggregates import (
    count,
    decayed_mean,
    decayed_sum,
    difference,
    distinct_count,
    first,
    lag,
    last,
    last_values,
    max,
    mean,
    min,
    most_frequent,
    rate,
    seconds_since_last,
    share,
    slope,
    std,
    sum,
    variance,
)
from shared_features.app import App, load_app
from shared_features.areas import Areas, area_of, inside
from shared_features.choices import coalesce, maximum, minimum, where
from shared_features.clean import Clean
from shared_features.compute import compute
from shared_features.events import EventType
from shared_features.external import External
from shared_features.gates import Gate
from shared_features.geo import (
    bearing_deg,
    bearing_from_last_deg,
    distance_from_last_m,
    great_circle_m,
    speed_from_last_m_s,
    turn_deg,
)
from shared_features.grid import grid_cell
from shared_features.keys import Key
from shared_features.kpis import Alarm, Kpi, outcome
from shared_features.nearest import nearest_m
from shared_features.outcomes import Label, Model, Prediction, Reaction, Rule, prediction
from shared_features.raster import Raster
from shared_features.space import Between
from shared_features.sun import sun_above_horizon, sun_elevation_deg

__all__ = [
    "Alarm",
    "App",
    "Areas",
    "Between",
    "Clean",
    "EventType",
    "External",
    "Gate",
    "Key",
    "Kpi",
    "Label",
    "Model",
    "Prediction",
    "Raster",
    "Reaction",
    "Rule",
    "area_of",
    "bearing_deg",
    "bearing_from_last_deg",
    "coalesce",
    "compute",
    "count",
    "decayed_mean",
    "decayed_sum",
    "difference",
    "distance_from_last_m",
    "distinct_count",
    "first",
    "great_circle_m",
    "grid_cell",
    "inside",
    "lag",
    "last",
    "last_values",
    "load_app",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "most_frequent",
    "nearest_m",
    "outcome",
    "prediction",
    "rate",
    "seconds_since_last",
    "share",
    "slope",
    "speed_from_last_m_s",
    "std",
    "sum",
    "sun_above_horizon",
    "sun_elevation_deg",
    "turn_deg",
    "variance",
    "where",
]
