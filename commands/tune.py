"""`sameriver tune`: look for better options of a model, and train a candidate with what was found."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import click

from commands import options, output
from commands.evaluate import trained_model
from commands.jobs import alone, run_job
from commands.options import app_option, folder_option, json_option, model_option
from commands.submit import submit_option
from commands.training import ensure_rows, make_candidate, tell_candidate

SHOWN = 10


@click.command()
@app_option
@folder_option("--rows", "training rows, which are then taken as they are", "var/training/<app>")
@folder_option("--models", "models, one folder each", "var/models/<app>")
@folder_option("--out", "what was tried: JSON, HTML and a plot", "var/tuning/<app>/<model>")
@model_option
@click.option("--trials", default=20, type=click.IntRange(2), help="How many to try; the app's own options are one.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Begin no trial after so many.")
@click.option("--workers", default=1, type=click.IntRange(1), help="Processes that try at the same time.")
@click.option("--strategy", type=click.Choice(["bayesian", "random"]), default="bayesian", help="What to try next.")
@click.option("--quick", is_flag=True, help="Fewer rows and epochs, for trying things out.")
@click.option("--seed", default=1, help="Of the search and of every training.")
@click.option("--no-candidate", is_flag=True, help="Train no version with the best options.")
@json_option
@submit_option
def tune(
    app_name: str,
    rows: Path | None,
    models: Path | None,
    out: Path | None,
    model_name: str | None,
    trials: int,
    minutes: float | None,
    workers: int,
    strategy: str,
    quick: bool,
    seed: int,
    no_candidate: bool,
    as_json: bool,
) -> None:
    """Try options of a model, and make a candidate with those that predict the validation split best.

    What may be tried is the model's space in the app file. A search that was killed goes on when the same command is
    given again, also with more trials; one that is done is not done again.
    """
    app = options.load(app_name)
    model = trained_model(app, model_name)
    if rows is None:
        rows = options.training_folder(app)
        ensure_rows(app, rows)
    out = out or options.tuning_folder(app) / model.name
    arguments = ["--rows", str(rows), "--model", model.name, "--out", str(out), "--fingerprint", app.fingerprint]
    arguments += ["--options", json.dumps(model.options), "--space", json.dumps(model.space)]
    arguments += ["--trials", str(trials), "--workers", str(workers), "--strategy", strategy, "--seed", str(seed)]
    arguments += ["--minutes", str(minutes)] if minutes is not None else []
    quickly = ["--quick"] if quick else []
    out.mkdir(parents=True, exist_ok=True)
    busy = alone(out / ".tune.lock", f"model {model.name!r} is being tuned")
    with busy, output.progress(f"tuning {model.name}") as tell:
        found = run_job("training.tune", [*arguments, *quickly], tell)
    if not as_json:
        _show(found)
    if not no_candidate:
        better = copy.copy(model)
        better.options = {**model.options, **found["best"]["options"]}
        found["candidate"] = make_candidate(app, better, rows, models, ["--seed", str(seed), "--reuse", *quickly])
    if as_json:
        output.print_json(found)
    elif not no_candidate:
        tell_candidate(found["candidate"])


def _show(found: dict[str, object]) -> None:
    from training.tuning_report import tuning_table

    headings, lines = tuning_table(found)
    output.print_table(headings, lines[:SHOWN])
    best = found["best"]
    assert isinstance(best, dict)
    said = f"best options, for the app file: {json.dumps(best['options'])}"
    click.echo(said if best["number"] else "nothing was better than the app's own options")
    assert isinstance(found["files"], list)
    for path in found["files"]:
        click.echo(path)
