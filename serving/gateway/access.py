"""Who may ask: pages of other origins may not, names that merely point here may not, and strangers need the token."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

from serving.gateway.replies import error_reply

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS = frozenset({"/healthz", "/readyz"})

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
]


class Access:
    """Passes on what may come in; the rest is answered 401 or 403.

    Args:
        inner: the application.
        token: that callers must bear, but for health checks; None asks for none.
        any_host: whether any Host header goes. Without it only names of this machine do: a web page could have its
            name point here, and ask with the browser's help.
    """

    def __init__(self, inner: Application, *, token: str | None, any_host: bool) -> None:
        self._inner = inner
        self._token = None if token is None else _digest(token.encode())
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
        else:
            await self._inner(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(reversed(scope["headers"]))
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._any_host and _host_name(host) not in LOCAL_HOSTS:
            return error_reply(403, "the Host header must name this machine, for example 127.0.0.1")
        if scope["method"] not in ("GET", "HEAD") and b"origin" in headers:
            origin = urlsplit(headers[b"origin"].decode("latin-1"))
            if origin.netloc.lower() != host.lower():
                return error_reply(403, "pages of other origins may not ask")
        if self._token is not None and scope["path"] not in OPEN_PATHS and not self._bears(headers):
            refused = error_reply(401, "a token is needed: Authorization: Bearer <token>")
            refused.headers["www-authenticate"] = "Bearer"
            return refused
        return None

    def _bears(self, headers: Mapping[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Of hashes, so that not even the token's length shows in the time it takes.
        matches = hmac.compare_digest(_digest(given.strip()), self._token or b"")
        return matches and scheme.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _host_name(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
