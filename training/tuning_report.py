"""What a search has tried: as JSON, as a page with a table, and as a plot of parallel coordinates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from shared_features.whole_files import replace_text
from training.page import image, table, text, write_page

BEST_SHOWN = 3
"""Trials drawn as broad lines."""


def write_tuning(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``tuning.json``, ``tuning.html`` and ``tuning.png`` of what `training.tune.tune` found; returns it with the
    files' names."""
    files = [str(out / name) for name in ("tuning.json", "tuning.html", "tuning.png")]
    whole = {**report, "files": files}
    png = parallel_coordinates(report)
    Path(files[2]).write_bytes(png)
    title = f"{report['app']}: options of {report['model']}"
    best, own = report["best"], report["defaults"]
    said = (
        f"{len(report['trials'])} trials, {report['strategy']} search; validation log loss {best['log_loss']:.4f} with "
        f"the best options"
    )
    said += "" if own["log_loss"] is None else f", {own['log_loss']:.4f} with those of the app"
    headings, lines = tuning_table(report)
    parts = [f"<h1>{text(title)}</h1><p>{text(said)}.</p>", image(png), table(headings, lines)]
    write_page(Path(files[1]), title, parts)
    replace_text(Path(files[0]), json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return whole


def tuning_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of all trials, the best first."""
    options = list(report["space"])
    lines = []
    for one in sorted(report["trials"], key=_order):
        name = "the app's own" if one["number"] == 0 else f"trial {one['number']}"
        figures = [_figure(one["log_loss"]), _figure(one["auc"]), f"{one['seconds']:.0f}"]
        lines.append([name, *figures, *(_shown(one["options"].get(option)) for option in options)])
    return ["", "log loss", "AUC", "seconds", *options], lines


def parallel_coordinates(report: Mapping[str, Any]) -> bytes:
    """PNG: one line a trial through what it tried and what came of it; dark ones predict better."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = [one for one in report["trials"] if one["log_loss"] is not None and one["number"]]
    losses = np.array([one["log_loss"] for one in trials])
    axes_of = [*report["space"], "log loss"]
    figure = Figure(figsize=(1.6 * len(axes_of) + 1, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1)
    if trials:
        low, high = float(losses.min()), float(np.quantile(losses, 0.9))
        ranks = losses.argsort().argsort()
        for one, loss, rank in zip(trials, losses, ranks, strict=True):
            places = [_place(report["space"][name], one["options"][name]) for name in report["space"]]
            places.append(float(np.clip((loss - low) / max(high - low, 1e-12), 0, 1)))
            broad = rank < BEST_SHOWN
            colour = colormaps["viridis"](0.95 * rank / max(len(trials) - 1, 1))
            axes.plot(places, color=colour, linewidth=2.6 if broad else 0.9, zorder=3 if broad else 2)
        _ends(axes, len(axes_of) - 1, f"{low:.4f}", f"{high:.4f} or more")
    for place, name in enumerate(report["space"]):
        tried = report["space"][name]
        first, last = (tried[0], tried[-1]) if isinstance(tried, list) else (tried["low"], tried["high"])
        axes.axvline(place, color="0.7", linewidth=0.8, zorder=1)
        _ends(axes, place, _shown(first), _shown(last))
    axes.set_xticks(range(len(axes_of)), axes_of, fontsize=9)
    axes.set(yticks=[], ylim=(-0.12, 1.12), title=f"What was tried for {report['model']}: the broad lines are the best")
    for side in ("top", "left", "right", "bottom"):
        axes.spines[side].set_visible(False)
    written = BytesIO()
    figure.savefig(written, format="png", dpi=110)
    return written.getvalue()


def _ends(axes: Any, place: float, low: str, high: str) -> None:
    axes.text(place, -0.03, low, ha="center", va="top", fontsize=8)
    axes.text(place, 1.03, high, ha="center", va="bottom", fontsize=8)


def _place(tried: Sequence[Any] | Mapping[str, Any], value: Any) -> float:
    """Where a value lies on its axis, 0 to 1."""
    if isinstance(tried, Mapping):
        low, high = tried["low"], tried["high"]
        if tried["log"]:
            low, high, value = np.log(low), np.log(high), np.log(value)
        return float((value - low) / (high - low))
    return list(tried).index(value) / (len(tried) - 1)


def _order(one: Mapping[str, Any]) -> tuple[float, int]:
    return (float("inf") if one["log_loss"] is None else one["log_loss"], one["number"])


def _figure(value: float | None) -> str:
    return "astray" if value is None else f"{value:.5f}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " · ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else str(value)
