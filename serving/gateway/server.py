"""Runs the gateway's application: uvicorn on a thread of its own, with limits on slow and on many connections."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.certificates import server_context
from serving.gateway.access import Application
from serving.gateway.desk import Desk
from shared_features.errors import ConfigurationError

log = logging.getLogger("sameriver.gateway")

HEADERS_S = 10.0
"""How long a connection may take to send the headers of a request."""

IDLE_S = 75
CONNECTIONS = 4_096
HEADER_BYTES = 32 << 10
DRAIN_S = 30
ROTATION_S = 5.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: the gateway's certificate and key, and the authority whose clients may connect, if not all may."""

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What connections are made with.

        Raises:
            ConfigurationError: a file cannot be used, or others than its owner may read the key.
        """
        return server_context("the gateway's", self.certificate, self.key, self.client_authority)

    def changed(self) -> float:
        """When a file last changed; seconds since 1970, 0 while one is missing."""
        try:
            return max(path.stat().st_mtime for path in (self.certificate, self.key))
        except OSError:
            return 0.0


class _Together:
    """A transport that sends an answer's head with its body: each call of the system costs as much as h11 does."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not data:
            return
        head, self._head = self._head, b""
        if not head and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self._flush)  # where no body follows at once
        else:
            self._transport.write(head + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head:
            self._transport.write(head)


class _Patient(H11Protocol):
    """uvicorn's own protocol with an end to its patience: headers have to come, the first ones too."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = _Together(transport, self.loop)  # type: ignore[assignment]
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._disarm()

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(HEADERS_S, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle's algorithm off only where it sees TCP, which costs 40 ms else.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1_024)
    except OSError as error:
        made.close()
        raise ConfigurationError(
            f"the gateway cannot listen on port {port} of {host} ({error.strerror}): give another with --port"
        ) from error
    return made


class GatewayServer:
    """A running gateway.

    Args:
        desk, application: what answers.
        host, port: where to listen; port 0 takes a free one.
        tls: None speaks plain HTTP.
    """

    def __init__(self, desk: Desk, application: Application, *, host: str, port: int, tls: Tls | None = None) -> None:
        self._desk, self._tls = desk, tls
        self._context = None if tls is None else tls.context()
        config = uvicorn.Config(
            application,
            http=_Patient,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=DRAIN_S,
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=HEADER_BYTES,
            backlog=1_024,
        )
        config.load()
        config.ssl = self._context
        self._server = uvicorn.Server(config)
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._failure: BaseException | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)

    def start(self) -> None:
        """Answer from now on. Raises what made it impossible."""
        self._thread.start()
        self._up.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more connections, answer what is under way within `DRAIN_S`, end."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            log.exception("the gateway ended")
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._desk.start()
        rotation = asyncio.create_task(self._rotate())
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        try:
            while not (self._server.started or serving.done()):
                await asyncio.sleep(0.001)
            self._up.set()
            await serving
        finally:
            rotation.cancel()
            await self._desk.stop()

    async def _rotate(self) -> None:
        """Take up a certificate that was replaced; new connections get the new one."""
        if self._tls is None or self._context is None:
            return
        known: Any = self._tls.changed()
        while True:
            await asyncio.sleep(ROTATION_S)
            changed = self._tls.changed()
            if changed in (known, 0.0):
                continue
            try:
                self._tls.context()  # both files, checked apart: half a pair must not break the one in use
                self._context.load_cert_chain(self._tls.certificate, self._tls.key)
                log.warning("the gateway's certificate was replaced")
            except (ConfigurationError, OSError, ssl.SSLError) as error:
                log.warning("the gateway keeps its certificate: %s", error)
            known = changed
