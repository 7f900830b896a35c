"""`sameriver ask`: put the texts of a history to the app's external models, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option

Command = TypeVar("Command", bound=Callable[..., Any])


def external_options(command: Command) -> Command:
    """``--external`` and ``--external-token``: where external models are."""
    command = click.option(
        "--external-token",
        "external_tokens",
        multiple=True,
        metavar="NAME=FILE",
        help="File with a token to show an external model.",
    )(command)
    return click.option(
        "--external",
        multiple=True,
        metavar="NAME=ADDRESS",
        help="Where an external model is: grpc://HOST:PORT, http://…, https://…  [default: grpc://127.0.0.1:8500]",
    )(command)


@click.command()
@app_option
@click.option(
    "--history", show_default="var/history/<app>", help="Folder of Parquet, here or at gs://; bq://… as for traindata."
)
@folder_option("--out", "the history with answers", "var/asked/<app>")
@external_options
@json_option
def ask(
    app_name: str,
    history: str | None,
    out: Path | None,
    external: tuple[str, ...],
    external_tokens: tuple[str, ...],
    as_json: bool,
) -> None:
    """Put the texts of a history to the app's external models and write a history with their answers.

    `traindata`, `backfill` and `snapshot` take that one: batch jobs ask nobody. Rows that carry answers of the app's
    version keep them, as those of an archive do. Killed, it goes on where it was.
    """
    app = options.load(app_name)
    with output.progress("asking") as tell:
        tell(0.0, "loading")
        from batch.asking import ask_history
        from serving.external import Externals, read_addresses

        tokens = {name: Path(file) for name, file in read_addresses(external_tokens, "--external-token").items()}
        models = Externals(app.event_types, read_addresses(external, "--external"), tokens)
        try:
            found = ask_history(
                app,
                history or options.history_folder(app),
                out or options.VAR / "asked" / app.name,
                models.ask,
                tell,
            )
        finally:
            models.close()
    if as_json:
        output.print_json(found.as_dict())
        return
    click.echo(f"{found.folder}: {found.rows:,} rows; {found.texts:,} texts were put to models")
    for reason, count in found.left_out.items():
        click.echo(f"rows left out, {reason.replace('_', ' ')}: {count:,}")
    for event_id, why in found.examples.items():
        click.echo(f"  {event_id}: {why}")
