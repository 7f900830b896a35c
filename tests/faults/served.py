"""The fault tests' app with a model on a server instead of a rule."""

from shared_features import App, EventType, Key, Model, count, last

reading = EventType("reading", "schemas/reading.avsc", time="read_at")
by_meter = Key("meter", reading.meter)

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
