"""The v1 REST API, as its paths are published: JSON in and out, so that any language with HTTP can use the broker.

A path names a method, and the resource that one field of its request is; the body is the rest of the request, or one
field of it. https://cloud.google.com/pubsub/docs/reference/rest
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from streaming.broker.errors import RefusedError, invalid, too_large
from streaming.broker.messages import PublishResponse, PullResponse
from streaming.broker.service import METHODS, Service, refusal

MAX_BODY_BYTES = 16_000_000
"""A request of 10 MB in base64, and some names."""

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400, "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "ABORTED": 409, "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499, "INTERNAL": 500, "UNKNOWN": 500, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}  # fmt: skip

_TOPIC, _SUBSCRIPTION, _SNAPSHOT, _SCHEMA = (
    rf"projects/[^/]+/{kind}/[^/:]+" for kind in ("topics", "subscriptions", "snapshots", "schemas")
)
_PROJECT = r"projects/[^/]+"
_ANY = rf"{_TOPIC}|{_SUBSCRIPTION}|{_SNAPSHOT}|{_SCHEMA}"
_LOOPBACK = re.compile(r"(?:127\.\d+\.\d+\.\d+|localhost|\[::1\])(?::\d+)?", re.IGNORECASE)


class _Route(NamedTuple):
    verb: str
    path: re.Pattern[str]
    method: str
    field: str
    body: str


def _route(verb: str, path: str, after: str, method: str, field: str, body: str = "*") -> _Route:
    """A path's first group is what `field` of the request is; `body` names the field that the body is, * for all."""
    return _Route(verb, re.compile(rf"/v1/({path}){re.escape(after)}"), method, field, body)


ROUTES = (
    _route("POST", _TOPIC, ":publish", "Publish", "topic"),
    _route("POST", _SUBSCRIPTION, ":pull", "Pull", "subscription"),
    _route("POST", _SUBSCRIPTION, ":acknowledge", "Acknowledge", "subscription"),
    _route("POST", _SUBSCRIPTION, ":modifyAckDeadline", "ModifyAckDeadline", "subscription"),
    _route("PUT", _TOPIC, "", "CreateTopic", "name"),
    _route("GET", _TOPIC, "", "GetTopic", "topic"),
    _route("PATCH", _TOPIC, "", "UpdateTopic", "topic.name"),
    _route("DELETE", _TOPIC, "", "DeleteTopic", "topic"),
    _route("GET", _PROJECT, "/topics", "ListTopics", "project"),
    _route("GET", _TOPIC, "/subscriptions", "ListTopicSubscriptions", "topic"),
    _route("GET", _TOPIC, "/snapshots", "ListTopicSnapshots", "topic"),
    _route("PUT", _SUBSCRIPTION, "", "CreateSubscription", "name"),
    _route("GET", _SUBSCRIPTION, "", "GetSubscription", "subscription"),
    _route("PATCH", _SUBSCRIPTION, "", "UpdateSubscription", "subscription.name"),
    _route("DELETE", _SUBSCRIPTION, "", "DeleteSubscription", "subscription"),
    _route("GET", _PROJECT, "/subscriptions", "ListSubscriptions", "project"),
    _route("POST", _SUBSCRIPTION, ":detach", "DetachSubscription", "subscription"),
    _route("POST", _SUBSCRIPTION, ":seek", "Seek", "subscription"),
    _route("POST", _SUBSCRIPTION, ":modifyPushConfig", "ModifyPushConfig", "subscription"),
    _route("PUT", _SNAPSHOT, "", "CreateSnapshot", "name"),
    _route("GET", _SNAPSHOT, "", "GetSnapshot", "snapshot"),
    _route("PATCH", _SNAPSHOT, "", "UpdateSnapshot", "snapshot.name"),
    _route("DELETE", _SNAPSHOT, "", "DeleteSnapshot", "snapshot"),
    _route("GET", _PROJECT, "/snapshots", "ListSnapshots", "project"),
    _route("POST", _PROJECT, "/schemas", "CreateSchema", "parent", "schema"),
    _route("POST", _PROJECT, "/schemas:validate", "ValidateSchema", "parent"),
    _route("POST", _PROJECT, "/schemas:validateMessage", "ValidateMessage", "parent"),
    _route("GET", _PROJECT, "/schemas", "ListSchemas", "parent"),
    _route("GET", _SCHEMA, "", "GetSchema", "name"),
    _route("GET", _SCHEMA, ":listRevisions", "ListSchemaRevisions", "name"),
    _route("POST", _SCHEMA, ":commit", "CommitSchema", "name"),
    _route("POST", _SCHEMA, ":rollback", "RollbackSchema", "name"),
    _route("DELETE", _SCHEMA, ":deleteRevision", "DeleteSchemaRevision", "name"),
    _route("DELETE", _SCHEMA, "", "DeleteSchema", "name"),
    _route("GET", _ANY, ":getIamPolicy", "GetIamPolicy", "resource"),
    _route("POST", _ANY, ":setIamPolicy", "SetIamPolicy", "resource"),
    _route("POST", _ANY, ":testIamPermissions", "TestIamPermissions", "resource"),
)

