"""A TCP proxy that can be told to misbehave, for faults between two processes that know nothing of it.

    client ──> Proxy ──> server

Healthy it passes bytes on as they come. Its faults are values: the proxy acts on what `fault` says at each piece of
data, so that a connection that was healthy becomes slow, silent or dead in the middle of a message.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass

PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Fault:
    """What the proxy does to every connection.

    Attributes:
        latency_s: each piece of data waits this long.
        bytes_per_s: no faster than this; 0 does not limit.
        drop_share: of the pieces of data, each ends its connection in the middle: half of it is passed on.
        silent: nothing is read or passed on, and nothing is closed (half-open).
        refuse: new connections are reset at once.
    """

    latency_s: float = 0.0
    bytes_per_s: int = 0
    drop_share: float = 0.0
    silent: bool = False
    refuse: bool = False


HEALTHY = Fault()
LATE = Fault(latency_s=1.0)
SLOW = Fault(bytes_per_s=20_000)
DROPPING = Fault(drop_share=0.3)
HALF_OPEN = Fault(silent=True)
REFUSING = Fault(refuse=True)


def _reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)  # wakes whoever reads from it
    connection.close()


class Proxy:
    """Listens on a free port of this machine and passes on to ``target``, which may come, go and move.

    Args:
        target: ``host:port``.
        seed: of what is dropped.

    Attributes:
        host_port: where it listens.
        fault: what it does to the connections from now on.
        connections: how many there have been.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        self.target, self.fault = target, HEALTHY
        self.connections = 0
        self._draw = random.Random(seed)
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._abandoned: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host_port = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, name="proxy", daemon=True)]
        self._threads[0].start()

    def abandon(self) -> None:
        """Leave every present connection silent for good, as a machine that has lost its power does."""
        with self._lock:
            self._abandoned |= self._open

    def reset(self) -> int:
        """Reset every connection; how many there were."""
        with self._lock:
            found = list(self._open)
            self._open.clear()
        for one in found:
            _reset(one)
        return len(found) // 2

    def close(self) -> None:
        """Reset everything and listen no more."""
        self._closing.set()
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                if not select.select([self._listener], [], [], 0.1)[0]:
                    continue
                client, _ = self._listener.accept()
            except (OSError, ValueError):  # closed
                return
            self.connections += 1
            if self.fault.refuse:
                _reset(client)
                continue
            host, _, port = self.target.rpartition(":")
            try:
                server = socket.create_connection((host, int(port)), timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            for pair in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pass_on, args=pair, name="proxy", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while self._wait_while_silent(source):
                fault = self.fault
                data = source.recv(min(PIECE, max(fault.bytes_per_s // 20, 1)) if fault.bytes_per_s else PIECE)
                if not data or not self._wait_while_silent(source):
                    break
                pause_s = self.fault.latency_s + (len(data) / fault.bytes_per_s if fault.bytes_per_s else 0.0)
                if pause_s:
                    self._closing.wait(pause_s)
                if self._draw.random() < self.fault.drop_share:
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, sink}
            _reset(source)
            _reset(sink)

    def _wait_while_silent(self, source: socket.socket) -> bool:
        """Whether the connection is to go on."""
        while (self.fault.silent or source in self._abandoned) and not self._closing.is_set():
            self._closing.wait(0.01)
        return not self._closing.is_set()


def hold(proxy: Proxy, fault: Fault, seconds: float) -> None:
    """Let a fault last."""
    proxy.fault = fault
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        select.select([], [], [], min(0.05, max(until_s - time.monotonic(), 0.0)))
    proxy.fault = HEALTHY
