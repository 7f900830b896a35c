"""A small app for fault tests: one key, windows that a lost, doubled or misplaced event would change."""

import shared_features as sf
from shared_features import App, EventType, Key, Reaction, Rule, count, last, prediction

reading = EventType("reading", "schemas/reading.avsc", time="read_at")
by_meter = Key("meter", reading.meter)

app = App(
    name="meters",
    event_types=[reading],
    predict_on=reading,
    features={
        "x": reading.x,
        "count_1m": count(reading.x, by=by_meter, over="1m"),
        "count_1h": count(reading.x, by=by_meter, over="1h"),
        "last_1m": last(reading.x, by=by_meter, over="1m", include_self=False),
        "max_1m": sf.max(reading.x, by=by_meter, over="1m"),
        "min_10": sf.min(reading.x, by=by_meter, over="10 events"),
    },
    models=[Rule("odd", reading.x > 0)],
    reactions=[Reaction("alarm", when=prediction() > 0.5)],
    lateness="2h",
)
