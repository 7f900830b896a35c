"""Look for better options of a model: train with many, and say which predict the validation split best.

    python -m training.tune --rows var/training/flights --model wide_and_deep --trials 20 --out var/tuning/flights

The test split is not looked at. What was tried is written as JSON, as a page and as a plot; see `training.search` for
what a search that was killed goes on from.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path
from typing import Any

from shared_features.errors import ConfigurationError
from training.options import KINDS
from training.progress import Progress, Tell, quiet, run_command
from training.recipe import recipe
from training.rows import open_rows
from training.trial import run_trial
from training.workers import TrialWorkers

REPORT_FILE, PAGE_FILE, PLOT_FILE = "tuning.json", "tuning.html", "tuning.png"

_RATE = {"low": 5e-4, "high": 1e-2, "log": True}
_DEEP: dict[str, Any] = {
    "units": [[64, 64], [128, 128], [128, 128, 128], [256, 256], [256, 256, 256]],
    "embedding": [4, 8, 16],
    "buckets": {"low": 8, "high": 64, "log": True},
    "dropout": {"low": 0.0, "high": 0.4, "log": False},
    "learning_rate": _RATE,
    "weight_decay": {"low": 1e-3, "high": 0.1, "log": True},
}
SPACES: Mapping[str, Mapping[str, Any]] = {
    "wide_and_deep": _DEEP | {"cross_hash_buckets": [1_009, 5_003, 20_011]},
    "deep": _DEEP,
    "logistic": {"buckets": _DEEP["buckets"], "learning_rate": _RATE, "weight_decay": _DEEP["weight_decay"]},
    "boosted_trees": {
        "leaves": {"low": 8, "high": 128, "log": True},
        "learning_rate": {"low": 0.02, "high": 0.2, "log": True},
        "min_leaf_rows": {"low": 10, "high": 200, "log": True},
        "regularization": {"low": 0.01, "high": 100.0, "log": True},
        "feature_share": {"low": 0.2, "high": 1.0, "log": False},
    },
}
"""What is tried for a kind of model where the app does not say."""


def tune(
    rows_folder: Path | str,
    model_name: str,
    out: Path | str,
    *,
    options: Mapping[str, Any] | None = None,
    space: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
    strategy: str = "bayesian",
    trials: int = 20,
    minutes: float | None = None,
    workers: int = 1,
    seed: int = 1,
    quick: bool = False,
    progress: Tell = quiet,
) -> dict[str, Any]:
    """Try options until the budget is spent; the same call again goes on, or finds that all is done.

    The app's own options are the first trial, so that what wins is never worse than they are.

    Args:
        rows_folder, model_name, options, fingerprint, seed, quick: as for `training.train.train`.
        out: folder for what was tried.
        space: see `training.search.Search`; that of ``SPACES`` where None or empty.
        strategy: one of `training.search.STRATEGIES`.
        trials: how many at most, the first one included.
        minutes: begin no trial after so many, those of earlier calls for the same search included.
        workers: processes that try at the same time; 1 tries in this one.
        progress: told after each trial.

    Returns:
        What ``tuning.json`` holds: ``best`` with its ``options``, all of those that differ from the defaults of the
        kind; ``defaults``, the app's own; ``trials``; ``files``.

    Raises:
        HistoryError, FingerprintError, ConfigurationError: as `training.train.train`.
    """
    options = dict(options or {})
    kind = options.pop("kind", model_name)
    if kind not in SPACES:
        raise ConfigurationError(
            f"A model to tune must be one of {', '.join(SPACES)}, but is {kind!r}: of {', '.join(KINDS)} the others "
            "have nothing to try."
        )
    space = dict(space or SPACES[kind])
    rows = open_rows(rows_folder)
    rows.require_fingerprint(fingerprint)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from training.search import Search

    searched = recipe(rows, model_name, {**options, "space": space, "strategy": strategy}, {}, seed=seed, quick=quick)
    search = Search(out / f"search-{searched[:12]}.json", space, strategy, trials - 1, seed)
    spent_s, started = sum(one.seconds for one in search.tried) / workers, time.monotonic()

    def begin() -> tuple[int, dict[str, Any]] | None:
        minutes_spent = (spent_s + time.monotonic() - started) / 60
        if len(search.tried) + len(running) >= trials or (minutes is not None and minutes_spent >= minutes):
            return None
        zero = all(one.number for one in search.tried) and 0 not in [number for number, _ in running.values()]
        return (0, {}) if zero else search.next()

    running: dict[Future[dict[str, Any]], tuple[int, dict[str, Any]]] = {}
    pool: Executor = TrialWorkers(rows, kind, seed, quick, workers) if workers > 1 else _Here()
    with pool:
        while True:
            while len(running) < workers and (trial := begin()) is not None:
                running[pool.submit(run_trial, rows, kind, options | trial[1], seed, quick=quick)] = trial
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                found = future.result()
                number, changed = running.pop(future)
                search.finish(number, **found, options=changed)
                said = f"trial {len(search.tried)} of {trials}: log loss {found['log_loss']:.4f}"
                best = search.best()
                best_said = "" if best is None else f", best so far {best.log_loss:.4f}"
                progress(Progress("try", len(search.tried) / trials, said + best_said))
    best = search.best()
    if best is None:
        raise ConfigurationError(f"None of {len(search.tried)} trials came out well: narrow the model's space.")
    from training.tuning_report import write_tuning

    own = next(one for one in search.tried if one.number == 0)
    report = {
        "app": rows.app,
        "model": model_name,
        "kind": kind,
        "strategy": strategy,
        "seed": seed,
        "quick": quick,
        "space": space,
        "trials": [_plain(one) for one in sorted(search.tried, key=lambda one: one.number)],
        "best": {**_plain(best), "options": options | dict(best.options)},
        "defaults": _plain(own),
    }
    return write_tuning(out, report)


def _plain(tried: Any) -> dict[str, Any]:
    return {name: getattr(tried, name) for name in ("number", "options", "log_loss", "auc", "seconds")}


class _Here(Executor):
    """Runs what it is given at once, in the thread that gives it."""

    def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*arguments, **named))
        return future


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m training.tune``; exit code 2 on an expected error."""
    parser = argparse.ArgumentParser(prog="python -m training.tune", description="Look for better options of a model.")
    parser.add_argument("--rows", required=True, type=Path, help="folder of training rows")
    parser.add_argument("--model", default=KINDS[0], help="its kind, or any name with the option kind")
    parser.add_argument("--options", default="{}", type=json.loads, help="the model's options as a JSON object")
    parser.add_argument("--space", default="{}", type=json.loads, help="what is tried, as a JSON object")
    parser.add_argument("--fingerprint", help="refuse rows of other features than these")
    parser.add_argument("--strategy", default="bayesian", choices=("bayesian", "random"))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer rows and epochs a trial")
    parser.add_argument("--out", required=True, type=Path, help="folder of what was tried")
    parser.add_argument("--json", action="store_true", help="progress and result as JSON lines")
    given = parser.parse_args(arguments)
    chosen = {name: value for name, value in vars(given).items() if name not in ("rows", "model", "out", "json")}

    def work(tell: Tell) -> dict[str, Any]:
        return tune(given.rows, given.model, given.out, **chosen, progress=tell)

    return run_command(work, lambda result: json.dumps(result["best"]), given.json)


if __name__ == "__main__":
    sys.exit(main())
