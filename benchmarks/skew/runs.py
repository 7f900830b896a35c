"""All systems over all cases: what each gave, and the verdicts."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.skew.cases import FOLDER, Case, Value, load_cases
from benchmarks.skew.grade import FAIL, NOT_APPLICABLE, PASS, agreed, judged
from benchmarks.skew.systems import SYSTEMS, Answers, System
from shared_features.errors import ConfigurationError

EXPECTED = Path(__file__).resolve().parent / "expected.json"
"""What is known: for every system the cases that it does not pass, where, and why. Tests hold a run against it."""

NO_STREAM = "It computes over a finished table only: the live side has to be written a second time, by hand."
NOTHING_TO_RESTART = "It has no state of its own that a restart or a re-shard could lose."

Progress = Callable[[float, str], None]
Verdict = dict[str, Any]


def run(
    *,
    systems: Sequence[str] | None = None,
    cases: Path = FOLDER,
    among: Sequence[System] = SYSTEMS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Put systems to the test; about 15 seconds for all.

    Args:
        systems: names of some of them; None takes all.
        cases: folder of the cases.
        among: the systems that there are.
        progress: called with the share done and the step at work.

    Returns:
        JSON-able: ``cases`` (name, title, about), ``systems`` by name with ``batch``, ``stream`` and ``agree``
        (case to ``verdict``, ``note``, and ``got``; ``agree`` has no ``got``), ``counts`` of verdicts, ``versions``;
        ``seconds``.

    Raises:
        ConfigurationError: a case cannot be read, or there is no such system.
    """
    started = time.monotonic()
    loaded = load_cases(cases)
    chosen = _chosen(systems, among)
    known = expected()
    found = {}
    for number, system in enumerate(chosen):
        if progress is not None:
            progress(number / len(chosen), system.name)
        found[system.name] = _verdicts(system, loaded, known.get(system.name, {}))
    return {
        "cases": [{"name": case.name, "title": case.title, "about": case.about} for case in loaded],
        "systems": found,
        "seconds": round(time.monotonic() - started, 1),
    }


def expected() -> dict[str, dict[str, dict[str, Any]]]:
    """By system, then case: ``fails``, some of batch, stream and agree, and ``why`` in a sentence."""
    written: dict[str, dict[str, dict[str, Any]]] = json.loads(EXPECTED.read_text("utf-8"))
    return written


def _chosen(names: Sequence[str] | None, among: Sequence[System]) -> list[System]:
    known = {system.name: system for system in among}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigurationError(f"system {unknown[0]!r} is not known: wanted some of {', '.join(known)}")
    return [system for system in among if not names or system.name in names]


def _verdicts(system: System, cases: Sequence[Case], known: Mapping[str, Any]) -> dict[str, Any]:
    apply = [case for case in cases if system.applies(case)]
    batch = system.answers(system.batch, apply)
    stream = system.answers(system.stream, apply) if system.stream else None
    sides: dict[str, dict[str, Verdict]] = {"batch": {}, "stream": {}, "agree": {}}
    for case in cases:
        reason = known.get(case.name, {}).get("why", "")
        if case not in apply:
            for side in sides.values():
                side[case.name] = {"verdict": NOT_APPLICABLE, "note": reason or NOTHING_TO_RESTART}
            continue
        sides["batch"][case.name] = _verdict(case, batch, reason)
        if stream is None:
            for name in ("stream", "agree"):
                sides[name][case.name] = {"verdict": NOT_APPLICABLE, "note": NO_STREAM}
            continue
        sides["stream"][case.name] = _verdict(case, stream, reason)
        verdict, difference = agreed(case, batch[case.name], stream[case.name])
        sides["agree"][case.name] = {"verdict": verdict, "note": reason if verdict == FAIL else "", "seen": difference}
    return {
        **sides,
        "streams": stream is not None,
        "counts": {name: _counts(side) for name, side in sides.items()},
        "versions": _versions(system.packages),
    }


def _verdict(case: Case, answers: Answers, reason: str) -> Verdict:
    got = answers[case.name]
    verdict, difference = judged(case, got)
    listed = [] if isinstance(got, Exception) else [_jsonable(value) for value in got]
    return {"verdict": verdict, "note": reason if verdict == FAIL else "", "seen": difference, "got": listed}


def _jsonable(value: Value) -> Value:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _counts(side: Mapping[str, Verdict]) -> dict[str, int]:
    counts = Counter(verdict["verdict"] for verdict in side.values())
    return {name: counts[name] for name in (PASS, FAIL, NOT_APPLICABLE)}


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
