"""The job's own HTTP port: ``/metrics``, ``/healthz``, ``/readyz`` and ``/status``. It tells and takes no orders.

It listens on loopback unless told otherwise, and answers only requests that name it by an address or as localhost, so
that a web page cannot read it by way of a name of its own (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from shared_features.errors import ConfigurationError
from streaming.monitoring import Monitoring

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_JSON: Final = "application/json"
_MAX_CONNECTIONS: Final = 32
_TIMEOUT_S: Final = 5.0


class MonitoringServer:
    """Serves one job's monitoring until closed.

    Args:
        monitoring: of the job.
        host: an address of this machine.
        port: 0 takes a free one.

    Raises:
        ConfigurationError: nothing can listen there.
    """

    def __init__(self, monitoring: Monitoring, host: str = "127.0.0.1", port: int = 0) -> None:
        try:
            self._server = _Server((host, port), monitoring)
        except OSError as error:
            raise ConfigurationError(
                f"monitoring cannot listen on {host}:{port} ({error.strerror}): give another --monitoring-port"
            ) from None
        self.port: int = self._server.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="monitoring", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def write_address(archive: Path, url: str) -> None:
    """Note beside the archive where its job answers, for `sameriver status`."""
    temporary = archive / "monitoring.json.new"
    temporary.write_text(json.dumps({"url": url}), encoding="utf-8")
    os.replace(temporary, archive / "monitoring.json")


def read_address(archive: Path) -> str | None:
    """Where the archive's job answers, if it is running; None if it never said."""
    try:
        url = json.loads((archive / "monitoring.json").read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) and url.startswith("http://") else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], monitoring: Monitoring) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.monitoring = monitoring
        self.connections = threading.Semaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "sameriver"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        if not _is_own(self.headers.get("Host", "")):
            self._answer(403, _JSON, b'{"error": "this host name is not served"}')
            return
        monitoring = self.server.monitoring
        path = self.path.partition("?")[0]
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
