"""Judge an exported model on the test split, beside baselines on the very same rows.

    python -m training.evaluate --rows var/training/flights --version var/models/wide_and_deep/1 \
        --baseline-feature departure_delay --out var/reports --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from training.baselines import GradientBoosting, OneFeature
from training.export import SavedModel, read_summary
from training.metrics import bootstrap_auc, calibration_error, log_loss, rank_auc
from training.plots import Judged, plot_evaluation
from training.progress import Progress, Tell, quiet, run_command
from training.rows import LABEL, TrainingRows, number_column, open_rows
from training.statistics import compute_statistics

Array = npt.NDArray[Any]

BOOSTING = "HistGradientBoosting"
REPORT_FILE = "evaluation.json"
PLOT_FILE = "evaluation.png"


def evaluate(
    rows_folder: Path | str,
    version_folder: Path | str,
    *,
    baseline_feature: str | None = None,
    rules: pa.Table | None = None,
    out_folder: Path | str | None = None,
    resamples: int = 500,
    seed: int = 1,
    progress: Tell = quiet,
) -> dict[str, Any]:
    """AUC, log loss and calibration of a model and its baselines on the test split.

    Baselines: ``baseline_feature`` alone (see ``OneFeature``), HistGradientBoosting on the same features, and
    hand-written rules. Differences of AUC carry the 95 % interval of a paired bootstrap over test rows.

    Args:
        rows_folder: training rows; baselines are fitted on ``train``, everything is judged on ``test``.
        version_folder: of the exported model.
        baseline_feature: a number feature; None leaves that baseline out.
        rules: ``event_id`` and one column for each rule with its probability (bool counts as 0 or 1) for at
            least the test rows; null takes the training split's share of positives.
        out_folder: where ``evaluation.json`` and ``evaluation.png`` are written; None writes nothing.
        resamples: of the bootstrap.
        seed: of the bootstrap and of HistGradientBoosting.
        progress: called before each step.

    Returns:
        The report, ready for JSON: ``auc``, ``auc_baseline`` (HistGradientBoosting's), ``log_loss``,
        ``calibration_error`` (20 equal-count bins), ``models`` (all figures, the judged model first),
        ``differences`` (judged model minus each other), what was judged, and ``files``.

    Raises:
        FingerprintError: the model was trained on other features than the rows have.
        HistoryError: rows or rules are missing or unusable.
        ConfigurationError: no such model or feature, or a folder that cannot be written.
    """
    rows = open_rows(rows_folder)
    summary = read_summary(version_folder)
    if summary["fingerprint"] != rows.fingerprint:
        raise FingerprintError(
            f"Model {version_folder} was trained on the features {summary['fingerprint'][:12]}, but {rows.folder} has "
            f"{rows.fingerprint[:12]}: train again on these rows."
        )
    files = _files(out_folder)
    test = rows.table("test")
    labels = number_column(test[LABEL]) > 0.5
    progress(Progress("evaluate", 0.0, "the model"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what it says of CPU instructions helps nobody
    probabilities = SavedModel(version_folder).probabilities(test).astype(np.float64)
    judged = [Judged(summary["model"], probabilities, probabilities)]
    progress(Progress("evaluate", 0.3, "the baselines"))
    # Where other processes want the cores too, threads that wait by spinning make fitting three times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    statistics = compute_statistics(rows, min_rows=1)
    if baseline_feature is not None:
        judged.append(Judged(f"{baseline_feature} alone", *OneFeature(rows, baseline_feature).predict(test)))
    boosted = GradientBoosting(rows, statistics, seed).predict(test)
    judged.append(Judged(BOOSTING, boosted, boosted))
    if rules is not None:
        judged += _judged_rules(rules, test, statistics.positives)
    progress(Progress("evaluate", 0.7, f"{resamples} resamples"))
    models = [_figures(one, labels) for one in judged]
    by_name = {one["name"]: one for one in models}
    report = {
        "app": rows.app,
        "model": summary["model"],
        "version": Path(version_folder).name,
        "fingerprint": rows.fingerprint,
        "quick": summary["quick"],
        "rows": len(labels),
        "positives": float(labels.mean()),
        **dict(zip(("from", "to"), rows.time_range("test"), strict=True)),
        "auc": models[0]["auc"],
        "auc_baseline": by_name[BOOSTING]["auc"],
        "log_loss": models[0]["log_loss"],
        "calibration_error": models[0]["calibration_error"],
        "models": models,
        "differences": _differences(judged, labels, resamples, seed),
        "resamples": resamples,
        "seed": seed,
        "files": [str(path) for path in files],
    }
    if files:
        progress(Progress("evaluate", 0.9, "the plot"))
        files[0].write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        plot_evaluation(files[1], _title(rows, report), labels, judged)
    return report


def report_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of a report, for printing."""
    headings = ["model", "AUC", "log loss", "calibration error", "AUC gained by the model (95 % interval)"]
    gained = {
        one["against"]: f"{one['auc']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})" for one in report["differences"]
    }
    lines = [
        [
            one["name"],
            f"{one['auc']:.4f}",
            f"{one['log_loss']:.4f}",
            f"{one['calibration_error']:.4f}",
            gained.get(one["name"], ""),
        ]
        for one in report["models"]
    ]
    return headings, lines


def _figures(one: Judged, labels: Array) -> dict[str, Any]:
    return {
        "name": one.name,
        "auc": rank_auc(labels, one.scores),
        "log_loss": log_loss(labels, one.probabilities),
        "calibration_error": calibration_error(labels, one.probabilities),
        "mean_prediction": float(one.probabilities.mean()),
    }


def _differences(judged: list[Judged], labels: Array, resamples: int, seed: int) -> list[dict[str, Any]]:
    drawn = bootstrap_auc(labels, {one.name: one.scores for one in judged}, resamples=resamples, seed=seed)
    first = judged[0]
    found = []
    for other in judged[1:]:
        low, high = np.quantile(drawn[first.name] - drawn[other.name], [0.025, 0.975])
        difference = rank_auc(labels, first.scores) - rank_auc(labels, other.scores)
        found.append(
            {
                "against": other.name,
                "auc": difference,
                "low": float(low),
                "high": float(high),
                "excludes_zero": bool(low > 0 or high < 0),
            }
        )
    return found


def _judged_rules(rules: pa.Table, test: pa.Table, positives: float) -> list[Judged]:
    if "event_id" not in rules.column_names:
        raise HistoryError("Rules need the column event_id, but have none: add it from the rows they were applied to.")
    places = pc.index_in(test["event_id"].cast(pa.string()), value_set=rules["event_id"].cast(pa.string()))
    if places.null_count:
        raise HistoryError(
            f"Rules must cover every test row, but {places.null_count} of {len(test)} are missing: apply them to the "
            "whole test split."
        )
    found = []
    for name in rules.column_names:
        if name != "event_id":
            values = number_column(rules[name].take(places))
            values = np.clip(np.where(np.isfinite(values), values, positives), 0.0, 1.0)
            found.append(Judged(name, values, values))
    return found


def _files(out_folder: Path | str | None) -> list[Path]:
    if out_folder is None:
        return []
    folder = Path(out_folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"A report needs a folder that can be written, but {folder} cannot ({error.strerror}): choose another."
        ) from error
    return [folder / REPORT_FILE, folder / PLOT_FILE]


def _title(rows: TrainingRows, report: dict[str, Any]) -> str:
    return f"{rows.app}: {report['rows']:,} test rows, {report['from'][:10]} to {report['to'][:10]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m training.evaluate``; exit code 2 on an expected error."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Judge an exported model.")
    parser.add_argument("--rows", required=True, type=Path, help="folder of training rows")
    parser.add_argument("--version", required=True, type=Path, help="folder of the model's version")
    parser.add_argument("--baseline-feature", help="number feature to predict from alone")
    parser.add_argument("--rules", type=Path, help="Parquet file with event_id and a column for each rule")
    parser.add_argument("--out", type=Path, help="folder for the report and the plot")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="progress and report as JSON lines")
    given = parser.parse_args(arguments)

    def work(tell: Tell) -> dict[str, Any]:
        return evaluate(
            given.rows,
            given.version,
            baseline_feature=given.baseline_feature,
            rules=pq.read_table(given.rules) if given.rules else None,
            out_folder=given.out,
            resamples=given.resamples,
            seed=given.seed,
            progress=tell,
        )

    return run_command(work, _printed, given.json)


def _printed(report: dict[str, Any]) -> str:
    headings, lines = report_table(report)
    table = [headings, *lines]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


if __name__ == "__main__":
    sys.exit(main())
