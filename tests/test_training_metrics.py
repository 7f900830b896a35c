"""Figures that judge a model, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_features.errors import HistoryError
from training.metrics import (
    average_precision,
    bootstrap_auc,
    brier_score,
    calibration_curve,
    calibration_error,
    figures,
    log_loss,
    rank_auc,
    roc_curve,
)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in rows])
    scores = np.array([float(score) for _, score in rows])
    positive, negative = scores[labels], scores[~labels]
    if len(positive) == 0 or len(negative) == 0:
        with pytest.raises(HistoryError, match="needs both outcomes"):
            rank_auc(labels, scores)
        return
    pairs = [1.0 if high > low else 0.5 if high == low else 0.0 for high in positive for low in negative]
    assert rank_auc(labels, scores) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_auc_and_log_loss_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
    from sklearn.metrics import log_loss as sklearn_log_loss

    random = np.random.default_rng(1)
    labels = random.random(20_000) < 0.2
    probabilities = np.round(np.clip(0.2 + 0.3 * labels + random.normal(0, 0.2, 20_000), 0.001, 0.999), 3)
    assert rank_auc(labels, probabilities) == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert log_loss(labels, probabilities) == pytest.approx(sklearn_log_loss(labels, probabilities), abs=1e-12)
    assert brier_score(labels, probabilities) == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-12)
    assert average_precision(labels, probabilities) == pytest.approx(
        average_precision_score(labels, probabilities), abs=1e-12
    )
    false_rate, hit_rate = roc_curve(labels, probabilities)
    assert np.trapezoid(hit_rate, false_rate) == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert (false_rate[0], hit_rate[0], false_rate[-1], hit_rate[-1]) == (0, 0, 1, 1)


def test_log_loss_of_certainty_that_was_wrong_is_large_and_finite() -> None:
    assert log_loss(np.array([1, 0]), np.array([0.0, 0.0])) == pytest.approx(-np.log(1e-7) / 2, rel=1e-6)


def test_calibration_error_by_hand() -> None:
    #                      bin 1: said 0.15, was 0.5    bin 2: said 0.8, was 0.5
    labels = np.array([0, 1, 1, 0])
    probabilities = np.array([0.1, 0.2, 0.7, 0.9])
    predicted, observed, rows = calibration_curve(labels, probabilities, bins=2)
    np.testing.assert_allclose(predicted, [0.15, 0.8])
    np.testing.assert_allclose(observed, [0.5, 0.5])
    assert rows.tolist() == [2, 2]
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx((0.35 + 0.3) / 2)
    assert figures(labels, probabilities)["mean_prediction"] == pytest.approx(0.475)


def test_bootstrap_draws_the_same_rows_for_every_score() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(3)
    labels = random.random(300) < 0.3
    scores = {"good": labels + random.normal(0, 1, 300), "poor": labels + random.normal(0, 3, 300).round()}
    drawn = bootstrap_auc(labels, scores, resamples=40, seed=5)
    rows = np.random.default_rng(5).integers(0, 300, (40, 300), dtype=np.int32)
    for name, score in scores.items():
        slow = [roc_auc_score(labels[one], score[one]) for one in rows]
        np.testing.assert_allclose(drawn[name], slow, atol=1e-12)


def test_a_real_difference_has_an_interval_without_zero_and_none_has_one_with_it() -> None:
    random = np.random.default_rng(4)
    labels = random.random(4_000) < 0.3
    good = labels + random.normal(0, 1.0, 4_000)
    poor = labels + random.normal(0, 1.5, 4_000)
    as_good = good + random.normal(0, 0.01, 4_000)
    drawn = bootstrap_auc(labels, {"good": good, "poor": poor, "as good": as_good}, resamples=200, seed=1)
    low, high = np.quantile(drawn["good"] - drawn["poor"], [0.025, 0.975])
    assert 0 < low < rank_auc(labels, good) - rank_auc(labels, poor) < high
    low, high = np.quantile(drawn["good"] - drawn["as good"], [0.025, 0.975])
    assert low <= 0 <= high
