"""Gates, costs, slices and their intervals: what decides whether a candidate may be promoted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shared_features import App, EventType, Gate
from shared_features.errors import ConfigurationError, DefinitionError
from tests import training_rows
from tests.repository import ROOT
from training.costs import Costs, cost_curve, cost_figures
from training.gate import judge
from training.importance import permutation_importance
from training.intervals import auc_difference, auc_interval, mean_interval
from training.metrics import bootstrap_auc
from training.slices import slice_figures, slices_of


def said(rows: int = 3_000, noise: float = 1.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.random(rows) < 0.3
    return labels, 1 / (1 + np.exp(-(2.0 * labels - 1.5 + random.normal(0, noise, rows))))


def test_intervals_of_an_auc_are_those_of_the_bootstrap() -> None:
    labels, one = said()
    other = one + np.random.default_rng(2).normal(0, 0.1, len(one))
    drawn = bootstrap_auc(labels, {"one": one, "other": other}, resamples=400, seed=1)
    alone, between = auc_interval(labels, one), auc_difference(labels, one, other)
    np.testing.assert_allclose([alone.low, alone.high], np.quantile(drawn["one"], [0.025, 0.975]), atol=0.004)
    paired = np.quantile(drawn["one"] - drawn["other"], [0.025, 0.975])
    np.testing.assert_allclose([between.low, between.high], paired, atol=0.002)
    assert auc_difference(labels, one, one) == auc_difference(labels, other, other)
    assert mean_interval(np.array([1.0, 3.0])).low == pytest.approx(2 - 1.96, abs=0.001)


def test_costs_by_hand() -> None:
    labels = np.array([False, True, False, True])
    probabilities = np.array([0.1, 0.3, 0.3, 0.9])
    thresholds, cost = cost_curve(labels, probabilities, Costs(1, 3))
    assert thresholds.tolist() == [0.1, 0.3, 0.9, np.inf]
    #                          two false alarms, one, one miss, two misses; for 1,000 rows
    assert cost.tolist() == [500.0, 250.0, 750.0, 1500.0]
    found = cost_figures(labels, probabilities, Costs(1, 3))
    assert (found["threshold"], found["cost"], found["best_cost"], found["alarms"]) == (0.25, 250.0, 250.0, 0.75)
    with pytest.raises(ConfigurationError, match="must be numbers above 0, but a false alarm is said to cost 0"):
        Costs(0, 1)


def test_slices_are_the_most_frequent_values_missing_ones_and_months() -> None:
    test = training_rows.table(2_000, 3)
    sizes = {(feature, value): len(rows) for feature, value, rows in slices_of(test, ["carrier", "hour"])}
    assert sum(count for (feature, _), count in sizes.items() if feature == "carrier") == 2_000
    assert ("carrier", "missing") in sizes
    assert len([one for one in sizes if one[0] == "hour"]) == 12  # of 24
    labels = test["label"].to_numpy(zero_copy_only=False).astype(bool)
    found = slice_figures(test, ["carrier"], labels, np.full(2_000, 0.3))
    assert "RARE" not in {one["value"] for one in found}  # three rows say nothing
    assert all(one["auc"]["value"] == 0.5 for one in found)
    with pytest.raises(ConfigurationError, match="at most 60 values, but 'delay' has more"):
        list(slices_of(test, ["delay"]))
    with pytest.raises(ConfigurationError, match="'moon' is none of"):
        list(slices_of(test, ["moon"]))


def report(**changed: Any) -> dict[str, Any]:
    """An evaluation of a model of AUC 0.90 whose champion has 0.91; in one slice it is surely worse by 0.03."""
    between = {"auc": {"value": -0.04, "low": -0.05, "high": -0.03}}
    close = {"auc": {"value": -0.04, "low": -0.10, "high": 0.02}}
    interval = {"value": 0.8, "low": 0.75, "high": 0.85}
    slices = [
        {"feature": "shop", "value": "west", "auc": interval, "against_champion": between},
        {"feature": "shop", "value": "north", "auc": interval, "against_champion": close},
    ]
    champion = {"figures": {"auc": 0.91, "log_loss": 0.30}}
    return {"figures": {"auc": 0.90, "log_loss": 0.31}, "slices": slices, "champion": champion} | changed


@pytest.mark.parametrize(
    ("gate", "changed", "passed", "measured"),
    [
        (Gate("auc", at_least=0.9), {}, True, "0.9000"),
        (Gate("auc", at_least=0.901), {}, False, "0.9000"),
        (Gate("log_loss", at_most=0.31), {}, True, "0.3100"),
        (Gate("log_loss", not_worse_by=0.005), {}, False, "+0.0100"),
        (Gate("auc", not_worse_by=0.011), {}, True, "-0.0100"),
        (Gate("auc", not_worse_by=0.02, slices=["shop"]), {}, False, "worst shop = west: -0.0400 (-0.0500 to -0.0300)"),
        (Gate("auc", not_worse_by=0.03, slices=["shop"]), {}, True, "worst shop = west"),
        (Gate("auc", at_least=0.84, slices=["shop"]), {}, True, "worst shop = west"),  # perhaps it is
        (Gate("auc", at_least=0.86, slices=["shop"]), {}, False, "worst shop = west"),
        (Gate("auc", at_least=0.86, slices=["shop"]), {"slices": []}, True, "no slice is large enough"),
        (Gate("auc", not_worse_by=0.0), {"champion": None}, True, "there is no champion"),
        (Gate("auc", not_worse_by=0.0), {"champion": {"incomparable": "other features"}}, False, "other features"),
    ],
)
def test_a_gate_judges(gate: Gate, changed: dict[str, Any], passed: bool, measured: str) -> None:
    verdict = judge([gate.definition], report(**changed))
    (one,) = verdict["rules"]
    assert (verdict["passed"], one["passed"]) == (passed, passed)
    assert measured in one["measured"]


def app(*gates: Gate) -> App:
    sale = EventType("sale", ROOT / "tests" / "shop" / "schemas" / "sale.avsc", time="sold_at")
    return App("shop", event_types=[sale], predict_on=sale, features={"amount": sale.amount}, gates=gates)


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (lambda: Gate("accuracy", at_least=1), "metric 'accuracy', wanted one of auc, average_precision"),
        (lambda: Gate("auc", at_most=1), "wanted one of at_least= and not_worse_by="),
        (lambda: Gate("auc"), "got the bounds {}"),
        (lambda: Gate("brier", at_most=0.1, not_worse_by=0.1), "wanted one of at_most= and not_worse_by="),
        (lambda: Gate("auc", at_least=-1), "a number of 0 or more"),
        (lambda: Gate("auc", at_least=0.5, slices="shop"), "wanted a list of features"),
        (lambda: Gate("calibration_error", at_most=0.1, slices=["shop"]), "auc or log_loss or brier"),
        (lambda: app(Gate("auc", at_least=0.5, slices=["amuont"])), "no such feature; did you mean 'amount'?"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(define: Callable[[], object], words: str) -> None:
    with pytest.raises(DefinitionError, match=words.replace("(", r"\(").replace("?", r"\?").replace("{}", r"\{\}")):
        define()


def test_gates_are_no_part_of_the_fingerprint() -> None:
    assert app().fingerprint == app(Gate("auc", at_least=0.9)).fingerprint
    assert [gate.metric for gate in app().gates] == ["auc", "log_loss"]  # the default ones


def test_without_rows_for_importance_nobody_is_asked() -> None:
    """As `sameriver promote` judges: two rows with one outcome would be no reason to refuse a model."""
    test = pa.table({"feature": [1.0, 2.0], "label": [True, True]})
    assert permutation_importance(lambda _: pytest.fail("asked"), test, ["feature"], rows=0) == []
