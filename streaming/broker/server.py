"""The broker as a thing to start and stop, in a process of its own or inside another one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from shared_features.errors import ConfigurationError
from streaming.broker.clock import Clock, SystemClock
from streaming.broker.commits import Commits
from streaming.broker.core import Core
from streaming.broker.database import Database
from streaming.broker.recovery import recover
from streaming.broker.service import Service
from streaming.broker.storage import InMemory, Storage

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
STOP_GRACE_S = 2.0
REST_CALLS = 1000
"""REST requests under way at once, waiting pulls included; more are answered 503."""

_OPTIONS = [
    # Requests above 10 MB must reach the broker, to be refused as INVALID_ARGUMENT: a transport limit answers
    # RESOURCE_EXHAUSTED, which clients retry for ten minutes.
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.so_reuseport", 0),  # a second broker on the same port is an error, not a lottery
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
]


class Broker:
    """An embedded Pub/Sub on loopback.

    >>> broker = Broker()
    >>> port = broker.start()
    >>> port > 0
    True
    >>> broker.stop()

    Args:
        port: TCP port on 127.0.0.1; 0 takes a free one.
        data_dir: folder for topics, subscriptions and messages; None keeps them in memory only.
        clock: for tests.
        rest_port: TCP port of the REST API; 0 takes a free one, None serves none.
        max_backlog_bytes: what one topic may keep for its subscriptions; None does not limit it.
    """

    def __init__(
        self,
        port: int = 0,
        data_dir: Path | None = None,
        clock: Clock | None = None,
        rest_port: int | None = None,
        max_backlog_bytes: int | None = None,
    ) -> None:
        self._max_backlog_bytes = max_backlog_bytes
        self.port = port
        self.data_dir = data_dir
        self.rest_port = rest_port
        self._clock = clock or SystemClock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> int:
        """Serve from a thread of its own; the port.

        Raises:
            ConfigurationError: the port is in use or the folder cannot be used.
        """
        storage = self._open_storage()
        self._thread = threading.Thread(target=self._run, args=(storage,), name="broker", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self.port

    def stop(self) -> None:
        """End all calls with UNAVAILABLE, write what is left, and return. Harmless if not started."""
        if self._thread is None or self._loop is None or self._stop is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _open_storage(self) -> Storage:
        if self.data_dir is None:
            return InMemory()
        return Database(self.data_dir)

    def _run(self, storage: Storage) -> None:
        try:
            with contextlib.closing(storage):
                asyncio.run(self._serve(storage))
        except BaseException as error:
            if self._ready.is_set():
                log.error("the broker ended", exc_info=error)
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self, storage: Storage) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        core = Core(self._clock, storage, max_backlog_bytes=self._max_backlog_bytes)
        for sentence in recover(core):
            log.error("%s", sentence)
        commits = Commits(core)
        service = Service(core, commits)
        _check_port(self.port)
        _check_port(self.rest_port or 0, "--rest-port")
        server: Any = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(service.handlers())
        try:
            self.port = server.add_insecure_port(f"{HOST}:{self.port}")
        except RuntimeError:
            raise _port_in_use(self.port) from None
        await server.start()
        async with _rest(service, self.rest_port) as self.rest_port:
            commits.start(service.sweep)
            self._ready.set()
            await self._stop.wait()
            service.stop()
        await server.stop(STOP_GRACE_S)
        await commits.close()


@contextlib.asynccontextmanager
async def _rest(service: Service, port: int | None) -> AsyncIterator[int | None]:
    """The REST API on a port, 0 for a free one; the port."""
    if port is None:
        yield None
        return
    import uvicorn

    from streaming.broker.rest import Rest

    listening = socket.create_server((HOST, port))
    app: Any = Rest(service)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
            limit_concurrency=REST_CALLS, timeout_graceful_shutdown=int(STOP_GRACE_S),
        )
    )  # fmt: skip
    serving = asyncio.create_task(server.serve([listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


def _check_port(port: int, option: str = "--port") -> None:
    """Refuse a port in use before gRPC does, which would print lines of its own."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise _port_in_use(port, option) from None


def _port_in_use(port: int, option: str = "--port") -> ConfigurationError:
    return ConfigurationError(
        f"Port {port} on {HOST} cannot be listened on: stop what uses it, or choose another with {option}."
    )