_REQUESTS = {method: request for methods in METHODS.values() for method, request in methods.items()}
_ANSWERS = {"Publish": PublishResponse, "Pull": PullResponse}


class _Patience:
    """What `Service.pull` asks its context for: over HTTP nobody says how long the client waits."""

    def time_remaining(self) -> float | None:
        return None


class Rest:
    """An ASGI application on a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            return
        try:
            _check_origin(scope)
            answer: Any = await self._answer(scope, receive)
            status = 200
        except Exception as error:
            told = refusal(error)
            status, answer = HTTP_STATUS[told.code], {"error": _error(told)}
        body = json.dumps(answer, ensure_ascii=False).encode()
        headers = [(b"content-type", b"application/json; charset=UTF-8"), (b"x-content-type-options", b"nosniff")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]]) -> Any:
        route, name = _found(scope["method"], unquote(scope["raw_path"].decode("ascii", "replace")))
        request = _request(route, name, scope["query_string"].decode("ascii", "replace"), await _body(receive))
        call = self._service.named(route.method)
        if route.method == "Publish":
            made = await call(request.SerializeToString())
        elif route.method == "Pull":
            made = await call(request, _Patience())
        else:
            made = await call(request)
        if isinstance(made, bytes):
            made = _ANSWERS[route.method].FromString(made)
        return MessageToDict(made)


def _found(verb: str, path: str) -> tuple[_Route, str]:
    for route in ROUTES:
        if route.verb == verb and (found := route.path.fullmatch(path)):
            return route, found[1]
    raise RefusedError("NOT_FOUND", f"There is no {verb} {path[:200]} in the v1 REST API.")


async def _body(receive: Callable[[], Awaitable[Any]]) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise RefusedError("CANCELLED", "The client went away before its request was whole.")
        size += len(event.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise too_large("request_size", size, MAX_BODY_BYTES)
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
    return b"".join(parts)


def _request(route: _Route, name: str, query: str, body: bytes) -> Any:
    """The request message that path, query and body make together.

    Raises:
        RefusedError: INVALID_ARGUMENT.
    """
    message = _REQUESTS[route.method]()
    try:
        given: Any = json.loads(body) if body else {}
        if not isinstance(given, dict):
            raise invalid("Payload isn't valid for request: wanted a JSON object.")
        ParseDict(given if route.body == "*" else {route.body: given}, message)
        for key, value in parse_qsl(query, keep_blank_values=True):
            if not key.startswith("$") and key not in ("alt", "key", "prettyPrint"):  # parameters of Google's front end
                ParseDict(_nested(key, value), message)
    except (ParseError, ValueError, RecursionError) as error:
        raise invalid(f"Payload isn't valid for request: {error}.") from None
    ParseDict(_nested(route.field, name), message)
    return message


def _nested(path: str, value: str) -> dict[str, Any]:
    """``a.b`` and 1 -> ``{"a": {"b": 1}}``."""
    made: Any = value
    for part in reversed(path.split(".")):
        made = {part: made}
    found: dict[str, Any] = made
    return found


def _error(told: RefusedError) -> dict[str, Any]:
    error: dict[str, Any] = {"code": HTTP_STATUS[told.code], "message": told.text, "status": told.code}
    if told.metadata:
        info = {"reason": told.reason, "domain": "pubsub.googleapis.com", "metadata": told.metadata}
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **info}]
    return error


def _check_origin(scope: dict[str, Any]) -> None:
    """Refuse what a web page makes a browser send: another site's Origin, or a foreign name for this address."""
    for header, value in scope["headers"]:
        text = value.decode("latin-1")
        if header == b"origin":
            text = text.partition("://")[2] or text
        elif header != b"host":
            continue
        if not _LOOPBACK.fullmatch(text):
            what = header.decode()
            raise RefusedError("PERMISSION_DENIED", f"The {what} {text[:200]!r} is not this machine: use 127.0.0.1.")
