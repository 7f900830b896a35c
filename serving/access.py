"""Who may ask: a bearer token, and which addresses a server may listen on."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path

from serving.status import Code, RefusalError, invalid
from serving.watched import WatchedFile

SHORTEST_TOKEN = 16
_HEADER = "authorization"


class Token:
    """A secret that callers show as ``authorization: Bearer <token>``, in gRPC metadata or as an HTTP header.

    Args:
        path: file with the token; read again when it changes. RefusalError if it is too short to be one.
    """

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, _read_token)

    def check_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """RefusalError (UNAUTHENTICATED) unless the call shows the token."""
        given = next((value for name, value in metadata if name == _HEADER), "")
        self._check(given if isinstance(given, str) else "")

    def check_headers(self, headers: Mapping[str, str]) -> None:
        """The same for an HTTP request."""
        self._check(next((value for name, value in headers.items() if name.lower() == _HEADER), ""))

    def _check(self, given: str) -> None:
        scheme, _, shown = given.partition(" ")
        wanted = self._file.value()
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode("utf-8", "replace"), wanted):
            raise RefusalError(Code.UNAUTHENTICATED, "A valid bearer token is needed")


def _read_token(path: Path) -> bytes:
    token = path.read_bytes().strip()
    if len(token) < SHORTEST_TOKEN:
        raise invalid(f"'{path}' holds no token of at least {SHORTEST_TOKEN} characters")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1")]
    [True, True, True, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def address(host: str, port: int) -> str:
    """``host:port``, with brackets where they are needed."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
