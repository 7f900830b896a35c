"""Say of every position that a vessel reports whether the vessel is fishing there.

The data that come with the app, and all figures of models made of them, are simulated.
"""

from apps.vessels.areas import read_areas
from apps.vessels.published import published_features, published_model
from apps.vessels.shore import SHORE
from shared_features import (
    App,
    Clean,
    EventType,
    Key,
    Label,
    Model,
    Raster,
    Reaction,
    area_of,
    count,
    distance_from_last_m,
    first,
    great_circle_m,
    inside,
    last,
    prediction,
    seconds_since_last,
    share,
    speed_from_last_m_s,
    sun_elevation_deg,
    turn_deg,
)

position = EventType(
    "position",
    "schemas/position.avsc",
    time="reported_at",
    clean={  # what AIS sends for "not available"
        "latitude": Clean(null=[91.0], between=(-90, 90)),
        "longitude": Clean(null=[181.0], between=(-180, 180)),
        "speed": Clean(null=[102.3], between=(0, 102.2)),
        "course": Clean(null=[360.0], between=(0, 359.9)),
        "ship_type": Clean(null=[0]),
    },
)
rated = EventType("rated", "schemas/rated.avsc", time="rated_at")
trip_rated = EventType("trip_rated", "schemas/trip_rated.avsc", time="rated_at")

by_vessel = Key("vessel", position.vessel)
here = position.latitude, position.longitude

KNOT_M_S = 1852 / 3600
FASTEST_KNOTS, FARTHEST_M = 60.0, 5_000.0
LONGEST_GAP_S = 6 * 3600.0

published = published_features(position, by_vessel)
moved_m = distance_from_last_m(*here, by=by_vessel, over="24h")
implied_knots = speed_from_last_m_s(*here, by=by_vessel, over="24h") / KNOT_M_S
gap_s = seconds_since_last(position.vessel, by=by_vessel, over="24h", include_self=False)
start_3h = first(here[0], by=by_vessel, over="3h"), first(here[1], by=by_vessel, over="3h")
last_course = last(position.course, by=by_vessel, over="24h", include_self=False)
slow = (position.speed > 1.5) & (position.speed < 5.5)
areas = read_areas()
protected = inside(*here, areas)
fishing = prediction()

app = App(
    name="vessels",
    event_types=[position, rated, trip_rated],
    predict_on=position,
    features={
        **published,
        "speed": position.speed,
        "says_fishing": position.ship_type == 30,
        "ship_group": (position.ship_type / 10).floor(),
        "class_b": position.transponder == "B",
        "turn": turn_deg(last_course, position.course).abs(),
        "moved_m": moved_m,
        "gap_s": gap_s,
        "implied_knots": implied_knots,
        "implied_less_reported": implied_knots - position.speed,
        "away_from_3h_ago_m": great_circle_m(start_3h[0], start_3h[1], here[0], here[1]),
        "slow_share_6h": share(slow, by=by_vessel, over="6h"),
        "slow_share_24h": share(slow, by=by_vessel, over="24h"),
        "positions_24h": count(position.vessel, by=by_vessel, over="24h"),
        "shore_km": Raster.read(SHORE).at(*here),
        "sun": sun_elevation_deg(*here, position.reported_at),
    },
    label=Label(
        rated.fishing, join=("event_id", "position_id"), within="90d"
    ),  # an analyst rates when the trip is over
    models=[
        # Small: at 22 million positions a day each layer's arithmetic is felt.
        Model("wide_and_deep", baseline="slow_share_6h", units=[32, 32], buckets=12),
        Model("gfw_logistic", **published_model(list(published))),
    ],
    reactions=[
        Reaction(
            "fishing",
            when=fishing > 0.75,
            until=fishing < 0.25,
            announce="both",
            by=by_vessel,
            payload={"vessel": position.vessel, "latitude": here[0], "longitude": here[1], "probability": fishing},
        ),
        Reaction(
            "protected_area",
            when=(fishing > 0.75) & protected,
            until=(fishing < 0.25) | ~protected,
            by=by_vessel,
            payload={
                "vessel": position.vessel,
                "area": area_of(*here, areas),
                "latitude": here[0],
                "longitude": here[1],
            },
        ),
        Reaction(
            "implausible_position",
            when=(implied_knots > FASTEST_KNOTS) & (moved_m > FARTHEST_M),
            by=by_vessel,
            at_most=1,
            every="1h",
            payload={"vessel": position.vessel, "knots": implied_knots, "moved_m": moved_m},
        ),
        Reaction(
            "gap",
            when=gap_s > LONGEST_GAP_S,
            payload={"vessel": position.vessel, "gap_s": gap_s, "moved_m": moved_m},
        ),
    ],
    lateness="6h",
)
