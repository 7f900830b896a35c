"""`sameriver promote | rollback`: which version of a model predicts, by stages and back at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.evaluate import evaluate_version, require_version, tell_gate, trained_model
from commands.options import app_option, folder_option, json_option, model_option

if TYPE_CHECKING:
    from serving.promotion import Promotion, Stage
    from shared_features.app import App, Model

EVENT = "event"
"""In place of a key's name: events are shared out one by one."""
ROLLBACK = "sameriver rollback"
"""Why a state is as it is, that a rollback made."""
UNASKED = " --without-gate"
"""At the end of why a state is as it is: no gate has passed the candidate yet."""


@click.command()
@app_option
@folder_option("--models", "models, one folder each", "var/models/<app>")
@model_option
@click.option("--version", type=click.IntRange(1), show_default="the one on trial, or the latest", help="To promote.")
@click.option(
    "--stage",
    type=click.Choice(["shadow", "canary", "full"]),
    default="full",
    help="shadow: predicts for the archive only; canary: for a share of keys; full: for all.",
)
@click.option("--share", default=0.1, type=click.FloatRange(0, 1, min_open=True), help="Of the keys, for a canary.")
@click.option(
    "--by", metavar="KEY", show_default="the app's first key", help="Whose values are shared out, or 'event'."
)
@folder_option("--rows", "the training rows, whose test split the gates judge", "var/training/<app>")
@folder_option("--out", "the report", "var/reports/<app>")
@click.option("--without-gate", is_flag=True, help="Ask no gate.")
@click.option("--show", is_flag=True, help="Only say what is promoted now.")
@json_option
@click.pass_context
def promote(
    ctx: click.Context,
    app_name: str,
    models: Path | None,
    model_name: str | None,
    version: int | None,
    stage: Stage,
    share: float,
    by: str | None,
    rows: Path | None,
    out: Path | None,
    without_gate: bool,
    show: bool,
    as_json: bool,
) -> None:
    """Let a version predict: in the shadow, for a share of keys, or for all.

    The app's gates compare it with the present champion on the test split first; exit code 1 if one is broken, and
    nothing is changed. Model server and streaming job take a promotion up within two seconds, without a restart.
    """
    from serving.in_process import InProcessModel
    from serving.promotion import read_promotion
    from training.export import latest_version

    app = options.load(app_name)
    model = trained_model(app, model_name)
    home = (models or options.models_folder(app)) / model.name
    present, latest = read_promotion(home), int(latest_version(home.parent, model.name).name)
    if show:
        _tell(model, present, {"changed": False}, as_json)
        return
    on_trial = None if present is None else present.candidate
    chosen = version or on_trial or latest
    check_candidate(app, home, chosen)
    InProcessModel(model.name, chosen, home / str(chosen)).close()  # what cannot be loaded cannot be served
    gate = None
    champion = reigning(home, chosen)
    passed = present is not None and on_trial == chosen and not present.why.endswith(UNASKED)
    if not (without_gate or passed) and champion not in (None, chosen):
        with output.progress(f"judging {model.name} version {chosen}") as tell:
            report = evaluate_version(
                app,
                model,
                rows or options.training_folder(app),
                home / str(chosen),
                home / str(champion),
                out or options.reports_folder(app),
                tell,
                ["--importance-rows=0"],
            )
        gate = report["gate"]
        if not gate["passed"]:
            _tell(model, present, {"changed": False, "gate": gate}, as_json)
            ctx.exit(1)
    why = "sameriver promote" + (UNASKED if without_gate else "")
    after = set_stage(app, home, chosen, stage, share, by, why)
    _tell(model, after, {"changed": after != present, "gate": gate}, as_json)


