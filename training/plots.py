"""The picture of an evaluation: who ranks better, and whose probabilities are to be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    roc, calibration = figure.subplots(1, 2)
    for place, (model, colour) in enumerate(zip(models, COLOURS, strict=False)):
        style: dict[str, Any] = {"color": colour, "linewidth": 3.2 if place == 0 else 1.2, "zorder": 4 + place}
        false_rate, hit_rate = roc_curve(labels, model.scores)
        shown = np.unique(np.linspace(0, len(false_rate) - 1, POINTS).astype(int))
        auc = rank_auc(labels, model.scores)
        roc.plot(false_rate[shown], hit_rate[shown], label=f"{model.name} (AUC {auc:.4f})", **style)
        predicted, observed, _ = calibration_curve(labels, model.probabilities)
        calibration.plot(predicted, observed, marker="o", markersize=4, label=model.name, **style)
    for axes in (roc, calibration):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.grid(color="0.9")
        axes.legend(loc="lower right", frameon=False, fontsize=9)
    roc.set(title="ROC", xlabel="false alarm rate", ylabel="hit rate")
    calibration.set(
        title="Calibration (20 bins of equal count)", xlabel="predicted probability", ylabel="observed share"
    )
    figure.savefig(path, dpi=140)
