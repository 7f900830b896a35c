"""Answers as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

from serving.gateway.intake import Fault


def json_reply(status: int, value: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body; numbers as they are."""
    return Response(orjson.dumps(value), status, headers, "application/json")


def error_reply(status: int, sentence: str, faults: Sequence[Fault] = (), retry_s: int = 0) -> Response:
    """``{"error": sentence, "errors": [{index, field, reason, detail}]}``."""
    body: dict[str, Any] = {"error": sentence}
    if faults:
        body["errors"] = [
            {"index": one.index, "field": one.field or None, "reason": one.reason, "detail": one.detail}
            for one in faults
        ]
    return json_reply(status, body, {"Retry-After": str(retry_s)} if retry_s else None)
