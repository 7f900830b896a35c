"""Definitions: what is wrong is refused at import, in one sentence that names the place; the fingerprint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
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
    coalesce,
    count,
    lag,
    last_values,
    load_app,
    mean,
    minimum,
    prediction,
    std,
    where,
)
from shared_features import max as greatest
from shared_features.errors import ConfigurationError, DefinitionError, FingerprintError
from shared_features.fingerprint import check_same
from shared_features.lists import Listed
from tests.shop.app import app, by_shop, by_till, sale, visit

recent = last_values(sale.amount, 3, by=by_shop, over="1h")


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
    "nearly a field": (lambda: sale.amuont, "; did you mean 'amount'?"),
    "nearly a field, by its name": (lambda: sale.field("kin"), "; did you mean 'kind'?"),
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
    "isin a text": (lambda: sale.kind.isin("tea"), "wanted a list of values"),
    "isin mixed": (lambda: sale.kind.isin(["tea", 1]), "cannot compare string with 1"),
    "isin of timestamps": (lambda: sale.sold_at.isin([1]), "cannot compare timestamp with 1"),
    "abs of text": (lambda: abs(sale.kind), "abs of"),
    "floor of a timestamp": (lambda: sale.sold_at.floor(), "got a timestamp, wanted a number"),
    "log of text": (lambda: sale.kind.log(), "got a string, wanted a number"),
    "bucket of text": (lambda: sale.kind.bucket([1]), "got a string, wanted a number"),
    "bucket without edges": (lambda: sale.amount.bucket([]), "wanted one or more finite numbers"),
    "bucket descending": (lambda: sale.amount.bucket([2, 1]), "each greater than the one before"),
    "bucket edges equal": (lambda: sale.amount.bucket([1, 1.0]), "each greater than the one before"),
    "bucket edge infinite": (lambda: sale.amount.bucket([1, float("inf")]), "finite numbers"),
    "bucket edge NaN": (lambda: sale.amount.bucket([float("nan")]), "finite numbers"),
    "bucket edge of text": (lambda: sale.amount.bucket(["a"]), "finite numbers"),  # type: ignore[list-item]
    "hash of floats": (lambda: sale.amount.hash_bucket(10), "wanted a string or an integer"),
    "no hash buckets": (lambda: sale.kind.hash_bucket(0), "wanted a whole number from 1"),
    "clip reversed": (lambda: sale.amount.clip(2, 1), "got low=2 and high=1"),
    "clip nothing": (lambda: sale.amount.clip(), "wanted low up to high, or one"),
    "lesser text": (lambda: minimum(sale.kind, "a"), "wanted two numbers or two timestamps"),
    "lesser of number and time": (lambda: minimum(sale.sold_at, 1), "mixes timestamp and int64"),
    "day of a number": (lambda: sale.units.day_of_year(), "wanted a timestamp"),
    "list plus number": (lambda: recent + 1, "cannot add list and int64"),
    "list or list": (lambda: coalesce(recent, recent), "and no lists"),
    "list is null": (lambda: recent.is_null(), "a list is never null"),
    "list of lists": (lambda: Listed([recent]), "wanted one or more values of one type"),
    "list of nothing": (lambda: Listed([]), "wanted one or more values of one type"),
    "list of two types": (lambda: Listed([sale.amount, sale.kind]), "wanted one or more values of one type"),
    "aggregate of a list": (lambda: count(Listed([sale.amount]), by=by_shop, over="1h"), "got a list"),
    "list of no values": (lambda: last_values(sale.amount, 0, by=by_shop, over="1h"), "from 1 to 1000"),
    "list as probability": (lambda: Rule("r", recent), "gives a list"),
    "list of timestamps": (
        lambda: make(features={"a": last_values(sale.sold_at, 2, by=by_shop, over="1h")}),
        "is a timestamp or a list of them",
    ),
    "feature of a number": (lambda: make(features={"a": 1}), "wanted an expression"),
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
    "label nearly joined": (
        lambda: make(label=Label(visit.length > 1.0, join=("shop", "shp"), within="1h")),
        "; did you mean 'shop'?",
    ),
    "label joins two types": (
        lambda: make(label=Label(visit.length > 1.0, join=("till", "shop"), within="1h")),
        "label joins sale.till, a int64, with visit.shop, a string: wanted two fields of one type",
    ),
    "label joins one name": (
        lambda: Label(visit.length > 1.0, join="shop", within="1h"),  # type: ignore[arg-type]
        "wanted two names of fields",
    ),
    "label of an aggregate": (
        lambda: Label(count(visit.length, by=by_shop, over="1h") > 1, join=("shop", "shop"), within="1h"),
        "wanted a boolean over the fields of exactly one",
    ),
    "label of a type left out": (
        lambda: make(
            event_types=[sale],
            features={"a": sale.amount},
            label=Label(visit.length > 1.0, join=("shop", "shop"), within="1h"),
        ),
        "label reads event type 'visit', not in event_types ['sale']",
    ),
    "model crosses an unknown feature": (
        lambda: make(models=[Model("m", crosses=[("amount", "maen")])]),
        "names 'maen' in crosses=, but the app has no such feature; did you mean 'mean'?",
    ),
    "model embeds a number": (
        lambda: make(models=[Model("m", embeddings=["amount"])]),
        "in embeddings=, a feature of type float64, wanted one of string",
    ),
    "model's baseline is text": (
        lambda: make(features={"kind": sale.kind}, models=[Model("m", baseline="kind")]),
        "in baseline=, a feature of type string",
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
    message = str(caught.value)
    assert wanted in message
    assert "\n" not in message
    assert re.search(r" \(tests/test_definitions\.py:\d+\)$", message), "it names the line"


def test_missing_schema_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"missing\.avsc"):
        EventType("sale", tmp_path / "missing.avsc", time="sold_at")


APP = """from shared_features import *
from tests.shop.app import sale, visit, by_shop, App

