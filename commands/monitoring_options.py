"""Where `sameriver stream` says how it is, and who may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)

_OPTIONS = (
    click.option("--monitoring-host", default="127.0.0.1", help="Address of /metrics, /healthz, /readyz and /status."),
    click.option(
        "--monitoring-port", default=0, type=click.IntRange(-1, 65535), help="Their port; 0: a free one, -1: none."
    ),
    click.option("--monitoring-allow-remote", is_flag=True, help="Let other machines ask; needs a token file."),
    click.option("--monitoring-token-file", type=_FILE, help="File with the token that /metrics and /status want."),
    click.option("--monitoring-certificate", type=_FILE, help="Certificate in PEM: HTTPS instead of HTTP."),
    click.option("--monitoring-key", type=_FILE, help="Its key in PEM, readable by its owner only."),
)


def monitoring_options(command: Command) -> Command:
    """``--monitoring-…``; `monitoring_settings` makes settings of them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def monitoring_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `streaming.job.JobSettings` takes, from the options as click gives them."""
    from streaming.monitoring_access import MonitoringAccess

    access = MonitoringAccess(
        allow_remote=given["monitoring_allow_remote"],
        token_file=given["monitoring_token_file"],
        certificate=given["monitoring_certificate"],
        key=given["monitoring_key"],
    )
    return {
        "monitoring_host": given["monitoring_host"],
        "monitoring_port": None if given["monitoring_port"] < 0 else given["monitoring_port"],
        "monitoring_access": access,
    }
