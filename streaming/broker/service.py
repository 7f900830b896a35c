"""The broker's calls over gRPC, and how refusals are told."""

from __future__ import annotations

import logging
import re
from typing import Any

import grpc
from google.iam.v1 import iam_policy_pb2
from google.pubsub_v1 import types
from google.rpc import code_pb2, error_details_pb2, status_pb2

from streaming.broker.calls import Context
from streaming.broker.errors import RefusedError
from streaming.broker.publisher import PublisherCalls
from streaming.broker.schema_calls import PolicyCalls, SchemaCalls
from streaming.broker.storage import StorageError
from streaming.broker.streams import StreamCalls

log = logging.getLogger(__name__)

Handlers = Any  # grpc.GenericRpcHandler

_PUBSUB: dict[str, dict[str, str]] = {
    "Publisher": {
        "CreateTopic": "Topic", "UpdateTopic": "UpdateTopicRequest", "Publish": "PublishRequest",
        "GetTopic": "GetTopicRequest", "ListTopics": "ListTopicsRequest",
        "ListTopicSubscriptions": "ListTopicSubscriptionsRequest",
        "ListTopicSnapshots": "ListTopicSnapshotsRequest", "DeleteTopic": "DeleteTopicRequest",
        "DetachSubscription": "DetachSubscriptionRequest",
    },
    "Subscriber": {
        "CreateSubscription": "Subscription", "GetSubscription": "GetSubscriptionRequest",
        "UpdateSubscription": "UpdateSubscriptionRequest", "ListSubscriptions": "ListSubscriptionsRequest",
        "DeleteSubscription": "DeleteSubscriptionRequest", "ModifyAckDeadline": "ModifyAckDeadlineRequest",
        "Acknowledge": "AcknowledgeRequest", "Pull": "PullRequest", "StreamingPull": "StreamingPullRequest",
        "ModifyPushConfig": "ModifyPushConfigRequest", "GetSnapshot": "GetSnapshotRequest",
        "ListSnapshots": "ListSnapshotsRequest", "CreateSnapshot": "CreateSnapshotRequest",
        "UpdateSnapshot": "UpdateSnapshotRequest", "DeleteSnapshot": "DeleteSnapshotRequest",
        "Seek": "SeekRequest",
    },
    "SchemaService": {
        "CreateSchema": "CreateSchemaRequest", "GetSchema": "GetSchemaRequest", "ListSchemas": "ListSchemasRequest",
        "ListSchemaRevisions": "ListSchemaRevisionsRequest", "CommitSchema": "CommitSchemaRequest",
        "RollbackSchema": "RollbackSchemaRequest", "DeleteSchemaRevision": "DeleteSchemaRevisionRequest",
        "DeleteSchema": "DeleteSchemaRequest", "ValidateSchema": "ValidateSchemaRequest",
        "ValidateMessage": "ValidateMessageRequest",
    },
}  # fmt: skip

METHODS: dict[str, dict[str, Any]] = {
    f"google.pubsub.v1.{service}": {method: getattr(types, request).pb() for method, request in methods.items()}
    for service, methods in _PUBSUB.items()
}
"""Every method of each service, with its request type."""

METHODS["google.iam.v1.IAMPolicy"] = {
    "SetIamPolicy": iam_policy_pb2.SetIamPolicyRequest,
    "GetIamPolicy": iam_policy_pb2.GetIamPolicyRequest,
    "TestIamPermissions": iam_policy_pb2.TestIamPermissionsRequest,
}


class Service(PublisherCalls, StreamCalls, SchemaCalls, PolicyCalls):
    """All calls on one core."""

    def named(self, method: str) -> Any:
        """The implementation of a method."""
        return getattr(self, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).lower())

    def handlers(self) -> list[Handlers]:
        """What a gRPC server needs to serve every method."""
        return [_handlers(self, service) for service in METHODS]


async def _refuse(context: Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.InternalError):
        return  # the client went away while it was written to
    told = refusal(error)
    trailer = (("grpc-status-details-bin", _details(told)),) if told.metadata else ()
    await context.abort(grpc.StatusCode[told.code], told.text, trailer)


def refusal(error: Exception) -> RefusedError:
    """What a client is told; the unexpected is logged whole and told as INTERNAL."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, StorageError):
        return RefusedError("UNAVAILABLE", str(error))
    log.error("a call failed", exc_info=error)
    return RefusedError("INTERNAL", "The broker failed on this call: its log says why.")


def _details(error: RefusedError) -> bytes:
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.text)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="pubsub.googleapis.com", metadata=error.metadata)
    status.details.add().Pack(info)
    data: bytes = status.SerializeToString()
    return data


def _handlers(service: Service, name: str) -> Handlers:
    table = {}
    for method, request_type in METHODS[name].items():
        implementation = service.named(method)
        if method == "StreamingPull":
            table[method] = _streaming(implementation, request_type)
        else:
            table[method] = _unary(method, implementation, request_type)
    return grpc.method_handlers_generic_handler(name, table)


def _unary(name: str, implementation: Any, request_type: Any) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            answer = await (implementation(request, context) if name == "Pull" else implementation(request))
        except Exception as error:
            await _refuse(context, error)
            raise
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    parse = None if name == "Publish" else request_type.FromString
    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=parse)


def _streaming(implementation: Any, request_type: Any) -> Any:
    async def call(_: Any, context: Context) -> None:
        try:
            await implementation(context)
        except Exception as error:
            await _refuse(context, error)

    return grpc.stream_stream_rpc_method_handler(call, request_deserializer=request_type.FromString)
