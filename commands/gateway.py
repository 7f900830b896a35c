"""`sameriver gateway`: the REST API for events, beside a running job."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands import options, output
from commands.options import app_option, json_option, pubsub_options
from commands.signals import stop_signal

if TYPE_CHECKING:
    from serving.gateway.server import Tls

LOOPBACK = "127.0.0.1"
SHORTEST_TOKEN = 16

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@app_option
@pubsub_options
@click.option("--host", default=LOOPBACK, help="Address to listen on; another than loopback needs --allow-remote.")
@click.option("--port", default=options.GATEWAY_PORT, type=click.IntRange(0, 65535), help="Of HTTP; 0: a free one.")
@click.option("--allow-remote", is_flag=True, help="Let other machines connect; needs --token-file or client TLS.")
@click.option("--token-file", type=_FILE, help="File with the token that callers must bear.")
@click.option("--tls-certificate", type=_FILE, help="Certificate in PEM: HTTPS instead of HTTP.")
@click.option("--tls-key", type=_FILE, help="Its key in PEM, readable by its owner only.")
@click.option(
    "--tls-client-authority", type=_FILE, help="Only clients with a certificate of this authority may connect."
)
@click.option("--name", default="gateway", help="Of this gateway; several of one app need different names.")
@click.option("--wait", "wait_s", default=5.0, type=click.FloatRange(0, 60), help="Seconds to wait for predictions.")
@click.option("--max-in-flight", default=2_000, type=click.IntRange(1), help="Events that may wait; beyond it 429.")
@click.option("--remember", default=100_000, type=click.IntRange(10_000), help="Events remembered, about 2 KB each.")
@click.option("--forget-subscriptions", is_flag=True, help="Delete this gateway's subscriptions when it stops.")
@json_option
def gateway(
    app_name: str,
    project: str,
    emulator: str | None,
    host: str,
    port: int,
    allow_remote: bool,
    token_file: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_client_authority: Path | None,
    name: str,
    wait_s: float,
    max_in_flight: int,
    remember: int,
    forget_subscriptions: bool,
    as_json: bool,
) -> None:
    """Take events over HTTP and answer with their predictions: POST /v1/apps/<app>/events, see /docs.

    It publishes to the app's topic and follows the job's; several can run beside each other.
    """
    app = options.load(app_name)
    with stop_signal() as stop:
        from commands.gateway_topics import GatewayTopics
        from serving.gateway.desk import Desk, DeskSettings
        from serving.gateway.server import GatewayServer
        from serving.gateway.web import application
        from streaming.messages import plain

        token = None if token_file is None else read_token(token_file)
        tls = read_tls(tls_certificate, tls_key, tls_client_authority)
        check_reach(host, allow_remote, token is not None, tls)
        endpoint = options.endpoint(project, emulator)
        with options.reaching(endpoint):
            topics = GatewayTopics(app, endpoint, name)
        try:
            settings = DeskSettings(wait_s=wait_s, max_in_flight=max_in_flight, remember=remember)
            desk = Desk(app, topics, plain, settings)
            version = importlib.metadata.version("sameriver")
            web = application(desk, version=version, token=token, any_host=allow_remote)
            server = GatewayServer(desk, web, host=host, port=port, tls=tls)
            server.start()
            try:
                _tell_ready(app.name, server.port, host, tls, as_json)
                stop.wait()
            finally:
                server.stop()
        finally:
            topics.close()
            if forget_subscriptions:
                topics.delete()
        if as_json:
            output.print_json({"stopped": True})


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        ConfigurationError: the file cannot be read, or what it holds is too short to be a secret.
    """
    from shared_features.errors import ConfigurationError

    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"token file {path} cannot be read as ASCII text ({error}): write one") from None
    if len(token) < SHORTEST_TOKEN or any(letter.isspace() for letter in token):
        raise ConfigurationError(
            f"token file {path} must hold one word of at least {SHORTEST_TOKEN} characters, for example 32 random ones"
        )
    return token


def read_tls(certificate: Path | None, key: Path | None, client_authority: Path | None) -> Tls | None:
    """The TLS files; ConfigurationError unless certificate and key are both given or neither."""
    from serving.gateway.server import Tls
    from shared_features.errors import ConfigurationError

    if certificate is None and key is None and client_authority is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError("TLS needs --tls-certificate and --tls-key, got only one of them: give both")
    return Tls(certificate, key, client_authority)


def check_reach(host: str, allow_remote: bool, has_token: bool, tls: Tls | None) -> None:
    """ConfigurationError where other machines could connect and nobody would ask who they are."""
    from shared_features.errors import ConfigurationError

    local = host in ("localhost", "::1") or host.startswith("127.")
    if not local and not allow_remote:
        raise ConfigurationError(
            f"host {host} can be reached from other machines: say --allow-remote if that is meant, or leave --host out"
        )
    if allow_remote and not (has_token or tls is not None):
        raise ConfigurationError(
            "--allow-remote lets other machines connect: give a --token-file or TLS files, so that not everybody can"
        )


def _tell_ready(app_name: str, port: int, host: str, tls: Tls | None, as_json: bool) -> None:
    shown = f"[{host}]" if ":" in host else host
    url = f"{'http' if tls is None else 'https'}://{shown}:{port}"
    if as_json:
        output.print_json({"ready": True, "url": url, "events": f"{url}/v1/apps/{app_name}/events"})
    else:
        click.echo(f"gateway of {app_name} at {url}: POST {url}/v1/apps/{app_name}/events; all about it at {url}/docs")
