"""google.pubsub.v1.Publisher: what each call means for the core."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.pubsub_v1 import types

from streaming.broker import messages
from streaming.broker.calls import Calls
from streaming.broker.errors import invalid


class PublisherCalls(Calls):
    """The calls of Publisher."""

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
        names, token = self.snapshots.of_topic(request.topic, request.page_size, request.page_token)
        return types.ListTopicSnapshotsResponse.pb()(snapshots=names, next_page_token=token)

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
