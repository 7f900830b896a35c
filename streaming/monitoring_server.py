"""The job's own HTTP port: ``/metrics``, ``/healthz``, ``/readyz`` and ``/status``. It tells and takes no orders.

It listens on loopback unless told otherwise, and then wants a token for all but the probes (see `MonitoringAccess`).
Without one it answers only requests that name it by an address or as localhost, so that a web page cannot read it by
way of a name of its own (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol

from serving.status import RefusalError
from shared_features.errors import ConfigurationError
from streaming.monitoring_access import MonitoringAccess

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_JSON: Final = "application/json"
_PROBES: Final = ("/healthz", "/readyz")
_MAX_CONNECTIONS: Final = 32
_TIMEOUT_S: Final = 5.0


class Monitored(Protocol):
    """What tells: a job's `streaming.monitoring.Monitoring`, or a check that runs beside it."""

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        ...

    def status(self) -> dict[str, Any]:
        """Plain JSON values; ``ready``, ``subscribed``, ``state_restored``, ``fingerprint_matched``, ``failure``."""
        ...


class MonitoringServer:
    """Serves one job's monitoring until closed.

    Args:
        monitoring: of the job.
        host: an address of this machine.
        port: 0 takes a free one.
        access: who may ask; by default this machine alone.

    Raises:
        ConfigurationError: nothing can listen there, or the access would let everybody ask.
    """

    def __init__(
        self, monitoring: Monitored, host: str = "127.0.0.1", port: int = 0, access: MonitoringAccess | None = None
    ) -> None:
        access = access or MonitoringAccess()
        access.check(host)
        try:
            self._server = _Server((host, port), monitoring, access)
        except OSError as error:
            raise ConfigurationError(
                f"monitoring cannot listen on {host}:{port} ({error.strerror}): give another --monitoring-port"
            ) from None
        self.port: int = self._server.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if self._server.context is None else 'https'}://{shown}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="monitoring", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], monitoring: Monitored, access: MonitoringAccess) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.monitoring, self.token, self.context = monitoring, access.token(), access.context()
        self.connections = threading.Semaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self.context is not None:  # on this thread: a slow handshake must keep nobody else waiting
                request.settimeout(_TIMEOUT_S)
                request = self.context.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except (OSError, ssl.SSLError):  # no TLS, or not this one
            self.shutdown_request(request)
        finally:
            self.connections.release()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "sameriver"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        token, path = self.server.token, self.path.partition("?")[0]
        if token is None and not _is_own(self.headers.get("Host", "")):
            self._answer(403, _JSON, b'{"error": "this host name is not served"}')
            return
        if token is not None and path not in _PROBES:
            try:
                token.check_headers(dict(self.headers.items()))
            except RefusalError:
                self._answer(401, _JSON, b'{"error": "a valid bearer token is needed"}')
                return
        monitoring = self.server.monitoring
        if path == "/metrics":
            self._answer(200, _TEXT, monitoring.metrics())
            return
        if path not in ("/healthz", "/readyz", "/status"):
            self._answer(404, _JSON, b'{"error": "wanted /metrics, /healthz, /readyz or /status"}')
            return
        status = monitoring.status()
        if path == "/healthz":
            said = {"healthy": status["failure"] is None, "failure": status["failure"]}
            code = 200 if said["healthy"] else 503
        elif path == "/readyz":
            said = {name: status[name] for name in ("ready", "subscribed", "state_restored", "fingerprint_matched")}
            code = 200 if status["ready"] else 503
        else:
            said, code = status, 200
        self._answer(code, _JSON, json.dumps(said).encode())

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged: probes come every few seconds."""


def _is_own(host: str) -> bool:
    """Whether a Host header names localhost or an address, with or without a port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
