"""``--print-config``: every setting of a command, its value, and where that came from; secrets are masked."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from commands import output

_SECRET = ("password", "secret", "token")

_SOURCES: dict[ParameterSource | None, str] = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.DEFAULT: "default",
    ParameterSource.DEFAULT_MAP: "default",
    ParameterSource.PROMPT: "prompt",
}


def settings_of(ctx: click.Context) -> list[dict[str, Any]]:
    """Option, value and source of each setting; a value that is or may hold a secret is ``***``."""
    found = []
    for parameter in ctx.command.get_params(ctx):
        if not isinstance(parameter, click.Option) or parameter.name in ("help", "print_config"):
            continue
        name = str(parameter.name)
        source = ctx.get_parameter_source(name)
        said = _variable(ctx, parameter) if source is ParameterSource.ENVIRONMENT else _SOURCES.get(source, "default")
        value = ctx.params.get(name)
        shown = value if value is None or isinstance(value, bool | int | float) else str(value)
        if shown is not None and any(word in name for word in _SECRET):
            shown = "***"
        found.append({"option": max(parameter.opts, key=len), "value": shown, "from": said})
    return found


def show_config(ctx: click.Context, *, as_json: bool) -> None:
    """Print the settings of the command that is running."""
    found = settings_of(ctx)
    if as_json:
        output.print_json({"command": ctx.command_path, "settings": found})
        return
    output.print_table(
        ["option", "value", "from"], [[one["option"], _text(one["value"]), one["from"]] for one in found]
    )


def _text(value: object) -> str:
    return "not set" if value is None else str(value)


def _variable(ctx: click.Context, parameter: click.Option) -> str:
    """The environment variable that gave the value: the first of the option's own that is set."""
    import os

    named = [parameter.envvar] if isinstance(parameter.envvar, str) else list(parameter.envvar or ())
    named.append(f"{ctx.auto_envvar_prefix}_{parameter.name}".upper())
    return next((f"variable {name}" for name in named if os.environ.get(name)), "variable")
