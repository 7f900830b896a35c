"""Receiving: one streaming pull, leases that are kept alive, acknowledgements that are sent in batches."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from google.pubsub_v1 import types

from streaming.topics.endpoint import RETRYABLE, Endpoint, TopicError, stub
from streaming.topics.message import Message

log = logging.getLogger(__name__)

ACK_IDS = 1000
"""Ack ids in one request: the service allows 512 KB, its ack ids have some 200 bytes."""

HEARTBEAT_S = 25.0
"""The service may end a stream on which the client is silent for a minute."""

REOPEN_PAUSE_S = 1.0
ACK_PAUSE_S = 0.5
"""Longest pause before acknowledgements are tried again: what is not acknowledged at a crash comes again."""

CLOSE_S = 10.0

_StreamingPullRequest: Any = types.StreamingPullRequest.pb()
_StreamingPullResponse: Any = types.StreamingPullResponse.pb()
_AcknowledgeRequest: Any = types.AcknowledgeRequest.pb()
_ModifyAckDeadlineRequest: Any = types.ModifyAckDeadlineRequest.pb()


class Subscriber:
    """A subscription's messages, held for the caller until acknowledged or released.

    Messages wait in a local buffer until `pull` hands them out. A stream that ends is opened again, with backoff,
    for as long as the code allows hope; `pull` raises what ended one for good.

    Args:
        endpoint: where the subscription is.
        subscription: its name.
        max_messages, max_bytes: most that is held here, buffered or handed out and not acknowledged.
        streams: opened at once, which share what may be held: Google's service gives one stream about 10 MB a second.
        lease_s: how long the service waits for a sign of life of a message; leases are extended until it is
            acknowledged or released. After a crash messages come back this much later. 10 to 600.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        subscription: str,
        *,
        max_messages: int = 10_000,
        max_bytes: int = 256 << 20,
        streams: int = 1,
        lease_s: int = 15,
    ) -> None:
        self.endpoint = endpoint
        self.name = endpoint.subscription(subscription)
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.streams = streams
        self.lease_s = lease_s
        self._client_id = str(uuid.uuid4())
        self._channel = endpoint.channel()
        self._metadata = (("x-goog-request-params", f"subscription={self.name}"),)
        self._stream: Any = self._channel.stream_stream("/google.pubsub.v1.Subscriber/StreamingPull", None, None)
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)  # what a pull waits for
        self._room = threading.Condition(self._lock)  # what the stream waits for
        self._ended = threading.Event()
        self._buffer: deque[Message] = deque()
        self._held: dict[str, float] = {}  # ack id -> when its lease was last started or extended (monotonic)
        self._failure: TopicError | None = None
        self._calls: list[Any] = [None] * streams
        self._closed = False
        self._open = 0
        self._acks = _Acks(self._channel, self.name, self._metadata)
        self._threads = [
            *(
                threading.Thread(target=self._receive, args=(one,), name=f"receive {subscription}", daemon=True)
                for one in range(streams)
            ),
            threading.Thread(target=self._keep_leases, name=f"leases {subscription}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def pull(self, max_messages: int, timeout_s: float) -> list[Message]:
        """At least one message and up to `max_messages` as soon as there are any; [] after `timeout_s`.

        Raises:
            TopicError: the stream ended for good, for example because the subscription does not exist.
        """
        with self._lock:
            if not self._buffer:
                self._arrived.wait_for(lambda: self._buffer or self._failure or self._closed, timeout_s)
            if not self._buffer and self._failure is not None:
                raise self._failure
            if len(self._buffer) <= max_messages:
                taken = list(self._buffer)
                self._buffer.clear()
            else:
                taken = [self._buffer.popleft() for _ in range(max_messages)]
        return taken

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Tell the service that these messages are done with. Returns at once; sent in order, with retries."""
        self._let_go(ack_ids)
        self._acks.acknowledge(ack_ids)

    def release(self, ack_ids: Sequence[str]) -> None:
        """Give these messages back, to be delivered again (nack). Returns at once."""
        self._let_go(ack_ids)
        self._acks.release(ack_ids)

    @property
    def receiving(self) -> bool:
        """Whether all streams of messages are open, as far as is known."""
        return self._open == self.streams

    @property
    def held(self) -> int:
        """Messages received that are neither acknowledged nor released."""
        return len(self._held)

    def close(self) -> None:
        """Stop receiving, send waiting acknowledgements, give back everything that is still held."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._ended.set()
            for call in self._calls:
                if call is not None:
                    call.cancel()
            self._arrived.notify_all()
            self._room.notify_all()
        for thread in self._threads:
            thread.join(CLOSE_S)
        self._acks.release(list(self._held))
        self._acks.close(CLOSE_S)
        self._channel.close()

    def _is_closed(self) -> bool:
        return self._closed

    def _let_go(self, ack_ids: Iterable[str]) -> None:
        with self._lock:
            for ack_id in ack_ids:
                self._held.pop(ack_id, None)
            self._room.notify_all()

    def _receive(self, number: int) -> None:
        pause_s = 0.05
        code: Any
        details: Any
        while True:
            requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
            with self._lock:
                # The service counts what a new stream holds from zero: wait until the old holdings are small.
                self._room.wait_for(lambda: self._closed or len(self._held) < self.max_messages)
                if self._is_closed():
                    return
                call = self._stream(_requests(requests, self._first_request()), metadata=self._metadata)
                self._calls[number] = call
                self._open += 1  # as far as is known: the service says nothing before the first message
            try:
                for data in call:
                    pause_s = 0.05
                    self._acks.try_again()
                    self._take_in(data)
                code, details = call.code(), call.details()
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
            finally:
                requests.put(None)
            with self._lock:
                self._open -= 1
                if self._is_closed():
                    return
                if code != grpc.StatusCode.OK and code not in RETRYABLE:
                    text = f"Receiving from {self.name} failed for {self.endpoint}: {code.name}, {details}"
                    self._failure = TopicError(text, code)
                    self._arrived.notify_all()
                    return
            self._ended.wait(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(REOPEN_PAUSE_S, pause_s * 2)

    def _first_request(self) -> bytes:
        request = _StreamingPullRequest(
            subscription=self.name,
            stream_ack_deadline_seconds=self.lease_s,
            client_id=self._client_id,
            max_outstanding_messages=max(1, self.max_messages // self.streams),
            max_outstanding_bytes=max(1, self.max_bytes // self.streams),
        )
        data: bytes = request.SerializeToString()
        return data

    def _take_in(self, data: bytes) -> None:
        now = time.monotonic()
        messages = [_message(one) for one in _StreamingPullResponse.FromString(data).received_messages]
        with self._lock:
            # A service that ignores flow control is stopped by not reading on.
            self._room.wait_for(lambda: self._closed or len(self._held) < 2 * self.max_messages)
            self._buffer.extend(messages)
            for one in messages:
                self._held[one.ack_id] = now
            self._arrived.notify_all()

    def _keep_leases(self) -> None:
        every_s = self.lease_s / 3
        while not self._ended.wait(every_s):
            with self._lock:
                now = time.monotonic()
                old = [ack_id for ack_id, since in self._held.items() if now - since > every_s / 2]
                for ack_id in old:
                    self._held[ack_id] = now
            self._acks.extend(old, self.lease_s)


def _message(one: Any) -> Message:
    message = one.message
    time_us = message.publish_time.seconds * 1_000_000 + message.publish_time.nanos // 1000
    return Message(
        message.data,
        dict(message.attributes),
        message.message_id,
        time_us,
        one.ack_id,
        message.ordering_key,
        one.delivery_attempt,
    )


def _requests(requests: queue.SimpleQueue[Any], first: bytes) -> Iterator[bytes]:
    """The client's side of a stream: the first request, then heartbeats until something is put."""
    yield first
    while True:
        try:
            requests.get(timeout=HEARTBEAT_S)
        except queue.Empty:
            yield b""
        else:
            return


class _Acks:
    """Sends acknowledgements and deadlines from a thread of its own: what comes meanwhile shares the next call."""

    def __init__(self, channel: grpc.Channel, subscription: str, metadata: Any) -> None:
        self._subscription = subscription
        self._metadata = metadata
        self._acknowledge = stub(channel, "Subscriber/Acknowledge")
        self._modify = stub(channel, "Subscriber/ModifyAckDeadline")
        self._changed = threading.Condition()
        self._done: list[str] = []
        self._deadlines: dict[str, int] = {}
        self._closing_at: float | None = None
        self._pausing = False
        self._thread = threading.Thread(target=self._run, name="acknowledge", daemon=True)
        self._thread.start()

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        with self._changed:
            self._done += ack_ids
            self._changed.notify()

    def release(self, ack_ids: Sequence[str]) -> None:
        self.extend(ack_ids, 0)

    def extend(self, ack_ids: Sequence[str], seconds: int) -> None:
        with self._changed:
            self._deadlines.update(dict.fromkeys(ack_ids, seconds))
            self._changed.notify()

    def try_again(self) -> None:
        """The service is there: a pause after calls that failed is over."""
        if self._pausing:
            with self._changed:
                self._pausing = False
                self._changed.notify()

    def close(self, within_s: float) -> None:
        """Send what is left, trying for `within_s`."""
        with self._changed:
            self._closing_at = time.monotonic() + within_s
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        pause_s = 0.0
        while True:
            with self._changed:
                if pause_s:
                    self._pausing = True
                    self._changed.wait_for(lambda: not self._pausing or self._closing_at is not None, pause_s)
                    self._pausing = False
                self._changed.wait_for(lambda: self._done or self._deadlines or self._closing_at is not None)
                done, self._done = self._done, []
                deadlines, self._deadlines = self._deadlines, {}
                closing_at = self._closing_at
            if not done and not deadlines:
                return
            unsent_done, unsent_deadlines = self._send(done, deadlines)
            failed = bool(unsent_done or unsent_deadlines)
            pause_s = min(ACK_PAUSE_S, max(0.05, pause_s * 2)) if failed else 0.0
            if not failed:
                continue
            if closing_at is not None:
                if time.monotonic() > closing_at:
                    log.warning("%d acknowledgements were not sent: the messages come again", len(unsent_done))
                    return
                time.sleep(0.05)
            with self._changed:
                self._done = unsent_done + self._done
                self._deadlines = {**unsent_deadlines, **self._deadlines}

    def _send(self, done: list[str], deadlines: dict[str, int]) -> tuple[list[str], dict[str, int]]:
        """Send all; what was not taken and is worth another try."""
        calls: list[tuple[Any, list[str], int | None]] = []
        for start in range(0, len(done), ACK_IDS):
            part = done[start : start + ACK_IDS]
            request = _AcknowledgeRequest(subscription=self._subscription, ack_ids=part)
            calls.append((self._start(self._acknowledge, request), part, None))
        by_seconds: dict[int, list[str]] = {}
        for ack_id, seconds in deadlines.items():
            by_seconds.setdefault(seconds, []).append(ack_id)
        for seconds, ack_ids in by_seconds.items():
            for start in range(0, len(ack_ids), ACK_IDS):
                part = ack_ids[start : start + ACK_IDS]
                request = _ModifyAckDeadlineRequest(
                    subscription=self._subscription, ack_ids=part, ack_deadline_seconds=seconds
                )
                calls.append((self._start(self._modify, request), part, seconds))
        unsent_done: list[str] = []
        unsent_deadlines: dict[str, int] = {}
        for call, part, deadline_s in calls:
            try:
                call.result()
            except grpc.RpcError as error:
                if error.code() not in RETRYABLE:
                    log.warning("%d messages come again: %s, %s", len(part), error.code().name, error.details())
                elif deadline_s is None:
                    unsent_done += part
                else:
                    unsent_deadlines.update(dict.fromkeys(part, deadline_s))
        return unsent_done, unsent_deadlines

    def _start(self, method: Any, request: Any) -> Any:
        return method.future(request.SerializeToString(), timeout=10.0, metadata=self._metadata)
