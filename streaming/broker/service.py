"""google.pubsub.v1 over gRPC: what each call means for the core, and how its refusals are told."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.pubsub_v1 import types
from google.rpc import code_pb2, error_details_pb2, status_pb2

from streaming.broker import messages
from streaming.broker.commits import Commits
from streaming.broker.core import Core
from streaming.broker.desk import Desk
from streaming.broker.errors import RefusedError, invalid, too_large, too_small
from streaming.broker.leases import Consumer
from streaming.broker.resources import Subscribed
from streaming.broker.storage import StorageError
from streaming.broker.subscription import LeaseOverError

log = logging.getLogger(__name__)

PULL_WAIT_S = 20.0
"""How long a unary pull waits for a first message, if the client's own deadline allows."""

MAX_STREAM_MESSAGES = 1000
"""Most messages in one StreamingPullResponse: several streams share a backlog."""

Context = Any  # grpc.aio.ServicerContext; the type stubs know only the synchronous one
Handlers = Any  # grpc.GenericRpcHandler

_METHODS = {
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
}  # fmt: skip
"""Every method of each service, implemented or not, with its request type."""

END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class Service:
    """The calls of Publisher and Subscriber on one core."""

    def __init__(self, core: Core, commits: Commits) -> None:
        self.core = core
        self.commits = commits
        self._desks: dict[int, Desk] = {}
        self._stopping = False
        core.gone = self._gone

    # Publisher.

    async def create_topic(self, topic: Any) -> Any:
        created = self.core.create_topic(topic)
        await self.commits.durable()
        return created

    async def get_topic(self, request: Any) -> Any:
        return self.core.topic(request.topic).config

    async def update_topic(self, request: Any) -> Any:
        changed = self.core.update_topic(request.topic, request.update_mask.paths)
        await self.commits.durable()
        return changed

    async def list_topics(self, request: Any) -> Any:
        topics, token = self.core.list_topics(request.project, request.page_size, request.page_token)
        return types.ListTopicsResponse.pb()(topics=topics, next_page_token=token)

    async def list_topic_subscriptions(self, request: Any) -> Any:
        names, token = self.core.list_topic_subscriptions(request.topic, request.page_size, request.page_token)
        return types.ListTopicSubscriptionsResponse.pb()(subscriptions=names, next_page_token=token)

    async def list_topic_snapshots(self, request: Any) -> Any:
        self.core.topic(request.topic)
        return types.ListTopicSnapshotsResponse.pb()()

    async def delete_topic(self, request: Any) -> Any:
        self.core.delete_topic(request.topic)
        await self.commits.durable()
        return Empty()

    async def detach_subscription(self, request: Any) -> Any:
        self.core.detach_subscription(request.subscription)
        await self.commits.durable()
        return types.DetachSubscriptionResponse.pb()()

    async def publish(self, data: bytes) -> bytes:
        try:
            request = messages.PublishRequest.FromString(data)
        except DecodeError:
            raise invalid("The request is not a PublishRequest: check the client's protocol version.") from None
        accepted = self.core.publish(request.topic, request.messages, len(data))
        await self.commits.publish(accepted)
        return messages.publish_response(accepted.batch.ids)

    # Subscriber.

    async def create_subscription(self, subscription: Any) -> Any:
        created = self.core.create_subscription(subscription)
        await self.commits.durable()
        return created

    async def get_subscription(self, request: Any) -> Any:
        return self.core.subscription(request.subscription).config

    async def update_subscription(self, request: Any) -> Any:
        changed = self.core.update_subscription(request.subscription, request.update_mask.paths)
        await self.commits.durable()
        return changed

    async def list_subscriptions(self, request: Any) -> Any:
        configs, token = self.core.list_subscriptions(request.project, request.page_size, request.page_token)
        return types.ListSubscriptionsResponse.pb()(subscriptions=configs, next_page_token=token)

    async def delete_subscription(self, request: Any) -> Any:
        self.core.delete_subscription(request.subscription)
        await self.commits.durable()
        return Empty()

    async def modify_push_config(self, request: Any) -> Any:
        self.core.subscription(request.subscription)
        if request.push_config.push_endpoint:
            raise RefusedError("UNIMPLEMENTED", "The embedded broker does not support push delivery: pull instead.")
        return Empty()

    async def acknowledge(self, request: Any) -> Any:
        self.core.subscription(request.subscription).queue.acknowledge(request.ack_ids)
        return Empty()

    async def modify_ack_deadline(self, request: Any) -> Any:
        subscribed = self.core.subscription(request.subscription)
        seconds = _deadline(request.ack_deadline_seconds)
        self._modify(subscribed, request.ack_ids, [seconds] * len(request.ack_ids))
        return Empty()

    async def pull(self, request: Any, context: Context) -> bytes:
        subscribed = self.core.pullable(request.subscription)
        if request.max_messages < 1:
            raise too_small("max_messages", request.max_messages, 1)
        desk = self._desk(subscribed)
        consumer = Consumer(subscribed.queue.policy.ack_deadline_us)
        limit = min(request.max_messages, MAX_STREAM_MESSAGES)
        left_s = context.time_remaining()
        wait_s = PULL_WAIT_S if left_s is None else min(PULL_WAIT_S, left_s * 0.9)
        until = asyncio.get_running_loop().time() + wait_s
        waiter = asyncio.Event()
        desk.join(waiter)
        try:
            while not (taken := desk.take(consumer, limit, waiter)):
                wait_s = until - asyncio.get_running_loop().time()
                if request.return_immediately or wait_s <= 0:
                    break
                try:
                    await asyncio.wait_for(waiter.wait(), wait_s)
                except TimeoutError:
                    break
                waiter.clear()
                self._check_open(desk)
        finally:
            desk.leave(waiter)
        return taken

    async def streaming_pull(self, context: Context) -> None:
        """Deliver to one stream until it or its subscription ends; always ends with a refusal or cancelled."""
        first = await context.read()
        if first is END_OF_STREAM:
            raise invalid("The stream ended before it named a subscription: send one in the first request.")
        subscribed = self.core.pullable(first.subscription)
        lease_us = _stream_deadline(first) * 1_000_000
        consumer = Consumer(lease_us, first.max_outstanding_messages, first.max_outstanding_bytes)
        desk, waiter = self._desk(subscribed), asyncio.Event()
        self._stream_request(subscribed, first)
        reading = asyncio.create_task(self._read_stream(context, subscribed, consumer))
        reading.add_done_callback(lambda _: waiter.set())
        desk.join(waiter)
        properties = _properties(subscribed)
        try:
            while True:
                self._check_open(desk)
                if reading.done():
                    reading.result()
                    raise RefusedError("UNAVAILABLE", "The client ended its side of the stream: open a new one.")
                taken = desk.take(consumer, MAX_STREAM_MESSAGES, waiter)
                if taken:
                    await context.write(taken + properties)
                    continue
                await waiter.wait()
                waiter.clear()
        finally:
            desk.leave(waiter)
            reading.cancel()

    async def _read_stream(self, context: Context, subscribed: Subscribed, consumer: Consumer) -> None:
        while (request := await context.read()) is not END_OF_STREAM:
            if request.subscription and request.subscription != subscribed.config.name:
                raise invalid("A stream cannot change its subscription: open another stream.")
            if request.max_outstanding_messages or request.max_outstanding_bytes:
                raise invalid("max_outstanding_messages and max_outstanding_bytes may only be in the first request.")
            if request.stream_ack_deadline_seconds:
                consumer.lease_us = _stream_deadline(request) * 1_000_000
            self._stream_request(subscribed, request)

    def _stream_request(self, subscribed: Subscribed, request: Any) -> None:
        if len(request.modify_deadline_seconds) != len(request.modify_deadline_ack_ids):
            raise invalid(
                "modify_deadline_seconds and modify_deadline_ack_ids differ in length: send one deadline per ack id."
            )
        try:
            if request.ack_ids:
                subscribed.queue.acknowledge(request.ack_ids)
            if request.modify_deadline_ack_ids:
                seconds = [_deadline(one) for one in request.modify_deadline_seconds]
                self._modify(subscribed, request.modify_deadline_ack_ids, seconds)
        except LeaseOverError:
            return  # a stream has no answer for one ack id; the message is delivered again

    # Steps inside.

    def _modify(self, subscribed: Subscribed, ack_ids: Any, seconds: list[int]) -> None:
        try:
            subscribed.queue.modify(ack_ids, seconds, self.core.clock.monotonic_us())
        finally:
            self._desk(subscribed).arm()

    def _desk(self, subscribed: Subscribed) -> Desk:
        desk = self._desks.get(subscribed.uid)
        if desk is None:
            desk = self._desks[subscribed.uid] = Desk(subscribed, self.core.clock)
        return desk

    def _gone(self, subscribed: Subscribed) -> None:
        desk = self._desks.pop(subscribed.uid, None)
        if desk is not None:
            desk.close()

    def _check_open(self, desk: Desk) -> None:
        if self._stopping:
            raise RefusedError("UNAVAILABLE", "The broker is shutting down: connect again.")
        if desk.closed:
            self.core.pullable(desk.subscribed.config.name)  # says whether deleted or detached
            raise RefusedError("UNAVAILABLE", "The subscription was made anew: connect again.")

    def stop(self) -> None:
        """End every stream and waiting pull with UNAVAILABLE."""
        self._stopping = True
        for desk in self._desks.values():
            desk.close()

    def handlers(self) -> list[Handlers]:
        """What a gRPC server needs to serve every method of the two services."""
        return [_handlers(self, service) for service in ("Publisher", "Subscriber")]


