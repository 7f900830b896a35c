"""Predict, as a parcel is loaded into the van, whether it will come later than promised."""

from shared_features import App, EventType, Key, Label, Model, Reaction, Rule, count, last, mean, prediction

loaded = EventType("loaded", "schemas/loaded.avsc", time="loaded_at")
delivered = EventType("delivered", "schemas/delivered.avsc", time="delivered_at")

by_courier = Key("courier", loaded.courier, delivered.courier)
by_depot = Key("depot", loaded.depot, delivered.depot)
by_zone = Key("zone", loaded.zone, delivered.zone)

minutes_late = delivered.minutes_late  # whole minutes in this data: scale=1 below loses nothing

app = App(
    name="my_app",
    event_types=[loaded, delivered],
    predict_on=loaded,
    features={
        # The parcel itself.
        "stops_ahead": loaded.stops_ahead,
        "promised_in": loaded.promised_in,
        "weight": loaded.weight,
        "service": loaded.service,
        "depot": loaded.depot,
        "hour": loaded.loaded_at.hour("Europe/Berlin"),
        "weekday": loaded.loaded_at.weekday("Europe/Berlin"),
        # How the courier's day goes.
        "courier_minutes_late_mean_6h": mean(minutes_late, by=by_courier, over="6h", scale=1),
        "courier_late_share_24h": mean(minutes_late > 0, by=by_courier, over="24h"),
        "courier_loaded_1h": count(loaded.stops_ahead, by=by_courier, over="1h"),
        # The weather, strikes, a broken conveyor belt: what all vans of a depot suffer from.
        "depot_minutes_late_mean_3h": mean(minutes_late, by=by_depot, over="3h", scale=1),
        # Road works.
        "zone_minutes_late_last_24h": last(minutes_late, by=by_zone, over="24h"),
    },
    label=Label(minutes_late > 0, join=("parcel_id", "parcel_id"), within="24h"),
    models=[Model("wide_and_deep", crosses=[("depot", "hour")], baseline="stops_ahead", batch_rows=256)],
    baselines=[Rule("long_tour", loaded.stops_ahead >= 20)],
    reactions=[
        Reaction(
            "tell_customer",
            when=prediction() > 0.7,
            payload={"parcel_id": loaded.parcel_id, "zone": loaded.zone, "stops_ahead": loaded.stops_ahead},
        )
    ],
    lateness="12h",
)
