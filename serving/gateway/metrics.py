"""What a gateway counts, in Prometheus' text format: requests, how long they took, and what waits."""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from serving.gateway.access import Application, Receive, Scope, Send
from serving.gateway.desk import Desk

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_ROUTES = ("/v1/apps/", "/v1/predictions/")


class Metrics:
    """Counts of one gateway, and its page.

    Args:
        desk: that knows what waits.
    """

    def __init__(self, desk: Desk) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sameriver_gateway_requests", "Requests answered, by status", ["status"], registry=self._registry
        )
        self._seconds = Histogram(
            "sameriver_gateway_request_seconds",
            "From a request for a prediction to its answer",
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        in_flight = Gauge("sameriver_gateway_events_in_flight", "Events of requests that wait", registry=self._registry)
        in_flight.set_function(lambda: desk.in_flight)
        ready = Gauge("sameriver_gateway_ready", "1 if events can be taken", registry=self._registry)
        ready.set_function(lambda: not desk.trouble())

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)

    async def page(self, _: object) -> Response:
        """GET /metrics."""
        return Response(self.text(), media_type="text/plain; version=0.0.4")

    def counting(self, inner: Application) -> Application:
        """``inner``, with the answers of the API counted, those included that it refuses for want of a token."""

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or not scope["path"].startswith(_ROUTES):
                await inner(scope, receive, send)
                return
            began_s = time.monotonic()

            async def counted(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    self._requests.labels(str(message["status"])).inc()
                    self._seconds.observe(time.monotonic() - began_s)
                await send(message)

            await inner(scope, receive, counted)

        return application
