"""Definitions: what is wrong is refused at import, in one sentence that names the place; the fingerprint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_features import (
    App,
    EventType,
    Key,
    Label,
    Model,
    Reaction,
    Rule,
    count,
    lag,
    load_app,
    mean,
    prediction,
    std,
    where,
)
from shared_features import max as greatest
from shared_features.errors import ConfigurationError, DefinitionError, FingerprintError
from shared_features.fingerprint import check_same
from tests.shop.app import app, by_shop, by_till, sale, visit


def make(**changes: Any) -> App:
    settings: dict[str, Any] = {
        "name": "small",
        "event_types": [sale, visit],
        "predict_on": sale,
        "features": {"amount": sale.amount, "mean": mean(sale.amount, by=by_shop, over="1h")},
    }
    return App(**{**settings, **changes})


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "unknown field": (lambda: sale.weight, "event type 'sale' has no field 'weight': it has"),
    "window of 0": (lambda: mean(sale.amount, by=by_shop, over="0s"), "wanted more than 0"),
    "window too long": (lambda: mean(sale.amount, by=by_shop, over="401d"), "at most 400 days"),
    "window unreadable": (lambda: mean(sale.amount, by=by_shop, over="1 hour"), "wanted one such as '90s'"),
    "mean of text": (lambda: mean(sale.kind, by=by_shop, over="1h"), "got a string, wanted a number"),
    "max of text": (lambda: greatest(sale.kind, by=by_shop, over="1h"), "wanted a number, boolean or timestamp"),
    "where no boolean": (lambda: count(sale.amount, by=by_shop, over="1h", where=sale.amount), "wanted a boolean"),
    "nested": (
        lambda: mean(mean(sale.amount, by=by_shop, over="1h"), by=by_shop, over="1h"),
        "aggregates take row-level inputs only",
    ),
    "two event types": (
        lambda: mean(sale.amount + visit.length, by=by_shop, over="1h"),
        "wanted fields of exactly one",
    ),
    "type without key": (lambda: mean(visit.length, by=by_till, over="1h"), "which key 'till' does not name"),
    "closed": (lambda: mean(sale.amount, by=by_shop, over="1h", closed="left"), "wanted 'right'"),
    "scale": (lambda: std(sale.amount, by=by_shop, over="1h", scale=0.3), "wanted 1 divided by a whole number"),
    "lag 0": (lambda: lag(sale.amount, 0, by=by_shop, over="1h"), "wanted a whole number from 1"),
    "key name": (lambda: Key("Shop", sale.shop), "is not a lower-case name"),
    "key without field": (lambda: Key("shop"), "names no field"),
    "key twice": (lambda: Key("shop", sale.shop, sale.kind), "names two fields of event type 'sale'"),
    "key of floats": (lambda: Key("shop", sale.amount), "wanted string or integer"),
    "key mixed": (lambda: Key("shop", sale.till, visit.shop), "mixes types of fields"),
    "no expression as key": (lambda: Key("shop", sale.till + 1), "wanted a field"),  # type: ignore[arg-type]
    "truth": (lambda: sale.amount > 1 and sale.paid, "write & | ~ instead of and, or, not"),
    "text plus number": (lambda: sale.kind + 1, "cannot add string and int64"),
    "text less than": (lambda: sale.kind < "a", "cannot compare string with string by lt"),
    "and of numbers": (lambda: sale.amount & sale.paid, "wanted two booleans"),
    "not of number": (lambda: ~sale.amount, "wanted a boolean"),
    "where of number": (lambda: where(sale.amount, 1, 2), "wanted a boolean"),
    "where mixed": (lambda: where(sale.paid, "a", 2), "wanted two values of one type"),
    "hour of number": (lambda: sale.amount.hour(), "wanted a timestamp"),
    "unknown zone": (lambda: sale.sold_at.hour("Europe/Atlantis"), "time zone 'Europe/Atlantis' is unknown"),
    "path as zone": (lambda: sale.sold_at.hour("../../etc/passwd"), "is unknown"),
    "NaN": (lambda: sale.amount > float("nan"), "is not a finite number"),
    "list as literal": (lambda: sale.amount == [1], "wanted bool, int, float or str"),
    "huge literal": (lambda: sale.amount + 2**63, "does not fit int64"),
    "isin nothing": (lambda: sale.kind.isin([]), "list at least one"),
    "no features": (lambda: make(features={}), "has no features"),
    "feature name": (lambda: make(features={"Mean": sale.amount}), "cannot be used"),
    "reserved name": (lambda: make(features={"label": sale.amount}), "cannot be used"),
    "same twice": (lambda: make(features={"a": sale.amount, "b": sale.amount}), "'a' and 'b' are the same"),
    "other event's field": (lambda: make(features={"a": visit.length}), "wanted a field of 'sale' or an aggregate"),
    "timestamp feature": (lambda: make(features={"a": sale.sold_at}), "is a timestamp"),
    "event type left out": (
        lambda: make(event_types=[sale]),
        "key 'shop' names 'visit', not in event_types",
    ),
    "event type twice": (lambda: make(event_types=[sale, sale]), "wanted each once"),
    "key not of the event": (
        lambda: make(features={"a": count(visit.length, by=Key("shop", visit.shop), over="1h")}),
        "names no field of 'sale'",
    ),
    "one key, two meanings": (
        lambda: make(
            features={
                "a": count(sale.amount, by=Key("k", sale.shop), over="1h"),
                "b": count(sale.amount, by=Key("k", sale.till), over="1h"),
            }
        ),
        "defines the key 'k' twice",
    ),
    "label no boolean": (lambda: Label(visit.length, join=("shop", "shop"), within="1h"), "wanted a boolean"),
    "label unknown join": (
        lambda: make(label=Label(visit.length > 1.0, join=("shop", "name"), within="1h")),
        "has no field 'name'",
    ),
    "prediction without model": (
        lambda: make(reactions=[Reaction("r", when=prediction() > 0.5)]),
        "app 'small' has no model",
    ),
    "unknown output": (
        lambda: make(models=[Model("m")], reactions=[Reaction("r", when=prediction("score") > 0.5)]),
        "uses output 'score'",
    ),
    "reaction no boolean": (lambda: Reaction("r", when=sale.amount), "wanted a boolean"),
    "reaction of a new aggregate": (
        lambda: make(
            models=[Model("m")], reactions=[Reaction("r", when=count(sale.amount, by=by_shop, over="2h") > 1)]
        ),
        "uses an aggregate that is no feature",
    ),
    "rule of text": (lambda: Rule("r", sale.kind), "wanted a number or a boolean"),
    "name twice": (lambda: make(models=[Model("m"), Model("m")]), "uses a name twice"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_definition_is_refused_in_one_sentence(case: str) -> None:
    define, wanted = WRONG[case]
    with pytest.raises(DefinitionError) as caught:
        define()
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_schema_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"missing\.avsc"):
        EventType("sale", tmp_path / "missing.avsc", time="sold_at")


def test_apps_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert load_app("flights").name == "flights"
    assert load_app("tests/shop").fingerprint == app.fingerprint
    with pytest.raises(ConfigurationError, match="was not found"):
        load_app("no_such_app")
    (tmp_path / "app.py").write_text("x = 1\n")
    with pytest.raises(ConfigurationError, match="defines no App called 'app'"):
        load_app(str(tmp_path))


def test_the_fingerprint_does_not_depend_on_the_order_of_features() -> None:
    features = {"amount": sale.amount, "mean": mean(sale.amount, by=by_shop, over="1h")}
    assert make(features=dict(reversed(features.items()))).fingerprint == make(features=features).fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        mean(sale.amount, by=by_shop, over="61m"),
        mean(sale.amount, by=by_shop, over="1h", scale=1e-3),
        mean(sale.amount, by=by_shop, over="1h", closed="both"),
        mean(sale.amount, by=by_shop, over="1h", include_self=False),
        mean(sale.amount, by=by_shop, over="1h", where=sale.paid),
        mean(sale.amount, by=Key("shop", sale.shop), over="1h"),
        std(sale.amount, by=by_shop, over="1h"),
    ],
    ids=["window", "scale", "closed", "self", "where", "key", "operation"],
)
def test_whatever_changes_a_value_changes_the_fingerprint_and_is_named(changed: Any) -> None:
    ours, theirs = make(), make(features={"amount": sale.amount, "mean": changed})
    assert ours.fingerprint != theirs.fingerprint
    with pytest.raises(FingerprintError, match="feature 'mean' differs from the one that model m was made with"):
        check_same(ours.definitions, theirs.definitions, "model m")


def test_lateness_is_part_of_the_fingerprint() -> None:
    with pytest.raises(FingerprintError, match="lateness_us differs"):
        check_same(make().definitions, make(lateness="1h").definitions, "model m")


def test_models_and_reactions_are_not_part_of_the_fingerprint() -> None:
    assert make(models=[Model("m")]).fingerprint == make().fingerprint
