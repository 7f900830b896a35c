"""One trial of a search: train with some options, and say how well the validation split is predicted.

    python -m training.trial --rows var/training/flights --kind wide_and_deep --seed 1

As a process it takes ``{"options": …}`` a line on standard input and answers each with what `run_trial` returns, until
its input ends or whoever started it is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared_features.errors import SameriverError
from training.boosted_trees import KIND as TREES
from training.boosted_trees import BoostedTrees, BoostedTreesOptions
from training.options import WideAndDeepOptions
from training.rows import TrainingRows, open_rows
from training.statistics import compute_statistics


def run_trial(
    rows: TrainingRows,
    kind: str,
    options: Mapping[str, Any],
    seed: int,
    *,
    quick: bool = False,
    tell: Callable[[float, str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train as `training.train` does, without exporting.

    Returns:
        ``log_loss`` and ``auc`` of the validation split, and ``seconds``.

    Raises:
        ConfigurationError: an option that the kind does not have or that is out of range.
    """
    started = time.monotonic()
    if kind == TREES:
        measured = BoostedTrees(
            rows, BoostedTreesOptions.from_mapping(options, rows.numbers), seed, quick=quick
        ).measured
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        import keras

        from training.batches import ShuffledBatches
        from training.fit import fit
        from training.train import QUICK_EPOCHS, QUICK_ROWS

        chosen = WideAndDeepOptions.from_mapping(options, rows.numbers, rows.texts, kind)
        chosen = replace(chosen, epochs=min(chosen.epochs, QUICK_EPOCHS)) if quick else chosen
        statistics = compute_statistics(rows, buckets=chosen.buckets, min_rows=chosen.min_rows)
        sample_rows = min(QUICK_ROWS, rows.counts["train"]) if quick else None
        batches = ShuffledBatches(rows, batch_rows=chosen.batch_rows, seed=seed, sample_rows=sample_rows)
        _, epochs = fit(rows, statistics, chosen, batches, seed, tell, kind=kind)
        keras.backend.clear_session()
        measured = min(epochs, key=lambda one: one["validate_log_loss"])
    seconds = time.monotonic() - started
    return {"log_loss": measured["validate_log_loss"], "auc": measured["validate_auc"], "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m training.trial``."""
    parser = argparse.ArgumentParser(prog="python -m training.trial", description="Train and measure, again and again.")
    parser.add_argument("--rows", required=True)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    rows, parent = open_rows(given.rows), os.getppid()

    def alive(*_: object) -> None:
        if os.getppid() != parent:
            sys.exit(1)  # nobody waits for this trial any more

    for line in sys.stdin:
        try:
            answer = run_trial(rows, given.kind, json.loads(line)["options"], given.seed, quick=given.quick, tell=alive)
        except SameriverError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
