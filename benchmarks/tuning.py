"""What `sameriver tune` gains on the flights: over the app's own options, and over chance with as many trials.

    python -m benchmarks.tuning                          boosted trees, about 10 minutes on 2 cores
    python -m benchmarks.tuning --kind wide_and_deep     the app's model within the app's space, about 25 minutes

Both searches see the validation split (October) only. Then the app's own options and both winners are trained with
three seeds and asked about the test split (November and December): the gain in AUC has its 95 % interval by DeLong,
paired over the test rows, for the mean of each one's three models.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from benchmarks.flights_quality import markdown, plain, signed
from benchmarks.learning import Kept, test_labels
from shared_features import Model, load_app
from training.intervals import auc_difference, auc_interval
from training.rows import open_rows
from training.tune import SPACES, tune

SEEDS = (1, 2, 3)
STRATEGIES = ("random", "bayesian")
OWN = "the defaults"


@click.command()
@click.option("--rows", type=click.Path(path_type=Path), default=Path("var/training/flights"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench/tuning"), show_default=True)
@click.option("--kind", type=click.Choice(["boosted_trees", "wide_and_deep"]), default="boosted_trees")
@click.option("--trials", default=20, show_default=True)
def main(rows: Path, out: Path, kind: str, trials: int) -> None:
    """Print a table, and the options that won."""
    opened, app = open_rows(rows), load_app("flights")
    opened.require_fingerprint(app.fingerprint)
    model = app.models[0] if kind == "wide_and_deep" else Model(kind)
    own, space = (json.loads(json.dumps(part)) for part in (model.options, model.space or SPACES[kind]))
    chosen, losses = {OWN: own}, dict[str, float]()
    for strategy in STRATEGIES:
        found = tune(
            rows, model.name, out / kind / strategy, options=own, space=space, strategy=strategy, trials=trials
        )
        name = f"best of {trials} trials, {strategy}"
        chosen[name], losses[name] = found["best"]["options"], found["best"]["log_loss"]
        losses[OWN] = found["defaults"]["log_loss"]
        click.echo(f"{strategy}: {json.dumps(found['best']['options'])}", err=True)
    kept, labels = Kept(out, opened), test_labels(opened)
    means = {
        name: np.mean([kept.learned(opened, model.name, options, seed).scores for seed in SEEDS], axis=0)
        for name, options in chosen.items()
    }
    single = {
        name: [auc_interval(labels, kept.learned(opened, model.name, options, seed).scores).value for seed in SEEDS]
        for name, options in chosen.items()
    }
    lines = [
        [
            "options",
            "validation log loss",
            "test AUC, seeds 1 to 3",
            "AUC of the three together",
            "gain over the defaults",
        ]
    ]
    for name, scores in means.items():
        gain = auc_difference(labels, scores, means[OWN])
        each = ", ".join(f"{auc:.4f}" for auc in single[name])
        together = plain(auc_interval(labels, scores))
        lines.append([name, f"{losses[name]:.5f}", each, together, "" if len(lines) == 1 else signed(gain)])
    click.echo(markdown(lines))
    winner, chance = (means[f"best of {trials} trials, {strategy}"] for strategy in ("bayesian", "random"))
    click.echo(f"bayesian over random: {signed(auc_difference(labels, winner, chance))}")


if __name__ == "__main__":
    main()