delay = mean(sale.amount,
             by=by_shop, over="1h")
app = App(
    name="small",
    event_types=[sale, visit],
    predict_on=sale,
    features={
        "amount": sale.amount,
        "mean": delay,
        "other": %s,
    },
)
"""


@pytest.mark.parametrize(
    ("feature", "wanted", "line"),
    [
        ("sale.amuont", "has no field 'amuont'", 13),
        ("sale.kind + 1", "cannot add string and int64", 13),
        ("visit.length", "feature 'other' reads visit.length directly", 13),
        ("delay", "features 'mean' and 'other' are the same", 4),
        ('sale.units, "mean": sale.units', "app 'small' defines the feature 'mean' twice", 13),
    ],
)
def test_an_error_names_the_line_of_the_apps_file(tmp_path: Path, feature: str, wanted: str, line: int) -> None:
    (tmp_path / "app.py").write_text(APP % feature)
    with pytest.raises(DefinitionError) as caught:
        load_app(str(tmp_path))
    assert wanted in str(caught.value)
    assert str(caught.value).endswith(f"({tmp_path / 'app.py'}:{line})")


def test_names_repeated_in_a_dictionary_of_its_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from shared_features import *\nfrom tests.shop.app import sale\n"
        'made = {\n    "a": sale.amount,\n    "a": sale.units,\n}\n'
        'app = App("small", event_types=[sale], predict_on=sale, features=made)\n'
    )
    with pytest.raises(DefinitionError, match=r"defines the feature 'a' twice: .*app\.py:5\)$"):
        load_app(str(tmp_path))


def test_an_error_that_a_job_asked_for_names_no_line_of_the_job() -> None:
    globals_of_a_job = {"__name__": "commands.stream", "DefinitionError": DefinitionError}
    raised = FunctionType((lambda: DefinitionError("wrong")).__code__, globals_of_a_job)
    assert str(raised()) == "wrong"


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