@click.command()
@app_option
@folder_option("--models", "models, one folder each", "var/models/<app>")
@model_option
@json_option
def rollback(app_name: str, models: Path | None, model_name: str | None, as_json: bool) -> None:
    """End a candidate's trial; where none is on trial, let the version before predict again, at once.

    That version is still loaded, so that the model server only moves a label.
    """
    from serving.promotion import Promotion, change, read_promotion, write_server_config
    from shared_features.errors import ConfigurationError
    from training.export import versions

    app = options.load(app_name)
    model = trained_model(app, model_name)
    home = (models or options.models_folder(app)) / model.name
    present = read_promotion(home)
    if present is None:
        before = versions(home)[-2:-1]
        champion = before[0] if before else None
    else:
        champion = present.champion if present.candidate is not None else present.previous
    if champion is None or not (home / str(champion)).is_dir():
        raise ConfigurationError(
            f"model {model.name!r} has no version to go back to in {home}: promote one with "
            f"`sameriver promote --app {app.spec} --version N`"
        )
    ended = present is not None and present.candidate is not None
    previous = present.previous if present is not None and ended else None
    after = change(home, Promotion(0, champion, previous=previous, why=ROLLBACK))
    write_server_config(home.parent, options.served_models(app))
    _tell(model, after, {"changed": True}, as_json)


def reigning(home: Path, candidate: int) -> int | None:
    """The version that predicts now, or did before the candidate came; None if there is no other."""
    from serving.promotion import read_promotion
    from training.export import versions

    present = read_promotion(home)
    if present is not None:
        return present.champion
    return max((version for version in versions(home) if version < candidate), default=None)


def check_candidate(app: App, home: Path, version: int) -> None:
    """Raise unless there is such a version, made of the app's present features: others cannot be asked."""
    from shared_features.fingerprint import check_same
    from training.export import read_summary

    require_version(home, version)
    summary = read_summary(home / str(version))
    if summary["fingerprint"] != app.fingerprint:
        check_same(app.definitions, summary["definitions"], f"version {version} of model {home.name!r}", app.spec)


def set_stage(app: App, home: Path, version: int, stage: Stage, share: float, by: str | None, why: str) -> Promotion:
    """Write the state in which ``version`` is at ``stage``; the present one where it says so already.

    Raises:
        ConfigurationError: the champion cannot be on trial, or there is no such key.
    """
    from dataclasses import replace

    from serving.promotion import Promotion, change, read_promotion, write_server_config
    from shared_features.errors import ConfigurationError

    present, champion = read_promotion(home), reigning(home, version)
    if stage == "full" or champion is None:
        before = champion if champion != version else present.previous if present is not None else None
        after = Promotion(0, version, previous=before, why=why)
    elif champion == version:
        raise ConfigurationError(
            f"version {version} of model {home.name!r} is the champion and cannot be on trial at stage {stage}: name "
            "another with --version"
        )
    else:
        key = _key(app, by, present.by if present is not None and present.candidate == version else None)
        canary = {"share": share, "by": key} if stage == "canary" else {"by": key}
        after = Promotion(0, champion, stage, version, why=why, **canary)
    if present is not None:
        same = replace(after, revision=present.revision, changed_at=present.changed_at, why=present.why)
        if same == present:
            write_server_config(home.parent, options.served_models(app))
            return present
    written = change(home, after)
    write_server_config(home.parent, options.served_models(app))
    return written


def _key(app: App, by: str | None, before: str | None) -> str:
    from shared_features.errors import ConfigurationError

    names = [key.name for key in app.all_keys]
    if by is None:
        return before if before is not None else names[0] if names else ""
    if by == EVENT:
        return ""
    if by not in names:
        raise ConfigurationError(f"app {app.name!r} has no key {by!r}: wanted one of {', '.join([*names, EVENT])}")
    return by


def _tell(model: Model, promotion: Promotion | None, more: dict[str, Any], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        told = None if promotion is None else asdict(promotion)
        output.print_json({"model": model.name, **more, "promotion": told})
        return
    if more.get("gate"):
        tell_gate(more["gate"])
        if not more["gate"]["passed"]:
            click.echo("not promoted: a gate is broken")
            return
    if promotion is None:
        click.echo(f"{model.name}: nothing was promoted, the newest version predicts")
        return
    said = f"version {promotion.champion} predicts"
    if promotion.candidate is not None:
        share = f" for {100 * promotion.share:g} % of {promotion.by or 'events'}" if promotion.stage == "canary" else ""
        said += f", version {promotion.candidate} is on trial: {promotion.stage}{share}"
    elif promotion.previous is not None:
        said += f", version {promotion.previous} is loaded for a rollback"
    click.echo(f"{model.name}: {said} (revision {promotion.revision}, {promotion.changed_at})")
