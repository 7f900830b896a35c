"""The flights' app, watched: its features, label and KPIs, with alarms and a gate for a year that is simulated."""

from apps.flights.app import app as flights
from shared_features import Alarm, App, Gate, Model

app = App(
    name="year",
    event_types=list(flights.event_types.values()),
    predict_on=flights.predict_on,
    features=flights.features,
    label=flights.label,
    models=[
        Model(
            "wide_and_deep",
            crosses=[("origin", "carrier")],
            embeddings=["dest"],
            baseline="departure_delay",
            epochs=6,  # it is trained several times in a year
        )
    ],
    kpis=flights.kpis,
    gates=[Gate("auc", not_worse_by=0.0)],
    alarms=[
        Alarm("ks", above=0.27, until=0.15, of=["carrier_arrival_delay_mean_6h"]),
        Alarm("auc", below=0.78, until=0.8),
    ],
)
