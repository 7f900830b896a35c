"""`sameriver up`: broker, model server, streaming job and gateway of one app, on fixed ports, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.children import Live
from commands.group import CommandError
from commands.options import app_option, folder_option, json_option
from commands.processes import Child, ChildError, check_port_free
from commands.signals import stop_signal

if TYPE_CHECKING:
    from shared_features.app import App


@click.command()
@app_option
@folder_option("--models", "models, one folder each", "var/models/<app>")
@folder_option("--archive", "the job's archive, from which it comes back", "var/archive/<app>")
@folder_option("--data", "the broker's messages, which survive a restart", "var/broker")
@click.option("--in-memory", is_flag=True, help="The broker keeps nothing over a restart.")
@click.option("--broker-port", default=options.BROKER_PORT, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--model-port", default=options.MODEL_PORT, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--gateway-port", default=options.GATEWAY_PORT, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--no-gateway", is_flag=True, help="No REST API for events.")
@click.option("--with-features", is_flag=True, help="Put the features into prediction messages.")
@click.option("--make", "make_model", is_flag=True, help="No model yet: make one first, quickly.")
@folder_option("--logs", "what the processes say", "var/log/<app>")
@json_option
def up(
    app_name: str,
    models: Path | None,
    archive: Path | None,
    data: Path | None,
    in_memory: bool,
    broker_port: int,
    model_port: int,
    gateway_port: int,
    no_gateway: bool,
    with_features: bool,
    make_model: bool,
    logs: Path | None,
    as_json: bool,
) -> None:
    """Start broker, model server, job and gateway of an app, and stay. Publish events, read predictions.

    Ctrl-C drains gateway and job, then stops the others. If one of them dies, all are stopped and the exit code is 1.
    """
    app = options.load(app_name)
    models = models or options.models_folder(app)
    served = options.served_models(app)
    check_port_free(broker_port, "broker", "--broker-port")
    if not no_gateway:
        check_port_free(gateway_port, "gateway", "--gateway-port")
    if served:
        check_port_free(model_port, "model server", "--model-port")
        _ensure_models(app, app_name, models, make_model)
    ended: SimpleQueue[Child | None] = SimpleQueue()
    live = Live(app_name, served=bool(served), logs=logs or options.VAR / "log" / app.name, on_exit=ended.put)
    with stop_signal() as stop:
        try:
            live.start_broker(broker_port, None if in_memory else data or options.VAR / "broker")
            live.start_model_server(models, model_port)
            live.start_job(archive or options.archive_folder(app), with_features=with_features)
            if not no_gateway:
                live.start_gateway(gateway_port)
                live.gateway_at()
            live.job_ready()
            _tell_ready(app, live, as_json)
            stop.drain = lambda: ended.put(None)
            dead = ended.get()
            if dead is not None:
                raise ChildError(dead)
            if not as_json:
                click.echo("\nstopping: gateway and job drain first", err=True)
        finally:
            stop.drain = lambda: None
            live.stop()
        totals = live.job.result if live.job is not None else {}
        _check_ends(live)
        if as_json:
            output.print_json({"stopped": True, "totals": totals})
        else:
            click.echo(f"stopped; {totals.get('received', 0):,} events were received")


def _check_ends(live: Live) -> None:
    for child in live.children():
        if child.exit_code != 0:
            raise CommandError(str(ChildError(child)))


def _ensure_models(app: App, app_name: str, models: Path, make_model: bool) -> None:
    """Make the models of which there is no version, if we were asked to.

    Raises:
        ConfigurationError: there is none of one of them.
    """
    from commands.preparation import has_model, make_quick_models
    from commands.servers import check_model

    names = options.served_models(app)
    if make_model and not all(has_model(models, name) for name in names):
        make_quick_models(app, app_name, models)
    for name in names:
        check_model(models, name, app, "or let `sameriver up --make` do it")


def _tell_ready(app: App, live: Live, as_json: bool) -> None:
    from streaming.naming import reaction_topics, topic

    host_port = live.broker_at()
    topics = {
        "events": topic(app.name, "events"),
        "predictions": topic(app.name, "predictions"),
        **{f"reaction {name}": of for name, of in reaction_topics(app).items()},
        "dead letters": topic(app.name, "dead-letters"),
    }
    model_server = None if live.model_server is None else live.model_at()
    gateway = None if live.gateway is None else live.gateway_at()
    if as_json:
        output.print_json(
            {
                "ready": True,
                "pubsub_emulator_host": host_port,
                "project": options.PROJECT,
                "topics": topics,
                "model_server": model_server,
                "gateway": gateway,
                "process_ids": {child.name: child.process.pid for child in live.children()},
            }
        )
        return
    model = f" The model: {model_server}." if model_server else ""
    of = f"--app {app.spec}"
    width = max(map(len, topics)) + 2
    lines = "\n".join(f"  {role:<{width}}{name}" for role, name in topics.items())
    click.echo(
        f"""{app.name} is up. Any Pub/Sub client on this machine reaches it with

  export PUBSUB_EMULATOR_HOST={host_port}

in project {options.PROJECT}:

{lines}

From Python:

  from google.cloud import pubsub_v1
  publisher = pubsub_v1.PublisherClient()
  publisher.publish("projects/{options.PROJECT}/topics/{topics["events"]}", data, event_type="{app.predict_on.name}")

{_over_http(app, gateway)}From the command line: sameriver publish FILE {of}, sameriver tail {of}.{model}
Ctrl-C drains and stops everything."""
    )


def _over_http(app: App, gateway: str | None) -> str:
    return "" if gateway is None else f"Over HTTP: POST {gateway}/v1/apps/{app.name}/events, see {gateway}/docs\n\n"
