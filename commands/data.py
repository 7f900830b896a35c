"""`sameriver data`: the example history of an app."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from commands import options, output
from commands.options import folder_option, json_option


@click.command()
@click.argument("app_name", metavar="APP", default="flights", help="Bundled app, or path of a folder with app.py.")
@folder_option("--out", "the history", "var/history/<app>")
@click.option(
    "--with", "settings", multiple=True, metavar="NAME=VALUE", help="Setting of the app's history, such as vessels=500."
)
@json_option
def data(app_name: str, out: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Write an app's example history, as events in Parquet.

    For flights: 336,776 real flights of 2013 with their weather (25 MB, 5 s). For vessels: a simulated world, by
    settings of any size (vessels, hours, seed, rated). An app of your own says in history.py, beside its app.py, where
    its events come from; `sameriver new` shows how.
    """
    app = options.load(app_name)
    from commands.examples import Examples

    with output.progress(app.name) as tell:
        summary = Examples(app).write(out or options.history_folder(app), tell, dict(map(_setting, settings)))
    if as_json:
        output.print_json(summary)
        return
    found = "found" if summary["reused"] else "written"
    click.echo(f"{summary['folder']}: {found}, {summary['files']} files, {summary['bytes'] / 1e6:.0f} MB")
    output.print_table(["", "count"], [(name, f"{count:,}") for name, count in _counts(summary)])


def _setting(given: str) -> tuple[str, float | int | str]:
    """Name and value of ``name=value``; numbers as numbers."""
    from shared_features.errors import ConfigurationError

    name, equals, value = given.partition("=")
    if not (name and equals and value):
        raise ConfigurationError(f"--with got {given!r}: wanted NAME=VALUE")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, value


def _counts(summary: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The counts in a summary, those of a group with its name."""
    for name, value in summary.items():
        told = name.replace("_", " ")
        if isinstance(value, Mapping):
            yield from ((f"{told}: {one.replace('_', ' ')}", count) for one, count in value.items())
        elif isinstance(value, int) and name not in ("reused", "files", "bytes"):
            yield told, value
