"""grpc.health.v1, for load balancers: SERVING while every model has a version that answers.

Source: github.com/grpc/grpc, src/proto/grpc/health/v1/health.proto. Asked without a name it speaks for the whole
server; by name it knows the services that the real server registers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from serving import wire

SERVICE = "grpc.health.v1.Health"
KNOWN = frozenset({"", "ModelService", "PredictionService", wire.MODEL_SERVICE, wire.PREDICTION_SERVICE})
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)
WATCHERS = 16
"""At once: each occupies a thread."""
_LOOK_EVERY_S = 0.5


def handler(is_ready: Callable[[], bool], stopping: threading.Event) -> grpc.GenericRpcHandler[Any, Any]:
    """The service.

    Args:
        is_ready: asked for each call, and twice a second for each that watches.
        stopping: ends those that watch.
    """
    free = threading.BoundedSemaphore(WATCHERS)

    def status(service: str) -> int:
        if service not in KNOWN:
            return SERVICE_UNKNOWN
        return SERVING if is_ready() and not stopping.is_set() else NOT_SERVING

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        found = status(request.service)
        if found == SERVICE_UNKNOWN:
            return context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return wire.HealthCheckResponse(status=found)

    def watch(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if not free.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{WATCHERS} watch already")
        try:
            told = None
            ended = threading.Event()
            context.add_callback(ended.set)
            while True:
                found = status(request.service)
                if found != told:
                    told = found
                    yield wire.HealthCheckResponse(status=found)
                if stopping.is_set() or ended.wait(_LOOK_EVERY_S):
                    return
        finally:
            free.release()

    codec = (wire.HealthCheckRequest.FromString, wire.HealthCheckResponse.SerializeToString)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check, *codec),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, *codec),
        },
    )
