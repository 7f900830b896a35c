"""Whom batch commands ask for predictions: a model server, or one in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options
from commands.options import Command, folder_option
from commands.servers import check_model

if TYPE_CHECKING:
    from batch.backfill_rows import Asking
    from shared_features.app import App


def predicting_options(collect_help: str) -> Callable[[Command], Command]:
    """``--model-server``, ``--models`` and ``--collect``."""

    def add(command: Command) -> Command:
        command = click.option("--collect", is_flag=True, help=collect_help)(command)
        command = folder_option("--models", "models that predict in this process", "var/models/<app>")(command)
        return click.option(
            "--model-server", metavar="HOST:PORT,…", help="Predicts.  [default: this process, with --models]"
        )(command)

    return add


@contextmanager
def asking(
    app: App, model_server: str | None, models: Path | None, runner: str, *, collect: bool
) -> Iterator[Asking | None]:
    """Whom to ask for predictions; a model server in this process where no other is named, None to collect."""
    if collect or not app.models:
        yield None
        return
    from batch.backfill_rows import ask_models
    from serving.server import ModelServer
    from serving.versions import ModelSettings
    from shared_features.errors import ConfigurationError

    names = options.served_models(app)
    if model_server is not None or not names:
        yield ask_models(app, model_server or "")
        return
    if runner != "in-process":
        raise ConfigurationError(f"workers of {runner} cannot ask this process: give a --model-server that they reach")
    home = models or options.models_folder(app)
    for name in names:
        check_model(home, name, app, "or name another folder with --models, a --model-server, or --collect")
    with ModelServer([ModelSettings(name, home / name) for name in names], port=0, poll_s=0) as server:
        yield ask_models(app, f"127.0.0.1:{server.port}")