def _deadline(seconds: int) -> int:
    if seconds < 0:
        raise too_small("ack_deadline_seconds", seconds, 0)
    if seconds > 600:
        raise too_large("ack_deadline_seconds", seconds, 600)
    return seconds


def _stream_deadline(request: Any) -> int:
    seconds: int = request.stream_ack_deadline_seconds
    if seconds < 10:
        raise too_small("stream_ack_deadline_seconds", seconds, 10)
    if seconds > 600:
        raise too_large("stream_ack_deadline_seconds", seconds, 600)
    return seconds


def _properties(subscribed: Subscribed) -> bytes:
    """StreamingPullResponse.subscription_properties; clients read it from every response."""
    policy = subscribed.queue.policy
    flags = (b"\x08\x01" if policy.exactly_once else b"") + (b"\x10\x01" if policy.ordered else b"")
    return b"\x22%c%b" % (len(flags), flags) if flags else b""


async def _refuse(context: Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.InternalError):
        return  # the client went away while it was written to
    if isinstance(error, RefusedError):
        trailer = (("grpc-status-details-bin", _details(error)),) if error.metadata else ()
        await context.abort(grpc.StatusCode[error.code], error.text, trailer)
    if isinstance(error, StorageError):
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    log.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "The broker failed on this call: its log says why.")


def _details(error: RefusedError) -> bytes:
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.text)
    info = error_details_pb2.ErrorInfo(reason="", domain="pubsub.googleapis.com", metadata=error.metadata)
    status.details.add().Pack(info)
    data: bytes = status.SerializeToString()
    return data


def _handlers(service: Service, name: str) -> Handlers:
    table = {}
    for method, request in _METHODS[name].items():
        implementation = getattr(service, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).lower(), None)
        request_type = getattr(types, request).pb()
        if method == "StreamingPull":
            table[method] = _streaming(implementation, request_type)
        else:
            table[method] = _unary(method, implementation, request_type)
    return grpc.method_handlers_generic_handler(f"google.pubsub.v1.{name}", table)


def _unary(name: str, implementation: Any, request_type: Any) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            if implementation is None:
                text = f"The embedded broker does not support {name}: use Google's Pub/Sub."
                raise RefusedError("UNIMPLEMENTED", text)
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
