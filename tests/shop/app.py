"""A small app that uses every aggregate: sales and visits of shops."""

from shared_features import (
    App,
    EventType,
    Key,
    Label,
    Reaction,
    Rule,
    count,
    first,
    lag,
    last,
    last_values,
    max,
    mean,
    min,
    prediction,
    seconds_since_last,
    std,
    sum,
    variance,
)

sale = EventType("sale", "schemas/sale.avsc", time="sold_at")
visit = EventType("visit", "schemas/visit.avsc", time="entered_at")
by_shop = Key("shop", sale.shop, visit.shop)
by_till = Key("till", sale.till)

app = App(
    name="shop",
    event_types=[sale, visit],
    predict_on=sale,
    features={
        "amount": sale.amount,
        "kind": sale.kind,
        "hour": sale.sold_at.hour("America/New_York"),
        "count_10s": count(sale.amount, by=by_shop, over="10s"),
        "sum_10s": sum(sale.amount, by=by_shop, over="10s"),
        "mean_10s": mean(sale.amount, by=by_shop, over="10s"),
        "mean_5s_both": mean(sale.amount, by=by_shop, over="5s", closed="both"),
        "mean_5s_others": mean(sale.amount, by=by_shop, over="5s", include_self=False),
        "variance_10s": variance(sale.amount, by=by_shop, over="10s", scale=1),
        "std_20s": std(sale.amount, by=by_shop, over="20s"),
        "std_sample_20s": std(sale.amount, by=by_shop, over="20s", sample=True),
        "variance_sample_10s": variance(sale.units, by=by_shop, over="10s", sample=True),
        "min_10s": min(sale.amount, by=by_shop, over="10s"),
        "max_20s": max(sale.amount, by=by_shop, over="20s"),
        "first_10s": first(sale.amount, by=by_shop, over="10s"),
        "last_10s": last(sale.amount, by=by_shop, over="10s", include_self=False),
        "lag2_20s": lag(sale.amount, 2, by=by_shop, over="20s"),
        "amounts_20s": last_values(sale.amount, 3, by=by_shop, over="20s"),
        "kinds_20s": last_values(sale.kind, 2, by=by_shop, over="20s", include_self=False),
        "units_sum_10s": sum(sale.units, by=by_shop, over="10s"),
        "units_max_till": max(sale.units, by=by_till, over="20s"),
        "paid_share_10s": mean(sale.paid, by=by_shop, over="10s"),
        "big_10s": count(sale.amount, by=by_shop, over="10s", where=sale.amount > 2.0),
        "visit_last_10s": last(visit.length, by=by_shop, over="10s"),
        "visit_age": seconds_since_last(visit.length, by=by_shop, over="20s"),
        "ratio": mean(sale.amount, by=by_shop, over="10s") / mean(visit.length, by=by_shop, over="10s"),
    },
    label=Label(visit.length >= 3.0, join=("shop", "shop"), within="20s"),
    models=[Rule("big_sale", sale.amount > 2.0)],
    reactions=[Reaction("praise", when=prediction() > 0.5, payload={"amount": sale.amount})],
    lateness="15s",
)
