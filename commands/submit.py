"""`sameriver train|tune --submit vertex --dry-run`: the same command as a job of Vertex AI, written and not sent."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from commands import options, output
from commands.evaluate import trained_model

Command = TypeVar("Command", bound=Callable[..., Any])

_OWN = ("project", "region", "image", "bucket", "machine_type", "accelerator", "service_account", "hours")


def submit_option(command: Command) -> Command:
    """Options that say where a job runs; with ``--submit`` the job is written in place of running the command."""
    wanted = [
        click.option("--submit", type=click.Choice(["vertex"]), help="Run this on Vertex AI instead of here."),
        click.option("--dry-run", is_flag=True, help="With --submit: write the job's request, and send nothing."),
        click.option("--project", help="Of Google Cloud."),
        click.option("--region", help="Such as europe-west4."),
        click.option("--image", help="Of the container, with a tag: that of deploy/Dockerfile."),
        click.option("--bucket", metavar="gs://…", help="Folder with training/<app> and models/<app>."),
        click.option("--machine-type", default="n2-standard-8", help="Of each worker."),
        click.option("--accelerator", metavar="TYPE", help="One for each worker, such as NVIDIA_L4."),
        click.option("--service-account", metavar="ADDRESS", help="That the job runs as."),
        click.option("--hours", default=24, type=click.IntRange(1), help="After which the job is ended."),
        click.option(
            "--request",
            type=click.Path(path_type=Path, dir_okay=False),
            show_default="var/vertex/<app>-<command>.json",
            help="File of the request.",
        ),
    ]

    @functools.wraps(command)
    def either(*arguments: Any, submit: str | None, dry_run: bool, request: Path | None, **given: Any) -> Any:
        where = {name: given.pop(name) for name in _OWN}
        if submit is None:
            return command(*arguments, **given)
        return _write(command.__name__, given, where, dry_run, request)

    decorated: Any = either
    for option in reversed(wanted):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def _write(what: str, given: dict[str, Any], where: dict[str, Any], dry_run: bool, request: Path | None) -> None:
    """Write the request of a job.

    Raises:
        ConfigurationError: it would have to be sent, or it is none that Vertex AI takes.
    """
    from shared_features.errors import ConfigurationError
    from training.vertex import VertexSettings

    if not dry_run:
        raise ConfigurationError(
            f"sameriver {what} --submit writes jobs and sends none: add --dry-run, and send the file by your account"
        )
    missing = [f"--{name}" for name in ("project", "region", "image", "bucket") if where[name] is None]
    if missing:
        raise ConfigurationError(f"--submit vertex needs {', '.join(missing)}: give them")
    app = options.load(given["app_name"])
    model = trained_model(app, given["model_name"])
    settings = VertexSettings(**where)
    rows, models = f"{settings.mounted}/training/{app.name}", f"{settings.mounted}/models/{app.name}"
    named = {"app": app.name, "model": model.name, "fingerprint": app.fingerprint}
    labels = {name: value.lower() for name, value in named.items()}
    quick = ["--quick"] if given["quick"] else []
    more = ["--seed", str(given["seed"]), *quick]
    if what == "train":
        kind, job = "customJobs", _training(settings, given, model.name, labels, rows, models, more)
    else:
        kind, job = "hyperparameterTuningJobs", _tuning(settings, given, model, labels, rows, app.fingerprint, more)
    path = request or options.VAR / "vertex" / f"{app.name}-{what}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job, indent=1) + "\n", encoding="utf-8")
    url = f"https://{settings.region}-aiplatform.googleapis.com/v1/{settings.parent}/{kind}"
    if given["as_json"]:
        output.print_json({"request": str(path), "url": url, "rows": rows, "job": job})
        return
    click.echo(f"{path}: a request that Vertex AI takes, and that was not sent; the job reads {rows}. To send it:")
    headers = '-H "Authorization: Bearer $(gcloud auth print-access-token)" -H "Content-Type: application/json"'
    click.echo(f"curl -X POST {headers} -d @{path} {url}")


def _training(
    settings: Any, given: dict[str, Any], model: str, labels: dict[str, str], rows: str, models: str, more: list[str]
) -> dict[str, Any]:
    from training.vertex import training_job

    arguments = ["train", "--app", given["app_name"], "--rows", rows, "--models", models, "--model", model, *more]
    arguments += ["--device", "gpu" if settings.accelerator else given["device"], "--keep-champion", "--json"]
    arguments += ["--reuse"] if given["reuse"] else []
    return training_job(settings, f"sameriver train {labels['app']} {model}", labels, arguments, given["workers"])


def _tuning(
    settings: Any,
    given: dict[str, Any],
    model: Any,
    labels: dict[str, str],
    rows: str,
    fingerprint: str,
    more: list[str],
) -> dict[str, Any]:
    from training.tune import SPACES
    from training.vertex import tuning_job

    kind = str(model.options.get("kind", model.name))
    chosen = {name: value for name, value in model.options.items() if name != "kind"}
    arguments = ["--rows", rows, "--kind", kind, "--fingerprint", fingerprint, "--options", json.dumps(chosen), *more]
    return tuning_job(
        settings,
        f"sameriver tune {labels['app']} {model.name}",
        labels,
        arguments,
        model.space or SPACES[kind],
        trials=given["trials"],
        parallel=given["workers"],
        strategy=given["strategy"],
    )
