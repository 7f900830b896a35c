"""The fault tests' app with a model on a server instead of a rule."""

from shared_features import App, Model, count, last
from tests.faults.app import by_meter, reading

app = App(
    name="served",
    event_types=[reading],
    predict_on=reading,
    features={
        "x": reading.x,
        "count_1m": count(reading.x, by=by_meter, over="1m"),
        "last_1m": last(reading.x, by=by_meter, over="1m", include_self=False),
    },
    models=[Model("half", outputs=("y",))],
    lateness="2h",
)
