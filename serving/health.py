"""grpc.health.v1, for load balancers: SERVING while every model has a version that answers.

Source: github.com/grpc/grpc, src/proto/grpc/health/v1/health.proto. Asked without a name it speaks for the whole
server; by name it knows the services that the real server registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from serving import wire

SERVICE = "grpc.health.v1.Health"
KNOWN = frozenset({"", "ModelService", "PredictionService", wire.MODEL_SERVICE, wire.PREDICTION_SERVICE})
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)


def handler(is_ready: Callable[[], bool]) -> grpc.GenericRpcHandler[Any, Any]:
    """The service; `is_ready` is asked for each call."""

    def check(request: Any, context: grpc.ServicerContext) -> Any:
        if request.service not in KNOWN:
            return context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return wire.HealthCheckResponse(status=SERVING if is_ready() else NOT_SERVING)

    method = grpc.unary_unary_rpc_method_handler(
        check, wire.HealthCheckRequest.FromString, wire.HealthCheckResponse.SerializeToString
    )
    return grpc.method_handlers_generic_handler(SERVICE, {"Check": method})
