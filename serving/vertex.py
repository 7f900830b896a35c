"""Vertex AI's contract for custom containers: one port, a route for health, a route for predictions.

Source: cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements. Vertex AI sets the variables, asks
callers for their rights, and is alone in reaching the container: so this port answers on every address and wants no
token, and serves nothing else. Whether a container is Vertex AI's is said by ``AIP_HTTP_PORT``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from serving.http import Answer, Handler, HttpServer

EVERYWHERE = "0.0.0.0"  # noqa: S104 - the contract wants it, see above
_HEALTHY, _NOT_READY = b'{"status": "ready"}', b'{"status": "no version answers yet"}'


@dataclass(frozen=True, slots=True)
class VertexSettings:
    """What Vertex AI tells its container.

    Attributes:
        port: to listen on.
        health_route, predict_route: paths.
        storage_uri: folder of the model; "" if the container has its own.
    """

    port: int
    health_route: str
    predict_route: str
    storage_uri: str


def vertex_settings(environment: Mapping[str, str]) -> VertexSettings | None:
    """The settings of Vertex AI's container, None elsewhere.

    Raises:
        ConfigurationError: a port that is none, or a route that begins without a slash.
    """
    port = environment.get("AIP_HTTP_PORT")
    if port is None:
        return None
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise _error(f"AIP_HTTP_PORT must be a port from 1 to 65535, got {port!r}: leave it to Vertex AI")
    routes = {}
    for name, otherwise in (("AIP_HEALTH_ROUTE", "/health"), ("AIP_PREDICT_ROUTE", "/predict")):
        routes[name] = environment.get(name, otherwise)
        if not routes[name].startswith("/"):
            raise _error(f"{name} must be a path such as {otherwise}, got {routes[name]!r}: leave it to Vertex AI")
    storage = environment.get("AIP_STORAGE_URI", "")
    return VertexSettings(int(port), routes["AIP_HEALTH_ROUTE"], routes["AIP_PREDICT_ROUTE"], storage)


class VertexServer:
    """Serves the two routes from `start` to `stop`.

    Args:
        settings: where.
        model: that is asked.
        ready: whether it answers.
        rest: the REST API, to which predictions go on.
        host: address to listen on.

    Raises:
        ConfigurationError: nothing can listen on the port.
    """

    def __init__(
        self, settings: VertexSettings, model: str, ready: Callable[[], bool], rest: Handler, host: str = EVERYWHERE
    ) -> None:
        self._settings, self._ready, self._rest = settings, ready, rest
        self._path = f"/v1/models/{quote(model, safe='')}:predict"
        try:
            self._http = HttpServer(host, settings.port, self._answer, any_host=True)
        except OSError as error:
            raise _error(
                f"port {settings.port}, which AIP_HTTP_PORT names, cannot be listened on ({error.strerror}): choose "
                f"another in containerSpec.ports, or another --port for gRPC"
            ) from None

    def start(self) -> None:
        """Begin to answer."""
        self._http.start()

    def stop(self) -> None:
        """Take no more connections and end."""
        self._http.stop()

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        del headers  # Vertex AI has checked who calls
        if method == "GET" and path == self._settings.health_route:
            return Answer(200, _HEALTHY) if self._ready() else Answer(503, _NOT_READY)
        if method == "POST" and path == self._settings.predict_route:
            return self._rest("POST", self._path, {}, _with_signature(body))
        return Answer(404, b'{"error": "only the routes of AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE are served"}')


def _with_signature(body: bytes) -> bytes:
    """``parameters.signature_name`` of a request where the REST API looks for it; other parameters say nothing here.

    >>> _with_signature(b'{"instances": [1], "parameters": {"signature_name": "describe"}}')
    b'{"instances": [1], "signature_name": "describe"}'
    """
    if b'"parameters"' not in body:
        return body
    try:
        document = json.loads(body)
    except ValueError:
        return body  # whoever reads it next says what is wrong
    if not isinstance(document, dict) or not isinstance(document.get("parameters"), dict):
        return body
    parameters = document.pop("parameters")
    if "signature_name" in parameters:
        document.setdefault("signature_name", parameters["signature_name"])
    return json.dumps(document).encode()


def _error(message: str) -> Exception:
    from shared_features.errors import ConfigurationError  # loads the whole feature library: not before it is needed

    return ConfigurationError(message)
