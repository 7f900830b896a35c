"""The same features with a rule, which needs no model server."""

from benchmarks.positions import position
from benchmarks.vessels.app import features
from shared_features import App, Rule

app = App(
    "bench_vessels",
    predict_on=position,
    event_types=[position],
    features=features,
    models=[Rule("slow", features["mean_1800"] < 4.0)],
)
