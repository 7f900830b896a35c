"""`sameriver serve | broker`: the embedded model server and the embedded Pub/Sub, on this machine unless told so."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option
from commands.processes import check_port_free
from commands.signals import StopSignal, stop_signal

if TYPE_CHECKING:
    from argparse import Namespace

    from serving.server import ModelServer
    from serving.vertex import VertexServer
    from shared_features.app import App

log = logging.getLogger("sameriver")

LOOPBACK = "127.0.0.1"
LOOK_EVERY_S = 0.5
"""Between two looks at what is promoted, and at the config made of it."""


@click.command(context_settings={"ignore_unknown_options": True})
@app_option
@folder_option("--models", "models, one folder each", "var/models/<app>")
@click.option("--port", default=options.MODEL_PORT, type=click.IntRange(0, 65535), help="Of gRPC; 0: a free one.")
@click.option("--rest-port", type=click.IntRange(0, 65535), show_default="no REST", help="Of REST; 0: a free one.")
@click.argument(
    "flags",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[FLAGS OF TENSORFLOW_MODEL_SERVER]...",
    help="By their own names, such as --enable_batching.",
)
@json_option
def serve(
    app_name: str, models: Path | None, port: int, rest_port: int | None, flags: tuple[str, ...], as_json: bool
) -> None:
    """Serve the app's models by TensorFlow Serving's API; newer versions are taken up as they appear.

    Every flag of tensorflow_model_server is taken, too, by its own name: --enable_batching, --ssl_config_file=FILE.
    With --model_base_path or --model_config_file it serves these models instead of the app's;
    `python -m serving.server --help` lists all flags. On Vertex AI its variables say what to serve, and where.
    """
    from serving.flags import parser

    given = [f"--port={port}", *([] if rest_port is None else [f"--rest_api_port={rest_port or -1}"])]
    if not any(flag.startswith(("--model_base_path", "--model_config_file=", "--version")) for flag in flags):
        if os.environ.get("AIP_STORAGE_URI"):
            from commands.vertex import fetch_model

            with TemporaryDirectory(prefix="sameriver-") as fetched:
                base = fetch_model(os.environ["AIP_STORAGE_URI"], Path(fetched))
                _serve(parser().parse_args([*given, f"--model_base_path={base}", *flags]), as_json)
            return
        app = options.load(app_name)
        names = options.served_models(app)
        if not names:
            from shared_features.errors import ConfigurationError

            raise ConfigurationError(f"app {app.name!r} has no model to serve: wanted models=[Model(...)] in its file")
        home = models or options.models_folder(app)
        for name in names:
            check_model(home, name, app)
        with _server_config(home, names) as config:
            given += [f"--model_config_file={config}", f"--model_config_file_poll_wait_seconds={LOOK_EVERY_S}"]
            _serve(parser().parse_args([*given, *flags]), as_json)
        return
    _serve(parser().parse_args([*given, *flags]), as_json)


@contextmanager
def _server_config(home: Path, names: Sequence[str]) -> Iterator[Path]:
    """A model config file of our own that follows what is promoted in ``home``.

    Not the one beside the models: that has the paths of the machine where it was written.
    """
    from serving.promotion import CONFIG, server_config
    from shared_features.errors import ConfigurationError
    from shared_features.whole_files import replace_text

    ended = threading.Event()
    with TemporaryDirectory(prefix="sameriver-") as folder:
        path, text = Path(folder) / CONFIG, server_config(home, names)
        replace_text(path, text)

        def follow() -> None:
            said, complaint = text, ""
            while not ended.wait(LOOK_EVERY_S):
                try:
                    now = server_config(home, names)
                except ConfigurationError as error:
                    if str(error) != complaint:
                        log.error("%s", error)
                    complaint = str(error)
                    continue
                if now != said:
                    replace_text(path, now)
                    said = now

        thread = threading.Thread(target=follow, name="promotions", daemon=True)
        thread.start()
        try:
            yield path
        finally:
            ended.set()
            thread.join()


def _serve(flags: Namespace, as_json: bool) -> None:
    """A model server by its flags, until a signal."""
    with stop_signal() as stop:
        from serving.access import address
        from serving.command_line import FlagsError, prepare, print_version, stay
        from shared_features.errors import ConfigurationError

        if flags.version:
            print_version()
            return
        try:
            running, models = prepare(flags)
        except FlagsError as error:
            raise ConfigurationError(str(error)) from error
        running.start()
        on_vertex = _on_vertex(running, models[0].name)
        wait = _waiting(stop)  # before anybody is told that it is ready, who might stop it at once
        try:
            served = {one.name: sorted(state.version for state in running.models.states(one.name)) for one in models}
            name, versions = next(iter(served.items()))
            where = address(flags.host, running.port)
            rest = None if running.rest_port is None else address(flags.host, running.rest_port)
            if as_json:
                ready = {"ready": True, "host_port": where, "rest": rest}
                output.print_json({**ready, "model": name, "versions": versions, "models": served})
            else:
                scheme = "https" if flags.ssl_config_file is not None and flags.rest_api_enable_ssl else "http"
                also = "" if rest is None else f", REST at {scheme}://{rest}/v1/models/{name}"
                more = f" and {len(served) - 1} more" if len(served) > 1 else ""
                click.echo(f"model server ready: {name} version {versions[-1]}{more} at {where}{also}")
            stay(running, flags, models, wait)
        finally:
            if on_vertex is not None:
                on_vertex.stop()
            running.stop()
        if as_json:
            output.print_json({"stopped": True})


def _on_vertex(running: ModelServer, model: str) -> VertexServer | None:
    """The port that Vertex AI asks, where it does; the server is stopped if there can be none."""
    from serving.rest import Rest
    from serving.vertex import VertexServer, vertex_settings

    try:
        settings = vertex_settings(os.environ)
        if settings is None:
            return None
        assert running.services is not None
        found = VertexServer(settings, model, running.models.ready, Rest(running.services))
    except BaseException:
        running.stop()
        raise
    found.start()
    return found


def _waiting(stop: StopSignal) -> Callable[[float | None], bool]:
    """Whether a signal has come before so many seconds have passed."""
    stop.drain = lambda: None  # from here on a signal ends the waiting, nothing else

    def wait(timeout_s: float | None) -> bool:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not stop.asked.wait(0.2):  # a main thread that sleeps for long would never run the handler
            if deadline is not None and time.monotonic() >= deadline:
                return False
        return True

    return wait


def check_model(home: Path, name: str, app: App, otherwise: str = "or name another folder with --models") -> None:
    """ConfigurationError, with the command that makes one, if there is no version of the model."""
    from shared_features.errors import ConfigurationError
    from training.export import versions

    if not versions(home / name):
        raise ConfigurationError(
            f"model {name!r} has no version in {home / name}: run `sameriver train --app {app.spec}`, {otherwise}"
        )


@click.command()
@click.option("--port", default=options.BROKER_PORT, type=click.IntRange(0, 65535), help="Of gRPC; 0: a free one.")
@folder_option("--data", "messages, which survive a restart", "var/broker")
@click.option("--in-memory", is_flag=True, help="Keep nothing over a restart.")
@click.option("--rest-port", type=click.IntRange(0, 65535), show_default="no REST", help="Of REST; 0: a free one.")
@click.option(
    "--max-backlog-bytes",
    type=click.IntRange(1),
    show_default="no limit",
    help="What one topic may keep; then publishers are told RESOURCE_EXHAUSTED.",
)
@json_option
def broker(
    port: int,
    data: Path | None,
    in_memory: bool,
    rest_port: int | None,
    max_backlog_bytes: int | None,
    as_json: bool,
) -> None:
    """Run the embedded Pub/Sub: point official clients at it with PUBSUB_EMULATOR_HOST."""
    check_port_free(port, "broker", "--port")  # before there is a folder
    check_port_free(rest_port or 0, "broker's REST API", "--rest-port")
    with stop_signal() as stop:
        from streaming.broker.server import Broker

        running = Broker(
            port,
            None if in_memory else data or options.VAR / "broker",
            rest_port=rest_port,
            max_backlog_bytes=max_backlog_bytes,
        )
        host_port = f"{LOOPBACK}:{running.start()}"
        rest = None if running.rest_port is None else f"{LOOPBACK}:{running.rest_port}"
        try:
            if as_json:
                output.print_json({"ready": True, "host_port": host_port, "rest": rest})
            else:
                also = "" if rest is None else f", REST at http://{rest}/v1"
                click.echo(f"broker ready: export PUBSUB_EMULATOR_HOST={host_port}{also}")
            stop.wait()
        finally:
            running.stop()
        if as_json:
            output.print_json({"stopped": True})
