"""A flight's chance to be late, by two features; `after` has the same app with two more."""

from shared_features import App, EventType, Model, Reaction, prediction

flight = EventType("flight", "../flight.avsc", time="left_at")

app = App(
    name="departures",
    event_types=[flight],
    predict_on=flight,
    features={"carrier": flight.carrier, "delay": flight.delay},
    models=[Model("chance")],
    reactions=[Reaction("warn", when=prediction() >= 0.0, payload={"carrier": flight.carrier})],
)
