"""The servers that answer for one model: asked in turn, and left alone for a while when they do not answer.

A server that is away fails its calls at once or at their deadline. Left in the round it would slow every n-th block
down; so it is ejected after its failure, for a time that doubles with each further one, and then tried again with
whatever call comes next. When all are ejected, the one whose time ends first is asked: nothing is ever given up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from serving import channels, wire
from serving.client_access import ClientAccess

log = logging.getLogger("sameriver.model")

FIRST_EJECTION_S = 1.0
LONGEST_EJECTION_S = 30.0
SLOW_CALLS = 3
"""Calls in a row past their deadline that eject a server: one alone may be the request's doing."""

_AWAY = frozenset({"UNAVAILABLE", "CANCELLED"})


class Backend:
    """One server.

    Attributes:
        target: ``host:port``.
        predict, metadata: its calls, bytes to bytes.
    """

    def __init__(self, target: str, channel: grpc.Channel) -> None:
        self.target, self.channel = target, channel
        self.predict: Any = channel.unary_unary(wire.PREDICT, None, None)
        self.metadata: Any = channel.unary_unary(wire.GET_MODEL_METADATA, None, None)
        self.ejected_until_s = 0.0
        self.ejections = 0
        self.slow_calls = 0
        self.away_since_s: float | None = None


class Backends:
    """One or several servers, each over the process's one channel to it; safe to share between threads.

    Args:
        targets: ``host:port``, several separated by commas. ValueError if there is none.
        access: certificates and token.
        credentials: for TLS, in place of those that ``access`` makes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        access: ClientAccess | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        listed = targets.split(",") if isinstance(targets, str) else list(targets)
        names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
        if not names:
            raise ValueError(f"At least one model server is needed as host:port, got {targets!r}.")
        self.access = access or ClientAccess()
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0
        self.all = [Backend(name, channels.acquire(name, credentials, self.access)) for name in names]

    def __len__(self) -> int:
        return len(self.all)

    def __str__(self) -> str:
        return ", ".join(backend.target for backend in self.all)

    def choose(self) -> Backend:
        """The next one in turn that is not ejected."""
        if len(self.all) == 1:
            return self.all[0]
        with self._lock:
            now_s = self._clock()
            for step in range(len(self.all)):
                found = self.all[(self._next + step) % len(self.all)]
                if found.ejected_until_s <= now_s:
                    break
            else:
                found = min(self.all, key=lambda backend: backend.ejected_until_s)
            self._next = (self.all.index(found) + 1) % len(self.all)
            return found

    def others_answer(self, backend: Backend) -> bool:
        """Whether another server can be asked at once in place of this one."""
        now_s = self._clock()
        return any(other is not backend and other.ejected_until_s <= now_s for other in self.all)

    def failed(self, backend: Backend, code: str, details: str) -> None:
        """Note a call that this server did not answer, and eject the server if it is away or too slow."""
        with self._lock:
            first = backend.away_since_s is None
            if first:
                backend.away_since_s = self._clock()
            backend.slow_calls += code == "DEADLINE_EXCEEDED"
            if code in _AWAY or backend.slow_calls >= SLOW_CALLS:
                now_s = self._clock()
                if backend.ejected_until_s <= now_s:  # several calls may fail of one cause
                    pause_s = min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2 ** min(backend.ejections, 10))
                    backend.ejected_until_s = now_s + pause_s
                    backend.ejections += 1
                    backend.slow_calls = 0
        if first:
            log.warning("model server %s does not answer (%s: %s): trying again until it does",
                        backend.target, code, details)  # fmt: skip

    def answered(self, backend: Backend) -> None:
        """Note an answer of any kind: the server is there."""
        if backend.away_since_s is None:  # the common case, without the lock
            return
        with self._lock:
            since_s, backend.away_since_s = backend.away_since_s, None
            backend.ejected_until_s, backend.ejections, backend.slow_calls = 0.0, 0, 0
        if since_s is not None:
            log.warning("model server %s answers again after %.1f s", backend.target, self._clock() - since_s)

    def close(self) -> None:
        """Let go of the connections."""
        for backend in self.all:
            channels.release(backend.channel)
