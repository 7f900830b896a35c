"""StreamingPull: deliveries out, acknowledgements and new deadlines in, on one stream."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.pubsub_v1 import types

from streaming.broker.calls import Context, deadline
from streaming.broker.errors import RefusedError, invalid, too_large, too_small
from streaming.broker.leases import Consumer
from streaming.broker.resources import Subscribed
from streaming.broker.subscriber import MAX_PULLED, SubscriberCalls
from streaming.broker.subscription import LeaseOverError

END_OF_STREAM: Any = grpc.aio.EOF  # type: ignore[attr-defined]

_Response: Any = types.StreamingPullResponse.pb()


class _Stream:
    """One open stream.

    Attributes:
        waiter: set when there may be something to send.
        answers: confirmations of acknowledgements and deadlines that were not sent yet.
        alive: the client asked for a sign of life: clients of protocol version 1 reconnect without one.
    """

    def __init__(self, subscribed: Subscribed, consumer: Consumer) -> None:
        self.subscribed = subscribed
        self.alive = False
        self.consumer = consumer
        self.waiter = asyncio.Event()
        self.answers: list[bytes] = []

    def answer(self, **confirmation: Any) -> None:
        """Send a confirmation with the next response."""
        self.answers.append(_Response(**confirmation).SerializeToString())
        self.waiter.set()


class StreamCalls(SubscriberCalls):
    """The calls of Subscriber."""

    async def streaming_pull(self, context: Context) -> None:
        """Deliver to one stream until it or its subscription ends; always ends with a refusal or cancelled."""
        first = await context.read()
        if first is END_OF_STREAM:
            raise invalid("The stream ended before it named a subscription: send one in the first request.")
        subscribed = self.core.pullable(first.subscription)
        lease_us = _stream_deadline(first) * 1_000_000
        consumer = Consumer(lease_us, first.max_outstanding_messages, first.max_outstanding_bytes)
        stream, desk = _Stream(subscribed, consumer), self.desk(subscribed)
        await self._obey(stream, first)
        reading = asyncio.create_task(self._read(context, stream, first.protocol_version >= 1))
        reading.add_done_callback(lambda _: stream.waiter.set())
        desk.join(stream.waiter)
        try:
            while True:
                self.check_open(desk)
                if reading.done():
                    reading.result()
                    raise RefusedError("UNAVAILABLE", "The client ended its side of the stream: open a new one.")
                answers, alive = b"".join(stream.answers), stream.alive
                stream.answers, stream.alive = [], False
                taken = desk.take(consumer, MAX_PULLED, stream.waiter)
                if taken or answers or alive:
                    await context.write(taken + answers + _properties(subscribed))
                    continue
                await stream.waiter.wait()
                stream.waiter.clear()
        finally:
            desk.leave(stream.waiter)
            reading.cancel()

    async def _read(self, context: Context, stream: _Stream, alive: bool) -> None:
        while (request := await context.read()) is not END_OF_STREAM:
            if request.subscription and request.subscription != stream.subscribed.config.name:
                raise invalid("A stream cannot change its subscription: open another stream.")
            if request.max_outstanding_messages or request.max_outstanding_bytes:
                raise invalid("max_outstanding_messages and max_outstanding_bytes may only be in the first request.")
            if request.protocol_version:
                raise invalid("protocol_version may only be in the first request.")
            if alive and not request.ack_ids and not request.modify_deadline_ack_ids:
                stream.alive = True
                stream.waiter.set()
            if request.stream_ack_deadline_seconds:
                stream.consumer.lease_us = _stream_deadline(request) * 1_000_000
            await self._obey(stream, request)

    async def _obey(self, stream: _Stream, request: Any) -> None:
        """Acknowledge and move deadlines; with exactly-once delivery, say what became of each ack id."""
        if len(request.modify_deadline_seconds) != len(request.modify_deadline_ack_ids):
            raise invalid(
                "modify_deadline_seconds and modify_deadline_ack_ids differ in length: send one deadline per ack id."
            )
        exactly_once = stream.subscribed.queue.policy.exactly_once
        if request.ack_ids:
            failed: dict[str, str] = {}
            try:
                await self.acknowledged(stream.subscribed, request.ack_ids)
            except LeaseOverError as error:
                failed = error.metadata
            if exactly_once:
                stream.answer(acknowledge_confirmation=_confirmation(request.ack_ids, failed))
        if request.modify_deadline_ack_ids:
            failed = {}
            try:
                seconds = [deadline(one) for one in request.modify_deadline_seconds]
                self.modify(stream.subscribed, request.modify_deadline_ack_ids, seconds)
            except LeaseOverError as error:
                failed = error.metadata
            if exactly_once:
                confirmed = _confirmation(request.modify_deadline_ack_ids, failed)
                stream.answer(modify_ack_deadline_confirmation=confirmed)


def _confirmation(ack_ids: Any, failed: dict[str, str]) -> dict[str, list[str]]:
    return {
        "ack_ids": [one for one in ack_ids if one not in failed],
        "invalid_ack_ids": [one for one in ack_ids if one in failed],
    }


def _stream_deadline(request: Any) -> int:
    seconds: int = request.stream_ack_deadline_seconds
    if seconds < 10:
        raise too_small("stream_ack_deadline_seconds", seconds, 10)
    if seconds > 600:
        raise too_large("stream_ack_deadline_seconds", seconds, 600)
    return seconds


def _properties(subscribed: Subscribed) -> bytes:
    """StreamingPullResponse.subscription_properties; clients read it from every response, as it may change."""
    policy = subscribed.queue.policy
    flags = (b"\x08\x01" if policy.exactly_once else b"") + (b"\x10\x01" if policy.ordered else b"")
    return b"\x22%c%b" % (len(flags), flags) if flags else b""
