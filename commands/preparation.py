"""What must be there before an app can go live: history, training rows, a model; what is there and fits is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from commands import options
from commands.examples import Examples
from commands.processes import Child
from shared_features.app import App
from shared_features.errors import ConfigurationError
from training.export import read_summary, versions

Tell = Callable[[str, float | None, str], None]
"""Called with the step (``data``, ``training rows`` or ``model``), the share done and a line."""


def has_model(models: Path, name: str) -> bool:
    """Whether there is any version of the model."""
    return bool(versions(models / name))


def fitting_model(app: App, models: Path, name: str, rows: Path, *, quick: bool) -> dict[str, Any] | None:
    """The summary of the latest version, if it was made from these features and no older than the rows.

    Args:
        quick: whether a model of few rows and epochs will do.
    """
    found = versions(models / name)
    if not found:
        return None
    try:
        summary = read_summary(models / name / str(found[-1]))
        rows_made = (rows / "_training.json").stat().st_mtime
    except (ConfigurationError, OSError):
        return None
    made = datetime.fromisoformat(summary["created"]).timestamp()
    if summary["fingerprint"] != app.fingerprint or made < int(rows_made) or (summary["quick"] and not quick):
        return None
    (model,) = (model for model in app.models if model.name == name)
    wanted = json.loads(json.dumps(model.options))
    if any(summary["options"].get(option) != value for option, value in wanted.items() if option != "epochs"):
        return None
    return {**summary, "version": found[-1]}


class Preparation:
    """Makes what is missing, each step in a process of its own (TensorFlow and Beam go when they are done).

    Args:
        app, app_name: the app, and as given to ``--app``.
        var: folder with ``history``, ``training`` and ``models``.
        models: folder of the app's models.
        quick: whether a quickly trained model will do.
        logs: folder for what the steps say.
        tell: called as they go.

    `data`, `rows` and `model` raise ChildError, with the step's own sentence, if it fails.
    """

    def __init__(
        self, app: App, app_name: str, *, models: Path, quick: bool, logs: Path, tell: Tell, var: Path = options.VAR
    ) -> None:
        self._examples = Examples(app)
        self.history = var / "history" / app.name
        if not self._examples.exist and not self.history.is_dir():
            self._examples.write(self.history, lambda *_: None)  # says what is missing
        self.replay = self._examples.replay
        self._app, self._app_name, self._quick = app, app_name, quick
        self._models, self._logs, self._tell = models, logs, tell
        self.training = var / "training" / app.name
        self.running: list[Child] = []

    def data(self) -> dict[str, Any]:
        """The history's summary; only ``reused`` where it is one that the app did not make."""
        if not self._examples.exist:
            return {"reused": True}
        (summary,) = self._run("data", {"data": ["data", self._app_name, "--out", str(self.history)]})
        return summary

    def rows(self) -> dict[str, Any]:
        """The training rows' summary."""
        arguments = ["--app", self._app_name, "--history", str(self.history), "--out", str(self.training)]
        (summary,) = self._run("training rows", {"training-rows": ["traindata", *arguments]})
        return summary

    def model(self) -> dict[str, Any]:
        """The summary of the app's first model, with ``version`` and ``reused``; its other models are there, too.

        They are trained side by side: much of the time of each is that TensorFlow is loaded.
        """
        names = options.served_models(self._app)
        if not names:
            raise ConfigurationError(f"app {self._app.name!r} has no model to train: add Model(...) to its file")
        found = {name: fitting_model(self._app, self._models, name, self.training, quick=self._quick) for name in names}
        missing = [name for name in names if found[name] is None]
        arguments = ["train", "--app", self._app_name, "--rows", str(self.training), "--models", str(self._models)]
        arguments += ["--quick"] if self._quick else []
        trained = self._run("model", {f"model-{name}": [*arguments, "--model", name] for name in missing})
        summaries = {name: {**one, "reused": True} for name, one in found.items() if one is not None}
        summaries |= {name: {**one, "reused": False} for name, one in zip(missing, trained, strict=True)}
        return summaries[names[0]]

    def stop(self) -> None:
        """Stop the step at work, if any."""
        for child in self.running:
            child.stop(5)

    def _run(self, step: str, commands: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The results of commands, by the names of their logs, that run side by side."""

        def note(record: dict[str, Any]) -> None:
            if "progress" in record:
                told = record["progress"]
                self._tell(step, float(told.get("done", 0.0)), str(told.get("detail", "")))

        try:
            for log, command in commands.items():
                self.running.append(Child(step, ["cli", *command, "--json"], self._logs / f"{log}.log", on_record=note))
            return [child.wait() for child in self.running]
        finally:
            self.stop()
            self.running = []


def make_quick_models(app: App, app_name: str, models: Path) -> None:
    """Make an app's models from nothing, quickly, and say how it goes on standard error."""
    said = set()

    def tell(step: str, _share: float | None, _line: str) -> None:
        if step not in said:
            said.add(step)
            click.echo(f"making {step} …", err=True)

    preparation = Preparation(app, app_name, models=models, quick=True, logs=options.VAR / "log" / app.name, tell=tell)
    try:
        preparation.data()
        preparation.rows()
        preparation.model()
    finally:
        preparation.stop()
