"""Whether a candidate may take the champion's place: the app's rules, asked of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared_features.gates import HIGHER_IS_BETTER


def judge(rules: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a candidate.

    Args:
        rules: `shared_features.gates.Gate.definition` of each.
        report: of `training.evaluate.evaluate`, with a champion if there is one.

    Returns:
        ``passed``, and under ``rules`` for each rule ``rule`` (in words), ``passed``, ``measured`` (in words) and
        ``slices`` (how many were asked; 0 for all rows together).
    """
    judged = [_judge(rule, report) for rule in rules]
    return {"passed": all(one["passed"] for one in judged), "rules": judged}


def _judge(rule: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    metric = rule["metric"]
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0
    name = next(one for one in ("at_least", "at_most", "not_worse_by") if one in rule)
    bound = float(rule[name])
    words = {"at_least": f"{metric} >= {bound:g}", "at_most": f"{metric} <= {bound:g}"}
    words["not_worse_by"] = f"{metric} not worse than the champion's by more than {bound:g}"
    of_slices = f" in every {', '.join(rule['slices'])}" if rule["slices"] else ""
    verdict: dict[str, Any] = {"rule": words[name] + of_slices, "passed": True, "measured": "", "slices": 0}
    champion = report["champion"] or {}
    if name == "not_worse_by" and not champion:
        return verdict | {"measured": "there is no champion"}
    if name == "not_worse_by" and "incomparable" in champion:
        return verdict | {"passed": False, "measured": champion["incomparable"]}
    if not rule["slices"]:
        if name == "not_worse_by":
            change = report["figures"][metric] - champion["figures"][metric]
            return verdict | {"passed": sign * change >= -bound, "measured": f"{change:+.4f}"}
        figure = report["figures"][metric]
        return verdict | {"passed": sign * figure >= sign * bound, "measured": f"{figure:.4f}"}
    worst: tuple[float, str] | None = None
    for one, place in _slices(rule["slices"], report):
        verdict["slices"] += 1
        found = one["against_champion"][metric] if name == "not_worse_by" else one[metric]
        limit = -sign * bound if name == "not_worse_by" else bound
        best = found["high"] if sign > 0 else found["low"]  # the end of the interval that is kindest to the candidate
        margin = sign * (best - limit)
        verdict["passed"] = verdict["passed"] and margin >= 0
        if worst is None or margin < worst[0]:
            worst = margin, f"{place}: {found['value']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
    return verdict | {"measured": "no slice is large enough" if worst is None else f"worst {worst[1]}"}


def _slices(features: Sequence[str], report: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for one in report["slices"]:
        if one["feature"] in features:
            yield one, f"{one['feature']} = {one['value']}"
