"""`sameriver evaluate`: what a model is worth, beside baselines and beside the version that predicts now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.jobs import run_job
from commands.options import app_option, folder_option, json_option, model_option

if TYPE_CHECKING:
    from shared_features.app import App, Model

version_option = click.option(
    "--version", type=click.IntRange(1), show_default="the latest", help="Version of the model."
)


@click.command()
@app_option
@folder_option("--rows", "the training rows", "var/training/<app>")
@folder_option("--models", "models, one folder each", "var/models/<app>")
@model_option
@version_option
@click.option(
    "--champion", type=click.IntRange(1), show_default="the promoted one", help="Version to compare with, by the gates."
)
@click.option("--slice", "slices", multiple=True, metavar="FEATURE", help="Figures by its values.  [default: texts]")
@click.option("--false-alarm", default=1.0, help="What a false alarm costs.")
@click.option("--miss", default=1.0, help="What a miss costs.")
@folder_option("--out", "the report: JSON, HTML with a model card, and a plot", "var/reports/<app>")
@click.option("--resamples", default=500, type=click.IntRange(2), help="Of the bootstrap.")
@click.option("--importance-rows", default=5_000, type=click.IntRange(0), help="For permutation importance; 0: none.")
@json_option
def evaluate(
    app_name: str,
    rows: Path | None,
    models: Path | None,
    model_name: str | None,
    version: int | None,
    champion: int | None,
    slices: tuple[str, ...],
    false_alarm: float,
    miss: float,
    out: Path | None,
    resamples: int,
    importance_rows: int,
    as_json: bool,
) -> None:
    """Judge a model on the test split, beside baselines and the champion on the very same rows.

    Ranking, calibration, slices with intervals, costs of decisions, importance of features, the app's gates. The page
    it writes holds the model card.
    """
    from training.export import latest_version

    app = options.load(app_name)
    model = trained_model(app, model_name)
    home = models or options.models_folder(app)
    for number in (version, champion):
        require_version(home / model.name, number)
    folder = home / model.name / str(version) if version is not None else latest_version(home, model.name)
    reigning = champion or champion_of(home, model.name)
    more = [f"--slice={name}" for name in slices]
    more += [f"--false-alarm={false_alarm}", f"--miss={miss}", f"--resamples={resamples}"]
    more.append(f"--importance-rows={importance_rows}")
    with output.progress(f"evaluating {model.name}") as tell:
        report = evaluate_version(
            app,
            model,
            rows or options.training_folder(app),
            folder,
            None if reigning is None or str(reigning) == folder.name else folder.parent / str(reigning),
            out or options.reports_folder(app),
            tell,
            more,
        )
    if as_json:
        output.print_json(report)
        return
    tell_report(report)


def tell_report(report: dict[str, Any]) -> None:
    """The report for people: tables, and where the rest is."""
    from training.evaluate import report_table

    headings, lines = report_table(report)
    click.echo(f"{report['rows']:,} test rows, {report['from'][:10]} to {report['to'][:10]}")
    output.print_table(headings, lines)
    tell_gate(report["gate"])
    for name, one in report["kpis"].items():
        told = f"{one['value']:.6g} ({one['low']:.6g} to {one['high']:.6g})" if one["rows"] else "no value"
        click.echo(f"KPI {name}: {told}")
    for path in report["files"]:
        click.echo(path)


def tell_gate(gate: dict[str, Any]) -> None:
    """The verdict of the gates, a line each."""
    for one in gate["rules"]:
        click.echo(f"gate {'kept  ' if one['passed'] else 'BROKEN'} {one['rule']}: {one['measured']}")


def require_version(home: Path, version: int | None) -> None:
    """ConfigurationError unless a model's folder has a version of this number; None asks for nothing."""
    from shared_features.errors import ConfigurationError
    from training.export import versions

    if version is not None and not (home / str(version) / "saved_model.pb").is_file():
        known = ", ".join(map(str, versions(home))) or "none"
        raise ConfigurationError(
            f"model {home.name!r} has no version {version} in {home}, it has {known}: name another"
        )


def champion_of(home: Path, name: str) -> int | None:
    """The version that is promoted, if any is."""
    from serving.promotion import read_promotion

    promotion = read_promotion(home / name)
    return None if promotion is None else promotion.champion


def evaluate_version(
    app: App,
    model: Model,
    rows: Path,
    folder: Path,
    champion: Path | None,
    out: Path,
    tell: output.Progress,
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the evaluation in a process of its own; its report.

    Args:
        app, model: whose options, rules and gates count.
        rows: folder of the training rows.
        folder, champion: of the version, and of the one whose place it may take.
        out: where the report goes.
        tell: told as it goes.
        more: arguments of ``python -m training.evaluate``.
    """
    from shared_features.app import load_beside

    arguments = ["--rows", str(rows), "--version", str(folder), "--out", str(out), *more]
    arguments += ["--gates", json.dumps([gate.definition for gate in app.gates])]
    arguments += ["--app", app.spec] if app.kpis else []
    arguments += [] if champion is None else ["--champion", str(champion)]
    purpose = getattr(load_beside(app.spec, "app"), "__doc__", None)
    arguments += ["--purpose", purpose.strip()] if purpose else []
    baseline = model.options.get("baseline")
    arguments += [] if baseline is None else ["--baseline-feature", str(baseline)]
    with TemporaryDirectory(prefix="sameriver-") as temporary:
        tell(0.0, "the app's rules")
        return run_job("training.evaluate", [*arguments, *_rules(app, rows, Path(temporary))], tell)


def trained_model(app: App, name: str | None) -> Model:
    """The app's model of this name, or its first; ConfigurationError if there is none to train."""
    from shared_features.errors import ConfigurationError

    names = options.served_models(app)
    if not names or (name is not None and name not in names):
        found = f"has the models {', '.join(names)} to train" if names else "has no model to train"
        wanted = "wanted one of them as --model" if names else "wanted models=[Model(...)] in its file"
        raise ConfigurationError(f"app {app.name!r} {found}{'' if name is None else f', got {name!r}'}: {wanted}")
    return next(model for model in app.models if model.name == (name or names[0]))


def _rules(app: App, rows: Path, folder: Path) -> list[str]:
    """Arguments that hand over, as a file in ``folder``, what the app's rules say of the test rows."""
    import pyarrow.parquet as pq

    from commands.rules import rule_probabilities

    table = rule_probabilities(app, rows / "test") if (rows / "test").is_dir() else None
    if table is None:
        return []
    pq.write_table(table, folder / "rules.parquet")
    return ["--rules", str(folder / "rules.parquet")]
