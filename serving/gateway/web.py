"""The gateway's addresses and answers, as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from serving.gateway.access import Access, Application
from serving.gateway.desk import BusyError, Desk, UnavailableError
from serving.gateway.intake import Event, Fault, InvalidError
from serving.gateway.memory import Entry
from serving.gateway.metrics import Metrics
from serving.gateway.openapi import document
from serving.gateway.page import STYLE, page
from serving.gateway.replies import error_reply, json_reply

log = logging.getLogger("sameriver.gateway")

BODY_BYTES = 4 << 20
ALL_BODIES_BYTES = 256 << 20
"""Most that the bodies of all requests under way may have together."""

READ_S = 10.0
BUSY_RETRY_S = 1

_ID = re.compile(r"[0-9a-f]{32}\Z")
_TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_WHOLE_BODY = frozenset({"malformed_json", "not_finite"})


def application(
    desk: Desk, *, version: str, token: str | None = None, any_host: bool = False, body_bytes: int = BODY_BYTES
) -> Application:
    """The gateway of one app.

    Args:
        desk: what does the work; to be started by whoever runs the application.
        version: of the package, for the API's description.
        token, any_host: see `serving.gateway.access.Access`.
        body_bytes: of a request, at most; beyond it 413, before the rest is read.
    """
    web = _Web(desk, version, token is not None, body_bytes)
    metrics = Metrics(desk)
    routes = [
        Route("/v1/apps/{app}/events", web.events, methods=["POST"]),
        Route("/v1/predictions/{id}", web.prediction, methods=["GET"]),
        Route("/openapi.json", web.openapi, methods=["GET"]),
        Route("/docs", web.docs, methods=["GET"]),
        Route("/docs/style.css", web.style, methods=["GET"]),
        Route("/healthz", web.healthz, methods=["GET"]),
        Route("/readyz", web.readyz, methods=["GET"]),
        Route("/metrics", metrics.page, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, Exception: _defect}
    inner = Starlette(routes=routes, exception_handlers=handlers)
    inner.router.redirect_slashes = False
    return metrics.counting(Access(inner, token=token, any_host=any_host))


def _trace(request: Request) -> str:
    """The trace that a request is part of, if it says so in a way that can be read."""
    said: str = request.headers.get("traceparent", "").strip()
    return said if _TRACE.match(said) else ""


class _Web:
    def __init__(self, desk: Desk, version: str, secured: bool, body_bytes: int) -> None:
        self._desk = desk
        self._body_bytes = body_bytes
        self._held_bytes = 0  # of all requests under way
        self._document = document(desk.app, desk.settings, version, secured=secured)

    async def events(self, request: Request) -> Response:
        """POST /v1/apps/{app}/events."""
        desk = self._desk
        if request.path_params["app"] != desk.app.name:
            return error_reply(404, f"no such app here: this gateway serves {desk.app.name!r}")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            return error_reply(415, "send the body as it is, without a Content-Encoding")
        body = bytearray()
        try:
            wait_s = self._wait_s(request)
            await self._read(request, body)
            events, entries, is_list = await desk.submit(bytes(body), wait_s, _trace(request))
        except InvalidError as invalid:
            whole = len(invalid.faults) == 1 and invalid.faults[0].reason in _WHOLE_BODY
            return error_reply(400 if whole else 422, str(invalid), invalid.faults)
        except BusyError:
            return error_reply(429, "too many events wait already: try again", retry_s=BUSY_RETRY_S)
        except UnavailableError as error:
            return error_reply(503, str(error), retry_s=BUSY_RETRY_S)
        finally:
            self._held_bytes -= len(body)
        return self._reply(events, entries, is_list)

    def _reply(self, events: Sequence[Event], entries: Sequence[Entry], is_list: bool) -> Response:
        answers = []
        for event, entry in zip(events, entries, strict=True):
            answer = self._desk.answer(entry)
            if event.ignored:
                answer["ignored_fields"] = event.ignored
            answers.append(answer)
        pending = any(not entry.is_complete() for entry in entries)
        if is_list:
            return json_reply(202 if pending else 200, answers)
        if answers[0]["status"] == "refused":
            fault = Fault(0, answers[0]["reason"], answers[0]["detail"])
            return error_reply(422, f"the streaming job refused the event: {fault.detail}", [fault])
        return _one(answers[0], pending)

    async def prediction(self, request: Request) -> Response:
        """GET /v1/predictions/{id}."""
        name = request.path_params["id"]
        entry = self._desk.memory.find(name) if _ID.match(name) else None
        if entry is None:
            return error_reply(
                404,
                f"unknown here: this gateway remembers the latest {self._desk.memory.capacity:,} events that it has "
                "heard of since it started; send the event again with the same identity, which counts it once",
            )
        try:
            await self._desk.wait(entry, self._wait_s(request) if "wait_s" in request.query_params else 0.0)
        except InvalidError as invalid:
            return error_reply(422, str(invalid), invalid.faults)
        return _one(self._desk.answer(entry), not entry.is_complete())

    async def openapi(self, _: Request) -> Response:
        """GET /openapi.json."""
        return json_reply(200, self._document)

    async def docs(self, request: Request) -> Response:
        """GET /docs."""
        address = f"{request.url.scheme}://{request.headers.get('host', '127.0.0.1')}"
        return HTMLResponse(page(self._desk.app, address))

    async def style(self, _: Request) -> Response:
        """GET /docs/style.css."""
        return Response(STYLE, media_type="text/css")

    async def healthz(self, _: Request) -> Response:
        """GET /healthz: the process answers."""
        return json_reply(200, {"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        """GET /readyz: events can be taken."""
        trouble = self._desk.trouble()
        if trouble:
            return json_reply(503, {"status": "not ready", "why": trouble})
        return json_reply(200, {"status": "ready", "app": self._desk.app.name, "in_flight": self._desk.in_flight})

    def _wait_s(self, request: Request) -> float:
        text = request.query_params.get("wait_s")
        settings = self._desk.settings
        if text is None:
            return settings.wait_s
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= settings.longest_wait_s:
            detail = f"wait_s must be a number of seconds from 0 to {settings.longest_wait_s:g}, got {text!r:.60}."
            raise InvalidError([Fault(0, "out_of_range", detail, "wait_s")])
        return seconds

    async def _read(self, request: Request, body: bytearray) -> None:
        """Read the body, as far as it is allowed to be long and slow, and count it as held.

        Raises:
            HTTPException: 413 or 408.
            BusyError: all bodies together would be too much.
        """
        said = request.headers.get("content-length", "0")
        if not (said.isascii() and said.isdigit()) or len(said) > 15 or int(said) > self._body_bytes:
            raise HTTPException(413, f"the body may have {self._body_bytes:,} bytes at most: send several")
        try:
            async with asyncio.timeout(READ_S):
                async for chunk in request.stream():
                    body += chunk
                    self._held_bytes += len(chunk)
                    if self._held_bytes > ALL_BODIES_BYTES:
                        raise BusyError
                    if len(body) > self._body_bytes:
                        raise HTTPException(413, f"the body may have {self._body_bytes:,} bytes at most: send several")
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {READ_S:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the body is cut short") from None


def _one(answer: dict[str, Any], pending: bool) -> Response:
    return json_reply(202 if pending else 200, answer, {"Location": answer["ask_again"]} if pending else None)


def _http_error(_: Request, error: HTTPException) -> Response:
    sentence = error.detail
    if error.status_code == 404:
        sentence = "no such address: see /docs or /openapi.json"
    reply = error_reply(error.status_code, sentence)
    for name, value in (error.headers or {}).items():
        reply.headers[name] = value
    if error.status_code in (408, 413):
        reply.headers["connection"] = "close"  # the rest of the body is not read
    return reply


def _defect(_: Request, __: Exception) -> Response:
    return error_reply(500, "an unexpected error, which the gateway's log has whole")
