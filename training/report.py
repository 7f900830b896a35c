"""An evaluation as one HTML page that needs nothing else: plots inside, no script, no address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from training.costs import Costs
from training.page import image, table, text, write_page
from training.plots import Judged, plot_calibration, plot_costs, plot_importance, plot_ranking, plot_slices

Array = npt.NDArray[Any]


def write_report(path: Path, report: Mapping[str, Any], labels: Array, judged: Sequence[Judged], costs: Costs) -> None:
    """Write the page.

    Args:
        path: of the file.
        report: of `training.evaluate.evaluate`.
        labels: bool [rows].
        judged: the models, the one that is judged first.
        costs: that the cost curves are drawn for.
    """
    title = f"{report['app']}: {report['model']}, version {report['version']}"
    period = f"{report['rows']:,} test rows, {report['from'][:10]} to {report['to'][:10]}"
    parts = [
        f"<h1>{text(title)}</h1>",
        *(f"<p>{text(part)}</p>" for part in report["card"]["purpose"].split("\n\n") if part),
        f"<p>{text(period)}; {report['positives']:.1%} of them positive.</p>",
        _models(report),
        _gate(report),
        _kpis(report),
        "<h2>Ranking and calibration</h2>",
        image(plot_ranking(labels, judged)),
        image(plot_calibration(labels, judged)),
        _costs(report, labels, judged, costs),
        _slices(report),
        _importance(report),
        _card(report["card"]),
    ]
    write_page(path, title, parts)


def _models(report: Mapping[str, Any]) -> str:
    names = ("auc", "average_precision", "log_loss", "brier", "calibration_error", "mean_prediction")
    headings = ["model", "AUC", "average precision", "log loss", "Brier", "calibration error", "mean prediction"]
    lines = [[one["name"], *(f"{one[name]:.4f}" for name in names)] for one in report["models"]]
    gains = [
        [f"AUC gained on {one['against']}", f"{one['auc']:+.4f}", f"{one['low']:+.4f} to {one['high']:+.4f}"]
        for one in report["differences"]
    ]
    return table(headings, lines) + table(["", "difference", "95 % interval"], gains)


def _gate(report: Mapping[str, Any]) -> str:
    rules = report["gate"]["rules"]
    if not rules:
        return ""
    lines = [[one["rule"], one["measured"], "kept" if one["passed"] else "broken"] for one in rules]
    verdict = "may be promoted" if report["gate"]["passed"] else '<span class="no">may not be promoted</span>'
    return f"<h2>Gate</h2><p>This version {verdict}.</p>" + table(["rule", "measured", "verdict"], lines)


def _kpis(report: Mapping[str, Any]) -> str:
    found = report["kpis"]
    if not found:
        return ""
    lines = [
        [name, *(_told(one[part]) for part in ("value", "low", "high")), f"{one['rows']:,}"]
        for name, one in found.items()
    ]
    return (
        "<h2>KPIs</h2><p>Means over the test rows, with their 95 % intervals; sameriver monitor tells the same of live "
        f"predictions.</p>{table(['KPI', 'value', 'from', 'to', 'rows'], lines)}"
    )


def _told(value: float | None) -> str:
    return "no value" if value is None else f"{value:.6g}"


def _costs(report: Mapping[str, Any], labels: Array, judged: Sequence[Judged], costs: Costs) -> str:
    lines = [
        [
            one["name"],
            f"{one['costs']['cost']:.1f}",
            f"{one['costs']['alarms']:.1%}",
            f"{one['costs']['best_cost']:.1f}",
            f"{one['costs']['best_threshold']:.3f}",
        ]
        for one in report["models"]
    ]
    lines += [["an alarm at every event", f"{report['costs']['always']:.1f}", "100.0%", "", ""]]
    lines += [["no alarm ever", f"{report['costs']['never']:.1f}", "0.0%", "", ""]]
    headings = ["model", "cost of 1,000 events", "alarms", "best in hindsight", "at the threshold"]
    curves = image(plot_costs(labels, judged, costs))
    return (
        f"<h2>Costs</h2><p>A false alarm costs {costs.false_alarm:g}, a miss {costs.miss:g}: an alarm pays from a "
        f"probability of {costs.threshold:.3f} on.</p>{table(headings, lines)}{curves}"
    )


def _slices(report: Mapping[str, Any]) -> str:
    slices = report["slices"]
    if not slices:
        return ""
    headings = ["slice", "rows", "positive", "AUC (95 % interval)", "log loss", "Brier", "predicted too much by"]
    compared = report["champion"] is not None and "differences" in report["champion"]
    headings += ["AUC against the champion"] if compared else []
    lines = []
    for one in slices:
        line = [f"{one['feature']} = {one['value']}", f"{one['rows']:,}", f"{one['positives']:.1%}"]
        line += [_interval(one["auc"], "{:.3f}"), f"{one['log_loss']['value']:.4f}", f"{one['brier']['value']:.4f}"]
        line.append(_interval(one["bias"], "{:+.3f}"))
        line += [_interval(one["against_champion"]["auc"], "{:+.4f}")] if compared else []
        lines.append(line)
    return f"<h2>Slices</h2>{image(plot_slices(slices, report['auc']))}{table(headings, lines)}"


def _importance(report: Mapping[str, Any]) -> str:
    found = report["importance"]
    if not found:
        return ""
    lines = [[one["feature"], f"{one['auc_lost']:+.4f}", f"{one['log_loss_gained']:+.4f}"] for one in found]
    return (
        "<h2>Importance of the features</h2><p>What is lost where one feature's values are dealt out anew among the "
        "rows. Features that say the same cover for each other.</p>"
        f"{image(plot_importance(found))}{table(['feature', 'AUC lost', 'log loss gained'], lines)}"
    )


def _card(card: Mapping[str, Any]) -> str:
    data = [[split, f"{one['rows']:,}", one["from"][:19], one["to"][:19]] for split, one in card["data"].items()]
    made = [
        ["fingerprint of the features", card["fingerprint"]],
        ["features", str(card["features"])],
        ["rows trained on", f"{card['trained_rows']:,}"],
        ["seed", str(card["seed"])],
        ["made", card["created"]],
        ["by", ", ".join(f"{name} {version}" for name, version in sorted(card["libraries"].items()))],
        *([name, str(value)] for name, value in sorted(card["options"].items())),
    ]
    limits = "".join(f"<li>{text(one)}</li>" for one in card["limits"])
    return (
        f"<h2>Model card</h2><h3>Limits</h3><ul>{limits}</ul><h3>Data</h3>"
        f"{table(['split', 'rows', 'from', 'to'], data)}<h3>Made of</h3>{table(['', ''], made)}"
    )


def _interval(one: Mapping[str, float], form: str) -> str:
    return f"{form.format(one['value'])} ({form.format(one['low'])} to {form.format(one['high'])})"
