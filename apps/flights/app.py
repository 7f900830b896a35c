"""Predict, as a flight leaves the gate, whether it will arrive 15 minutes late or more."""

from shared_features import (
    Alarm,
    App,
    Between,
    EventType,
    Gate,
    Key,
    Kpi,
    Label,
    Model,
    Reaction,
    Rule,
    count,
    last,
    max,
    mean,
    outcome,
    prediction,
    seconds_since_last,
    std,
)

departed = EventType("departed", "schemas/departed.avsc", time="departed_at")
arrived = EventType("arrived", "schemas/arrived.avsc", time="arrived_at")
weather = EventType("weather", "schemas/weather.avsc", time="observed_at")

by_origin = Key("origin", departed.origin, arrived.origin, weather.origin)
by_dest = Key("dest", departed.dest, arrived.dest)
by_carrier = Key("carrier", departed.carrier, arrived.carrier)
by_plane = Key("plane", departed.tail_number, arrived.tail_number)

NEW_YORK = "America/New_York"
delay = departed.departure_delay  # minutes, whole ones in this data: scale=1 below loses nothing

app = App(
    name="flights",
    event_types=[departed, arrived, weather],
    predict_on=departed,
    features={
        # The flight itself.
        "departure_delay": delay,
        "scheduled_duration": departed.scheduled_duration,
        "distance": departed.distance,
        "carrier": departed.carrier,
        "origin": departed.origin,
        "dest": departed.dest,
        "hour": departed.scheduled_at.hour(NEW_YORK),
        "minute_of_day": departed.scheduled_at.minute_of_day(NEW_YORK),
        "weekday": departed.scheduled_at.weekday(NEW_YORK),
        "plane_year": departed.plane_year,
        "plane_seats": departed.plane_seats,
        # What leaves the same airport: queues at the runway, storms.
        "origin_delay_mean_1h": mean(delay, by=by_origin, over="1h", scale=1),
        "origin_delay_std_3h": std(delay, by=by_origin, over="3h", scale=1),
        "origin_delay_max_1h": max(delay, by=by_origin, over="1h"),
        "origin_departures_1h": count(delay, by=by_origin, over="1h"),
        "origin_late_share_3h": mean(delay >= 15, by=by_origin, over="3h"),
        "origin_lost_in_air_mean_3h": mean(arrived.arrival_delay, by=by_origin, over="3h", scale=1),
        # What goes to and comes in at the same destination: holding patterns there.
        "dest_arrival_delay_mean_6h": mean(arrived.arrival_delay, by=by_dest, over="6h", scale=1),
        "dest_arrival_late_share_24h": mean(arrived.arrival_delay >= 15, by=by_dest, over="24h"),
        "dest_departure_delay_mean_6h": mean(delay, by=by_dest, over="6h", scale=1),
        # How the airline's day goes.
        "carrier_delay_mean_3h": mean(delay, by=by_carrier, over="3h", scale=1),
        "carrier_arrival_delay_mean_6h": mean(arrived.arrival_delay, by=by_carrier, over="6h", scale=1),
        # Where the plane comes from.
        "plane_last_arrival_delay": last(arrived.arrival_delay, by=by_plane, over="24h"),
        "plane_seconds_since_arrival": seconds_since_last(arrived.arrival_delay, by=by_plane, over="24h"),
        "plane_departures_24h": count(delay, by=by_plane, over="24h"),
        # The weather at the origin, as last observed.
        "wind_speed": last(weather.wind_speed, by=by_origin, over="3h"),
        "wind_gust": last(weather.wind_gust, by=by_origin, over="3h"),
        "visibility": last(weather.visibility, by=by_origin, over="3h"),
        "precipitation_max_3h": max(weather.precipitation, by=by_origin, over="3h"),
        "temperature": last(weather.temperature, by=by_origin, over="3h"),
        "pressure": last(weather.pressure, by=by_origin, over="3h"),
    },
    label=Label(arrived.arrival_delay >= 15, join=("flight_id", "flight_id"), within="36h"),
    models=[
        Model(
            "wide_and_deep",
            crosses=[("origin", "carrier")],
            embeddings=["dest"],
            baseline="departure_delay",
            space={  # what `sameriver tune` may try
                "units": [[64, 64], [128, 128, 128], [256, 256, 256]],
                "embedding": [4, 8, 16],
                "crosses": [[("origin", "carrier")], [("origin", "carrier"), ("dest", "hour")]],
                "cross_hash_buckets": [101, 1_009, 20_011],
                "buckets": Between(8, 64, log=True),
                "dropout": Between(0.0, 0.4),
                "learning_rate": Between(5e-4, 1e-2, log=True),
                "weight_decay": Between(1e-3, 0.1, log=True),
            },
        ),
    ],
    baselines=[Rule("late_at_departure", delay >= 15)],
    gates=[  # a newly trained model keeps these, or is not promoted
        Gate("auc", not_worse_by=0.002),
        Gate("log_loss", not_worse_by=0.01, slices=["origin", "carrier"]),
        Gate("calibration_error", at_most=0.02),
    ],
    kpis=[  # a desk that rebooks passengers from a chance of 80 % on: what it missed, and what it did for nothing
        Kpi("missed", outcome() & (prediction() <= 0.8), scale=0),
        Kpi("rebooked_in_vain", ~outcome() & (prediction() > 0.8), scale=0),
    ],
    alarms=[  # weather drifts with the seasons, so that it is no news
        Alarm(
            "psi", above=0.25, until=0.1, of=["departure_delay", "dest_arrival_delay_mean_6h", "prediction"], windows=3
        ),
        Alarm("auc", below=0.85, until=0.87, windows=3),
    ],
    reactions=[
        Reaction(
            "rebook",
            when=(prediction() > 0.8) & (departed.distance > 500),
            payload={"flight_id": departed.flight_id, "dest": departed.dest, "departure_delay": delay},
        )
    ],
    lateness="24h",
)
