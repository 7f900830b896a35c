"""`sameriver new`: a project to start from, which runs as it is."""

from __future__ import annotations

from pathlib import Path

import click

from commands import output
from commands.options import json_option

TEMPLATE = Path(__file__).parent / "template"
PLACEHOLDER = "my_app"
"""The name of the app in the template, in every file of it."""


@click.command()
@click.argument("name", help="Of the app and of its folder: lower-case letters, digits and _.")
@json_option
def new(name: str, as_json: bool) -> None:
    """Write a new project into the folder NAME: an app that predicts late parcels, with events, tests and a README.

    It works as it is (`sameriver demo --app ./NAME`) and is yours to change.
    """
    check_name(name)
    files = write_project(name, Path(name))
    if as_json:
        output.print_json({"folder": name, "app": name, "files": files})
        return
    click.echo(
        f"""{name}: {len(files)} files; begin with {name}/README.md, or with

  pytest {name}                           what the features are, on a few events
  sameriver demo --app ./{name} --quick   train, go live, verify"""
    )


def check_name(name: str) -> None:
    """SameriverError unless an app of one's own can be called so."""
    import apps
    from shared_features import outcomes
    from shared_features.errors import ConfigurationError

    outcomes.check_name("app", name)
    if (Path(apps.__path__[0]) / name).is_dir():
        raise ConfigurationError(f"{name!r} is the name of a bundled app: wanted another one")


def write_project(name: str, folder: Path) -> list[str]:
    """Write the template with this name into a folder that is empty or not there; the paths written, sorted.

    Raises:
        ConfigurationError: there is something in the folder, or it cannot be written.
    """
    from shared_features.errors import ConfigurationError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already and not empty: give another name or move it away")
    sources = [path for path in sorted(TEMPLATE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    written = [folder / path.relative_to(TEMPLATE) for path in sources]
    try:
        for source, target in zip(sources, written, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text("utf-8").replace(PLACEHOLDER, name), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"folder {folder} cannot be written ({error.strerror or error}): make it writable, or go elsewhere"
        ) from error
    return [path.as_posix() for path in written]
