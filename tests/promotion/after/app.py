"""The app of `before` with two more features, which its callers need not know of."""

from shared_features import App, EventType, Key, Model, Reaction, count, mean, prediction

flight = EventType("flight", "../flight.avsc", time="left_at")
by_carrier = Key("carrier", flight.carrier)
often = count(flight.delay, by=by_carrier, over="1h")

app = App(
    name="departures",
    event_types=[flight],
    predict_on=flight,
    features={
        "carrier": flight.carrier,
        "delay": flight.delay,
        "delay_mean_1h": mean(flight.delay, by=by_carrier, over="1h"),
        "flights_1h": often,
    },
    models=[Model("chance")],
    reactions=[Reaction("warn", when=(prediction() >= 0.0) & (often >= 2), payload={"carrier": flight.carrier})],
)
