"""Judge an exported model on the test split, beside baselines on the very same rows.

    python -m training.evaluate --rows var/training/flights --version var/models/wide_and_deep/2 \
        --champion var/models/wide_and_deep/1 --baseline-feature departure_delay --out var/reports --json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.app import App, load_app
from shared_features.errors import ConfigurationError, FingerprintError
from shared_features.whole_files import replace_text
from training.baselines import GradientBoosting, OneFeature
from training.card import model_card
from training.costs import Costs
from training.export import SavedModel, read_summary
from training.gate import judge
from training.importance import IMPORTANCE_ROWS, permutation_importance
from training.judging import auc_differences, figures_of, judged_rules
from training.kpis import kpi_figures
from training.plots import Judged, plot_evaluation
from training.progress import Progress, Tell, quiet, run_command
from training.report import write_report
from training.rows import LABEL, TrainingRows, number_column, open_rows
from training.slices import differences, slice_figures
from training.statistics import compute_statistics

Array = npt.NDArray[Any]

BOOSTING = "HistGradientBoosting"
REPORT_FILE = "evaluation.json"
PLOT_FILE = "evaluation.png"
PAGE_FILE = "evaluation.html"


def evaluate(
    rows_folder: Path | str,
    version_folder: Path | str,
    *,
    champion_folder: Path | str | None = None,
    gates: Sequence[Mapping[str, Any]] = (),
    app: App | None = None,
    baseline_feature: str | None = None,
    rules: pa.Table | None = None,
    slices: Sequence[str] | None = None,
    costs: Costs | None = None,
    importance_rows: int = IMPORTANCE_ROWS,
    purpose: str = "",
    out_folder: Path | str | None = None,
    resamples: int = 500,
    seed: int = 1,
    progress: Tell = quiet,
) -> dict[str, Any]:
    """Judge a model on the test split, beside its baselines and the champion whose place it may take.

    Baselines: ``baseline_feature`` alone (see ``OneFeature``), HistGradientBoosting on the same features, and
    hand-written rules. Differences of AUC carry the 95 % interval of a paired bootstrap over test rows; in slices,
    intervals are DeLong's (see ``training.intervals``).

    Args:
        rows_folder: training rows; baselines are fitted on ``train``, everything is judged on ``test``.
        version_folder: of the exported model.
        champion_folder: of the version that predicts now; None: there is none.
        gates: rules for the candidate, see `training.gate.judge`.
        app: whose KPIs are told; None: none are.
        baseline_feature: a number feature; None leaves that baseline out.
        rules: ``event_id`` and one column for each rule with its probability (bool counts as 0 or 1) for at
            least the test rows; null takes the training split's share of positives.
        slices: features by whose values figures are told apart; all texts where None. Months are always.
        costs: of a false alarm and of a miss; 1 and 1 where None.
        importance_rows: test rows for permutation importance; 0 leaves it out.
        purpose: what the model is for, in the app's words, for the model card.
        out_folder: where ``evaluation.json``, ``.png`` and ``.html`` are written; None writes nothing.
        resamples: of the bootstrap.
        seed: of the bootstrap, of permutations and of HistGradientBoosting.
        progress: called before each step.

    Returns:
        The report, ready for JSON: ``auc``, ``auc_baseline`` (HistGradientBoosting's), ``log_loss``,
        ``calibration_error`` (20 equal-count bins), ``figures`` (all of them), ``models`` (the judged model first),
        ``differences`` (judged model minus each other), ``slices``, ``importance``, ``champion``, ``gate``, ``kpis``,
        ``card``, what was judged, and ``files``.

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
    costs = costs or Costs()
    test = rows.table("test")
    labels = number_column(test[LABEL]) > 0.5
    progress(Progress("evaluate", 0.0, "the model"))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what it says of CPU instructions helps nobody
    # Where other processes want the cores too, threads that wait by spinning make fitting the baselines three times
    # as slow. OpenMP reads this when it is loaded, which Keras does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    model = SavedModel(version_folder)
    probabilities = model.probabilities(test).astype(np.float64)
    judged = [Judged(summary["model"], probabilities, probabilities)]
    before, reigning = _champion(champion_folder, rows, test)
    if before is not None:
        judged.append(before)
    cut = list(rows.texts) if slices is None else list(slices)
    sliced = slice_figures(test, cut, labels, probabilities, None if before is None else before.probabilities)
    progress(Progress("evaluate", 0.2, "the baselines"))
    statistics = compute_statistics(rows, min_rows=1)
    if baseline_feature is not None:
        judged.append(Judged(f"{baseline_feature} alone", *OneFeature(rows, baseline_feature).predict(test)))
    boosted = GradientBoosting(rows, statistics, seed).predict(test)
    judged.append(Judged(BOOSTING, boosted, boosted))
    if rules is not None:
        judged += judged_rules(rules, test, statistics.positives)
    progress(Progress("evaluate", 0.5, f"{resamples} resamples"))
    models = [figures_of(one, labels, costs) for one in judged]
    by_name = {one["name"]: one for one in models}
    report: dict[str, Any] = {
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
        "figures": {name: figure for name, figure in models[0].items() if name not in ("name", "costs")},
        "costs": {"false_alarm": costs.false_alarm, "miss": costs.miss, **models[0]["costs"]},
        "models": models,
        "differences": auc_differences(judged, labels, resamples, seed),
        "resamples": resamples,
        "seed": seed,
        "files": [str(path) for path in files],
    }
    report["slices"] = sliced
    if before is not None and reigning is not None:
        reigning["figures"] = by_name[before.name]
        reigning["differences"] = differences(labels, probabilities, before.probabilities)
    report["champion"] = reigning
    report["gate"] = judge(gates, report)
    report["kpis"] = {} if app is None else kpi_figures(app, summary["model"], test, labels, probabilities)
    progress(Progress("evaluate", 0.6, "importance of the features"))
    report["importance"] = permutation_importance(
        lambda table: model.probabilities(table).astype(np.float64),
        test,
        [feature.name for feature in rows.features],
        rows=importance_rows,
        seed=seed,
        tell=lambda done, name: progress(Progress("evaluate", 0.6 + 0.3 * done, f"importance of {name}")),
    )
    report["card"] = model_card(rows, summary, report, test, purpose)
    if files:
        progress(Progress("evaluate", 0.95, "the report"))
        plot_evaluation(files[1], _title(rows, report), labels, judged)
        write_report(files[2], report, labels, judged, costs)
        text = json.dumps(report, indent=1, allow_nan=False) + "\n"
        replace_text(files[0], text)  # last: whoever finds it finds all
    return report


def _champion(
    folder: Path | str | None, rows: TrainingRows, test: pa.Table
) -> tuple[Judged | None, dict[str, Any] | None]:
    """What the champion says of the test rows, and the report's part on it; a reason where it cannot be asked."""
    if folder is None:
        return None, None
    summary = read_summary(folder)
    version = Path(folder).name
    if summary["fingerprint"] != rows.fingerprint:
        why = f"champion version {version} has other features ({summary['fingerprint'][:12]}), and cannot be asked"
        return None, {"version": version, "incomparable": why}
    said = SavedModel(folder).probabilities(test).astype(np.float64)
    return Judged(f"champion, version {version}", said, said), {"version": version}


def report_table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(headings, lines) of a report, for printing."""
    headings = ["model", "AUC", "avg. precision", "log loss", "Brier", "calibr. error", "cost per 1,000"]
    headings.append("AUC gained by the model (95 % interval)")
    gained = {
        one["against"]: f"{one['auc']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})" for one in report["differences"]
    }
    lines = [
        [
            one["name"],
            f"{one['auc']:.4f}",
            f"{one['average_precision']:.4f}",
            f"{one['log_loss']:.4f}",
            f"{one['brier']:.4f}",
            f"{one['calibration_error']:.4f}",
            f"{one['costs']['cost']:.1f}",
            gained.get(one["name"], ""),
        ]
        for one in report["models"]
    ]
    return headings, lines


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
    return [folder / REPORT_FILE, folder / PLOT_FILE, folder / PAGE_FILE]


def _title(rows: TrainingRows, report: dict[str, Any]) -> str:
    return f"{rows.app}: {report['rows']:,} test rows, {report['from'][:10]} to {report['to'][:10]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of ``python -m training.evaluate``; exit code 2 on an expected error."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description="Judge an exported model.")
    parser.add_argument("--rows", required=True, type=Path, help="folder of training rows")
    parser.add_argument("--version", required=True, type=Path, help="folder of the model's version")
    parser.add_argument("--champion", type=Path, help="folder of the version that predicts now")
    parser.add_argument("--gates", default="[]", help="rules for the candidate, a JSON list")
    parser.add_argument("--app", help="name or file of the app whose KPIs are told")
    parser.add_argument("--slice", action="append", dest="slices", help="feature; all texts where none is given")
    parser.add_argument("--false-alarm", type=float, default=1.0, help="what a false alarm costs")
    parser.add_argument("--miss", type=float, default=1.0, help="what a miss costs")
    parser.add_argument("--importance-rows", type=int, default=IMPORTANCE_ROWS, help="0: no importance")
    parser.add_argument("--purpose", default="", help="what the model is for")
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
            champion_folder=given.champion,
            gates=json.loads(given.gates),
            app=None if given.app is None else load_app(given.app),
            slices=given.slices,
            costs=Costs(given.false_alarm, given.miss),
            importance_rows=given.importance_rows,
            purpose=given.purpose,
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
