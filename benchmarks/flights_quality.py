"""How good the flights' models are, what each group of features brings, and what more rows or weights would bring.

    python -m benchmarks.flights_quality            all four tables, about 15 minutes on 2 cores
    python -m benchmarks.flights_quality ablation   one of models, ablation, rows, size

Asks for the training rows of `sameriver traindata`. Everything is measured on November and December, which no model
has seen; intervals are 95 % by DeLong over the test rows, paired where two models are compared. A model counts with
its seed 1; how far four more seeds lead away is in the first table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.learning import LIBRARY, Kept, Learned, test_labels
from shared_features import load_app
from shared_features.aggregates import Aggregate
from shared_features.app import App
from shared_features.expressions import Field
from training.intervals import Interval, auc_difference, auc_interval
from training.metrics import calibration_error
from training.rows import TrainingRows, open_rows

KINDS = ("wide_and_deep", "boosted_trees", LIBRARY)
SEEDS = (1, 2, 3, 4, 5)
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
SIZES: tuple[tuple[int, ...], ...] = ((8,), (32, 32), (64, 64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512))


class Quality:
    """The rows, the app's options, and what was found so far."""

    def __init__(self, rows: TrainingRows, app: App, kept: Kept) -> None:
        self.rows, self.app, self.kept, self.labels = rows, app, kept, test_labels(rows)
        self.options = {"wide_and_deep": dict(app.models[0].options)}

    def learned(self, kind: str, seed: int = 1, more: dict[str, Any] | None = None, **part: Any) -> Learned:
        """A model trained on the rows, or on a part of them."""
        options = json.loads(json.dumps({**self.options.get(kind, {}), **(more or {})}))
        return self.kept.learned(self.rows, kind, options, seed, **part)

    def auc(self, one: Learned) -> Interval:
        """AUC on the test rows."""
        return auc_interval(self.labels, one.scores)

    def gain(self, one: Learned, other: Learned) -> Interval:
        """AUC of ``one`` minus that of ``other``."""
        return auc_difference(self.labels, one.scores, other.scores)


def models(of: Quality) -> list[list[str]]:
    """AUC, its gain over the library's own trees, calibration error, seeds."""
    lines = [["model", "test AUC (95 %)", f"gain over {LIBRARY}", "calibration error", "AUC of five seeds, mean"]]
    library = of.learned(LIBRARY)
    for kind in KINDS:
        found = [of.learned(kind, seed) for seed in SEEDS]
        aucs = [of.auc(one).value for one in found]
        errors = [calibration_error(of.labels, one.scores) for one in found]
        gain = "" if kind == LIBRARY else signed(of.gain(found[0], library))
        spread = f"{min(aucs):.4f} to {max(aucs):.4f}, {sum(aucs) / len(aucs):.4f}"
        lines.append([kind, plain(of.auc(found[0])), gain, f"{errors[0]:.4f}, at most {max(errors):.4f}", spread])
    return lines


def ablation(of: Quality) -> list[list[str]]:
    """What each group of stateful features brings: to the flight's own features alone, and to all others."""
    groups = stateful_groups(of.app)
    stateful = [name for names in groups.values() for name in names]
    own, everything = of.learned("wide_and_deep", without=stateful), of.learned("wide_and_deep")
    lines = [["features", "test AUC (95 %)", "gain over the flight's own", "lost without them"]]
    lines.append([f"the flight's own ({len(of.app.features) - len(stateful)})", plain(of.auc(own)), "", ""])
    for group, names in groups.items():
        alone = of.learned("wide_and_deep", without=[name for name in stateful if name not in names])
        without = of.learned("wide_and_deep", without=names)
        gain, lost = of.gain(alone, own), of.gain(everything, without)
        lines.append([f"own and {group} ({len(names)})", plain(of.auc(alone)), signed(gain), signed(lost)])
    lines.append([f"all ({len(of.app.features)})", plain(of.auc(everything)), signed(of.gain(everything, own)), ""])
    return lines


def rows_curve(of: Quality) -> list[list[str]]:
    """AUC by share of the training rows; fewer rows are read more often and in smaller batches."""
    lines = [["share of the training rows", "rows", "wide_and_deep, test AUC (95 %)", "boosted_trees, test AUC (95 %)"]]
    for share in SHARES:
        part: dict[str, Any] = {} if share == 1 else {"share": share}
        more = {} if share == 1 else {"epochs": 12, "batch_rows": max(64, round(1024 * share**0.5))}
        deep, trees = of.learned("wide_and_deep", more=more, **part), of.learned("boosted_trees", **part)
        rows = round(of.rows.counts["train"] * share)
        lines.append([f"{share:.0%}", f"{rows:,}", plain(of.auc(deep)), plain(of.auc(trees))])
    return lines


def size_curve(of: Quality) -> list[list[str]]:
    """AUC by the width of the deep part."""
    lines = [["layers", "weights", "test AUC (95 %)", "gain over the default"]]
    default = of.learned("wide_and_deep")
    for units in SIZES:
        is_default = units == (128, 128, 128)
        one = default if is_default else of.learned("wide_and_deep", more={"units": list(units)})
        gain = "(the default)" if is_default else signed(of.gain(one, default))
        lines.append([" · ".join(map(str, units)), f"{one.weights:,}", plain(of.auc(one)), gain])
    return lines


def stateful_groups(app: App) -> dict[str, list[str]]:
    """Features over windows by the key they are grouped by; the weather apart."""
    groups: dict[str, list[str]] = {}
    for name, value in app.features.items():
        windows = [node for node in value.walk() if isinstance(node, Aggregate)]
        if windows:
            measured = {node.event_type for node in windows[0].value.walk() if isinstance(node, Field)}
            group = "weather" if measured == {"weather"} else windows[0].by.name
            groups.setdefault(group, []).append(name)
    return groups


def plain(one: Interval) -> str:
    """``0.9177 (0.9150 to 0.9204)``."""
    return f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})"


def signed(one: Interval) -> str:
    """``+0.0027 (+0.0015 to +0.0039)``."""
    return f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})"


TABLES: dict[str, Callable[[Quality], list[list[str]]]] = {
    "models": models,
    "ablation": ablation,
    "rows": rows_curve,
    "size": size_curve,
}


def markdown(lines: list[list[str]]) -> str:
    """A table for a document; the first column is text."""
    marks = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], marks, *lines[1:]])


@click.command()
@click.argument("tables", nargs=-1, type=click.Choice(list(TABLES)))
@click.option("--rows", type=click.Path(path_type=Path), default=Path("var/training/flights"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench/flights_quality"), show_default=True)
def main(tables: tuple[str, ...], rows: Path, out: Path) -> None:
    """Print the tables as Markdown."""
    opened, app = open_rows(rows), load_app("flights")
    opened.require_fingerprint(app.fingerprint)
    of = Quality(opened, app, Kept(out, opened))
    for name in tables or TABLES:
        click.echo(f"{markdown(TABLES[name](of))}\n")


if __name__ == "__main__":
    main()
