"""`sameriver demo`: an app from nothing to predictions, live, and the proof that the features match."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option
from commands.signals import stop_signal


@click.command()
@app_option
@click.option("--quick", is_flag=True, help="Three days instead of a week, and a model that is trained quickly.")
@folder_option("--models", "models, one folder each", "var/models/<app>")
@click.option(
    "--steady", "steady_s", type=click.FloatRange(1), show_default="40, or 8", help="Seconds at a steady 255 events/s."
)
@click.option("--seed", default=1, help="Of the events that are made late or sent twice.")
@click.option(
    "--map-port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Port of the map, for apps that have one.",
    show_default="any free one",
)
@click.option("--hold", is_flag=True, help="Stay when all is done, with the map, until Ctrl-C.")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Write one frame as SVG there.")
@json_option
@click.pass_context
def demo(
    ctx: click.Context,
    app_name: str,
    quick: bool,
    models: Path | None,
    steady_s: float | None,
    seed: int,
    map_port: int,
    hold: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Replay a week of history through broker, job and model server, then verify every feature.

    It is the first week after what the model was trained and validated on: for flights, of November 2013. Makes what
    is missing (history, training rows, model) and keeps it for the next time. 5 % of the events come late and 1 %
    twice, and the job is once ended with kill -9 while it works. Exit code 0 only if no prediction was lost and
    nothing differs. An app with a map (vessels) shows it in the browser meanwhile.
    """
    app = options.load(app_name)
    models = models or options.models_folder(app)
    from commands.demo_run import DemoRun, DemoSettings

    settings = DemoSettings(quick=quick, steady_s=steady_s, seed=seed, picture=picture, map_port=map_port)
    result: dict[str, Any] = {}
    with stop_signal() as stop, DemoRun(app, app_name, models, settings) as run:
        with _shown(run, as_json):
            result = run.play()
        stop.drain = lambda: None
        if hold and run.map is not None:
            click.echo(f"The map stays at {run.map.url} until Ctrl-C.", err=True)
            stop.wait()
    if not result:
        click.echo("stopped before its end; what was made is kept", err=True)
        ctx.exit(130)
    if as_json:
        output.print_json(result)
    if result["lost"] or result["mismatches"] or result["training_mismatches"]:
        ctx.exit(1)


class _shown:  # noqa: N801
    """The view on a terminal, or lines where there is none; with ``--json`` on standard error."""

    def __init__(self, run: Any, as_json: bool) -> None:
        from rich.console import Console

        from commands.demo_view import WIDTH

        self._run = run
        self._console = Console(stderr=as_json, highlight=False)
        if not self._console.is_terminal:
            self._console.width = WIDTH
        self._live: Any = None

    def __enter__(self) -> None:
        from commands.demo_lines import Lines

        if not self._console.is_terminal or self._console.height < 16:
            self._run.listen(Lines(self._console, self._run.view))
            return
        from rich.live import Live

        self._live = Live(
            console=self._console,
            get_renderable=lambda: self._run.view.frame(self._console.height),
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self._run.view.verdict is not None:
            self._console.print(self._run.view.verdict)
        sys.stdout.flush()
