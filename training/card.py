"""The model card (Mitchell et al., 2019, arXiv:1810.03993): what a model was made of, how good it is, and where not.

Its limits are measured, not asserted: each sentence is there because the test rows showed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from training.rows import TrainingRows

SHOWN_SLICES = 3
NOTEWORTHY_SHARE = 0.01


def model_card(
    rows: TrainingRows, summary: Mapping[str, Any], report: Mapping[str, Any], test: pa.Table, purpose: str
) -> dict[str, Any]:
    """The card of one version, ready for JSON.

    Args:
        rows: that it was judged on.
        summary: that was exported with it.
        report: the evaluation, with its figures and slices.
        test: the test rows.
        purpose: what the model is for, in the app's words.

    Returns:
        ``purpose``, ``data`` (of each split rows, from, to), ``trained_rows``, ``fingerprint``, ``seed``, ``options``,
        ``libraries``, ``created``, ``features`` (how many), ``figures`` and ``limits`` (sentences).
    """
    return {
        "purpose": purpose,
        "data": summary["data"],
        "trained_rows": summary.get("trained_rows", 0),
        "fingerprint": summary["fingerprint"],
        "seed": summary.get("seed"),
        "options": summary["options"],
        "libraries": summary["libraries"],
        "created": summary["created"],
        "features": len(rows.features),
        "figures": report["figures"],
        "limits": _limits(rows, summary, report, test),
    }


def _limits(rows: TrainingRows, summary: Mapping[str, Any], report: Mapping[str, Any], test: pa.Table) -> list[str]:
    train = summary["data"]["train"]
    ends = [train["from"][:10], train["to"][:10], report["to"][:10]]
    found = ["Trained on events from {} to {} and tested up to {}: nothing here says how it is later.".format(*ends)]
    if summary["quick"]:
        found.append("Trained quickly, on few rows and epochs, for trying things out.")
    best = max(report["models"], key=lambda one: float(one["auc"]))
    if best is not report["models"][0]:
        found.append(f"{best['name']} ranks the test rows better: AUC {best['auc']:.4f} against {report['auc']:.4f}.")
    figures = report["figures"]
    bias = figures["mean_prediction"] - figures["positives"]
    if abs(bias) > NOTEWORTHY_SHARE:
        found.append(
            f"It predicts {figures['mean_prediction']:.1%} on average where {figures['positives']:.1%} came to pass."
        )
    found += _weak_slices(report)
    found += _unseen(rows, summary, test)
    return found


def _weak_slices(report: Mapping[str, Any]) -> list[str]:
    """The slices that are worse than the whole beyond doubt."""
    worse = [one for one in report["slices"] if one["auc"]["high"] < report["auc"]]
    worse.sort(key=lambda one: float(one["auc"]["high"]))
    said = [
        f"It ranks worse where {one['feature']} is {one['value']}: AUC {one['auc']['value']:.3f} "
        f"({one['auc']['low']:.3f} to {one['auc']['high']:.3f}, {one['rows']:,} rows)."
        for one in worse[:SHOWN_SLICES]
    ]
    off = [one for one in report["slices"] if one["bias"]["low"] > NOTEWORTHY_SHARE]
    off += [one for one in report["slices"] if one["bias"]["high"] < -NOTEWORTHY_SHARE]
    off.sort(key=lambda one: -abs(float(one["bias"]["value"])))
    return said + [
        f"It predicts too {'much' if one['bias']['value'] > 0 else 'little'} where {one['feature']} is "
        f"{one['value']}: by {abs(one['bias']['value']):.1%} ({one['rows']:,} rows)."
        for one in off[:SHOWN_SLICES]
    ]


def _unseen(rows: TrainingRows, summary: Mapping[str, Any], test: pa.Table) -> list[str]:
    """Values in the test rows that training has not shown."""
    statistics = summary.get("statistics", {})
    found = []
    for name in rows.texts:
        known = statistics.get("texts", {}).get(name)
        if known is None:
            continue
        values = test[name].cast(pa.string())
        vocabulary = pa.array([value for value, _ in known["vocabulary"]], pa.string())
        present = pc.drop_null(values)
        new = pc.sum(pc.invert(pc.is_in(present, value_set=vocabulary))).as_py() or 0
        if new / max(len(test), 1) > NOTEWORTHY_SHARE:
            found.append(f"{new / len(test):.1%} of the test rows have a {name} that training saw too seldom to know.")
    for name in rows.numbers:
        quantiles = statistics.get("numbers", {}).get(name, {}).get("quantiles") or []
        if not quantiles:
            continue
        values = test[name].cast(pa.float64())
        outside = pc.or_(pc.less(values, quantiles[0]), pc.greater(values, quantiles[-1]))
        share = (pc.sum(outside).as_py() or 0) / max(len(test), 1)
        if share > NOTEWORTHY_SHARE:
            found.append(f"{share:.1%} of the test rows have a {name} outside the range seen in training.")
    return found
