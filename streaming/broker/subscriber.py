"""google.pubsub.v1.Subscriber without its stream: what each call means for the core."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from streaming.broker.calls import Calls, Context, deadline
from streaming.broker.errors import RefusedError, invalid, too_small
from streaming.broker.leases import Consumer
from streaming.broker.resources import Subscribed

PULL_WAIT_S = 20.0
"""How long a unary pull waits for a first message, if the client's own deadline allows."""

MAX_PULLED = 1000
"""Most messages in one response: several consumers share a backlog."""


class SubscriberCalls(Calls):
    """The calls of Subscriber, without StreamingPull."""

    async def create_subscription(self, subscription: Any) -> Any:
        created = self.core.create_subscription(subscription)
        await self.commits.durable()
        return created

    async def get_subscription(self, request: Any) -> Any:
        return self.core.shown(self.core.subscription(request.subscription))

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
        await self.acknowledged(self.core.subscription(request.subscription), _some(request.ack_ids))
        return Empty()

    async def acknowledged(self, subscribed: Subscribed, ack_ids: Any) -> None:
        """Acknowledge; with exactly-once delivery, return when that is durable."""
        subscribed.active_us = self.core.clock.wall_us()
        try:
            subscribed.queue.acknowledge(ack_ids)
        finally:
            if subscribed.queue.policy.exactly_once:
                await self.commits.durable()

    async def modify_ack_deadline(self, request: Any) -> Any:
        subscribed = self.core.subscription(request.subscription)
        seconds = deadline(request.ack_deadline_seconds)
        self.modify(subscribed, _some(request.ack_ids), [seconds] * len(request.ack_ids))
        return Empty()

    async def pull(self, request: Any, context: Context) -> bytes:
        subscribed = self.core.pullable(request.subscription)
        if request.max_messages < 1:
            raise too_small("max_messages", request.max_messages, 1)
        desk = self.desk(subscribed)
        consumer = Consumer(subscribed.queue.policy.ack_deadline_us)
        limit = min(request.max_messages, MAX_PULLED)
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
                self.check_open(desk)
        finally:
            desk.leave(waiter)
        return taken

    # Snapshots and seek.

    async def create_snapshot(self, request: Any) -> Any:
        made = self.snapshots.create(request.name, request.subscription, request.labels)
        await self.commits.durable()
        return made

    async def get_snapshot(self, request: Any) -> Any:
        return self.snapshots.get(request.snapshot).config

    async def list_snapshots(self, request: Any) -> Any:
        found, token = self.snapshots.of_project(request.project, request.page_size, request.page_token)
        return types.ListSnapshotsResponse.pb()(snapshots=found, next_page_token=token)

    async def update_snapshot(self, request: Any) -> Any:
        changed = self.snapshots.update(request.snapshot, request.update_mask.paths)
        await self.commits.durable()
        return changed

    async def delete_snapshot(self, request: Any) -> Any:
        self.snapshots.delete(request.snapshot)
        await self.commits.durable()
        return Empty()

    async def seek(self, request: Any) -> Any:
        target = request.WhichOneof("target")
        if target == "time":
            self.snapshots.seek_to_time(request.subscription, request.time.ToMicroseconds())
        elif target == "snapshot":
            self.snapshots.seek_to_snapshot(request.subscription, request.snapshot)
        else:
            raise invalid("The request names neither a time nor a snapshot to seek to.")
        await self.commits.durable()
        return types.SeekResponse.pb()()


def _some(ack_ids: Any) -> Any:
    if not ack_ids:
        raise invalid("No ack ids specified.")
    return ack_ids
