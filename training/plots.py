"""The pictures of an evaluation: who ranks better, whose probabilities are to be believed, what decisions cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.costs import Costs, cost_curve
from training.metrics import calibration_curve, rank_auc, roc_curve

Array = npt.NDArray[Any]

# Okabe and Ito's colours, told apart by the colour-blind too. The judged model is the first: a broad line that
# stays in sight under the others.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
POINTS = 400


@dataclass(frozen=True, slots=True)
class Judged:
    """One model's word on the test rows.

    Attributes:
        name: as the report calls it.
        probabilities: float [rows].
        scores: to rank by, float [rows]; often the probabilities.
    """

    name: str
    probabilities: Array
    scores: Array


def plot_evaluation(path: Path, title: str, labels: Array, models: Sequence[Judged]) -> None:
    """Write a PNG with the ROC curves and the calibration of some models on the same rows.

    Args:
        path: file to write.
        title: above both plots.
        labels: bool [rows].
        models: the one that is judged first.
    """
    figure = _figure(11, 5.2)
    figure.suptitle(title)
    roc, calibration = figure.subplots(1, 2)
    _draw_roc(roc, labels, models)
    _draw_calibration(calibration, labels, models)
    figure.savefig(path, dpi=140)


def plot_ranking(labels: Array, models: Sequence[Judged]) -> bytes:
    """PNG: the ROC curves, and precision against recall."""
    figure = _figure(11, 5.2)
    roc, precision = figure.subplots(1, 2)
    _draw_roc(roc, labels, models)
    for place, (model, style) in enumerate(_styled(models)):
        order = np.argsort(-model.scores, kind="stable")
        hits = np.cumsum(labels[order].astype(np.int64))
        shown = np.unique(np.linspace(max(len(order) // 200, 0), len(order) - 1, POINTS).astype(int))
        recall, share = hits[shown] / max(hits[-1], 1), hits[shown] / (shown + 1)
        precision.plot(recall, share, label=model.name if place == 0 else None, **style)
    precision.set(xlim=(0, 1), ylim=(0, 1), title="Precision and recall", xlabel="recall", ylabel="precision")
    precision.axhline(float(labels.mean()), color="0.6", linewidth=0.8, linestyle="--")
    precision.grid(color="0.9")
    return _png(figure)


def plot_calibration(labels: Array, models: Sequence[Judged]) -> bytes:
    """PNG: calibration, and how the judged model's probabilities are spread."""
    figure = _figure(11, 5.2)
    calibration, spread = figure.subplots(1, 2)
    _draw_calibration(calibration, labels, models)
    bins = np.linspace(0, 1, 41).tolist()
    for outcome, colour, name in ((False, COLOURS[0], "did not come to pass"), (True, COLOURS[1], "came to pass")):
        spread.hist(models[0].probabilities[labels == outcome], bins=bins, color=colour, alpha=0.6, label=name)
    spread.set(title=f"Probabilities of {models[0].name}", xlabel="predicted probability", ylabel="rows", yscale="log")
    spread.legend(frameon=False, fontsize=9)
    return _png(figure)


def plot_costs(labels: Array, models: Sequence[Judged], costs: Costs) -> bytes:
    """PNG: cost of 1,000 rows by the threshold from which on an alarm is given."""
    figure = _figure(7, 4.2)
    axes = figure.subplots(1, 1)
    highest = 0.0
    for model, style in _styled(models):
        thresholds, cost = cost_curve(labels, model.probabilities, costs)
        at = np.linspace(0, 1, POINTS)
        drawn = cost[np.searchsorted(thresholds, at)]
        highest = max(highest, float(cost[-1]), float(np.quantile(drawn, 0.95)))
        axes.plot(at, drawn, label=model.name, **style)
    axes.axvline(costs.threshold, color="0.4", linewidth=1, linestyle="--")
    axes.set(
        xlim=(0, 1), ylim=(0, highest * 1.1), xlabel="alarm from this probability on", ylabel="cost of 1,000 events"
    )
    axes.grid(color="0.9")
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def plot_slices(slices: Sequence[Mapping[str, Any]], auc: float) -> bytes:
    """PNG: AUC of each slice with its interval, beside that of all rows."""
    figure = _figure(8, 0.8 + 0.24 * len(slices))
    axes = figure.subplots(1, 1)
    places = np.arange(len(slices))[::-1]
    values = np.array([[one["auc"][part] for part in ("value", "low", "high")] for one in slices])
    axes.errorbar(
        values[:, 0],
        places,
        xerr=np.abs(values[:, 1:].T - values[:, 0]),
        fmt="o",
        color=COLOURS[0],
        markersize=4,
        linewidth=1,
    )
    axes.axvline(auc, color="0.4", linewidth=1, linestyle="--")
    axes.set_yticks(places, [f"{one['feature']} = {one['value']}" for one in slices], fontsize=8)
    axes.set(xlabel="AUC", ylim=(-1, len(slices)))
    axes.grid(color="0.9", axis="x")
    return _png(figure)


def plot_importance(importance: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG: what shuffling each feature costs."""
    figure = _figure(8, 0.8 + 0.22 * len(importance))
    axes = figure.subplots(1, 1)
    places = np.arange(len(importance))[::-1]
    lost = [one["auc_lost"] for one in importance]
    axes.barh(places, lost, xerr=[one["auc_lost_std"] for one in importance], color=COLOURS[0])
    axes.set_yticks(places, [one["feature"] for one in importance], fontsize=8)
    axes.set(xlabel="AUC lost", ylim=(-1, len(importance)))
    axes.grid(color="0.9", axis="x")
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    written = BytesIO()
    figure.savefig(written, format="png", dpi=100)
    return written.getvalue()


def _styled(models: Sequence[Judged]) -> list[tuple[Judged, dict[str, Any]]]:
    return [
        (model, {"color": colour, "linewidth": 3.2 if place == 0 else 1.2, "zorder": 4 + place})
        for place, (model, colour) in enumerate(zip(models, COLOURS, strict=False))
    ]


def _draw_roc(axes: Any, labels: Array, models: Sequence[Judged]) -> None:
    for model, style in _styled(models):
        false_rate, hit_rate = roc_curve(labels, model.scores)
        shown = np.unique(np.linspace(0, len(false_rate) - 1, POINTS).astype(int))
        auc = rank_auc(labels, model.scores)
        axes.plot(false_rate[shown], hit_rate[shown], label=f"{model.name} (AUC {auc:.4f})", **style)
    _square(axes)
    axes.set(title="ROC", xlabel="false alarm rate", ylabel="hit rate")


def _draw_calibration(axes: Any, labels: Array, models: Sequence[Judged]) -> None:
    for model, style in _styled(models):
        predicted, observed, _ = calibration_curve(labels, model.probabilities)
        axes.plot(predicted, observed, marker="o", markersize=4, label=model.name, **style)
    _square(axes)
    axes.set(title="Calibration (20 bins of equal count)", xlabel="predicted probability", ylabel="observed share")


def _square(axes: Any) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.grid(color="0.9")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
