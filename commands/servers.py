"""`sameriver serve | broker`: the embedded model server and the embedded Pub/Sub, on this machine only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option
from commands.processes import check_port_free
from commands.signals import stop_signal

if TYPE_CHECKING:
    from shared_features.app import App

LOOPBACK = "127.0.0.1"


@click.command()
@app_option
@folder_option("--models", "models, one folder each", "var/models/<app>")
@click.option("--port", default=options.MODEL_PORT, type=click.IntRange(0, 65535), help="Of gRPC; 0: a free one.")
@click.option("--rest-port", type=click.IntRange(0, 65535), show_default="no REST", help="Of REST; 0: a free one.")
@json_option
def serve(app_name: str, models: Path | None, port: int, rest_port: int | None, as_json: bool) -> None:
    """Serve the app's model by TensorFlow Serving's API; newer versions are taken up as they appear."""
    with stop_signal() as stop:
        app = options.load(app_name)
        name = options.served_model(app)
        if name is None:
            from shared_features.errors import ConfigurationError

            raise ConfigurationError(f"app {app.name!r} has no model to serve: wanted models=[Model(...)] in its file")
        home = models or options.models_folder(app)
        check_model(home, name, app)
        from serving.server import ModelServer
        from serving.versions import ModelSettings

        running = ModelServer([ModelSettings(name, home / name)], port=port, rest_port=rest_port)
        running.start()
        try:
            versions = sorted(one.version for one in running.models.states(name))
            rest = None if running.rest_port is None else f"{LOOPBACK}:{running.rest_port}"
            if as_json:
                ready = {"ready": True, "host_port": f"{LOOPBACK}:{running.port}", "rest": rest}
                output.print_json({**ready, "model": name, "versions": versions})
            else:
                also = "" if rest is None else f", REST at http://{rest}/v1/models/{name}"
                click.echo(f"model server ready: {name} version {versions[-1]} at {LOOPBACK}:{running.port}{also}")
            stop.wait()
        finally:
            running.stop()
        if as_json:
            output.print_json({"stopped": True})


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
@json_option
def broker(port: int, data: Path | None, in_memory: bool, as_json: bool) -> None:
    """Run the embedded Pub/Sub: point official clients at it with PUBSUB_EMULATOR_HOST."""
    check_port_free(port, "broker", "--port")  # before there is a folder
    with stop_signal() as stop:
        from streaming.broker.server import Broker

        running = Broker(port, None if in_memory else data or options.VAR / "broker")
        host_port = f"{LOOPBACK}:{running.start()}"
        try:
            if as_json:
                output.print_json({"ready": True, "host_port": host_port})
            else:
                click.echo(f"broker ready: export PUBSUB_EMULATOR_HOST={host_port}")
            stop.wait()
        finally:
            running.stop()
        if as_json:
            output.print_json({"stopped": True})
