"""Publishing: batches out, message ids back once they are stored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc
from google.pubsub_v1 import types

from streaming.topics.endpoint import RETRYABLE, Endpoint, TopicError, retrying, stub
from streaming.topics.message import OutgoingMessage

REQUEST_MESSAGES = 1000
REQUEST_BYTES = 9_000_000
"""Under the service's limits of 1,000 messages and 10 MB a request."""

REQUEST_DEADLINE_S = 30.0

_PublishRequest: Any = types.PublishRequest.pb()
_PublishResponse: Any = types.PublishResponse.pb()
_PubsubMessage: Any = types.PubsubMessage.pb()


class _Sent(NamedTuple):
    indices: list[int]
    data: bytes
    key: str
    call: Any


class Publisher:
    """Publishes batches and returns when they are stored. One thread may use it, or several.

    Args:
        endpoint: where the topics are.
        deadline_s: how long an unreachable service is tried before `publish` raises.
        in_flight: requests under way at once, for batches larger than one request.
    """

    def __init__(self, endpoint: Endpoint, *, deadline_s: float = 600.0, in_flight: int = 4) -> None:
        self.endpoint = endpoint
        self.deadline_s = deadline_s
        self.in_flight = in_flight
        self._channel = endpoint.channel()
        self._call = stub(self._channel, "Publisher/Publish")

    def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> list[str]:
        """Store `messages` on `topic`; their message ids in the same order.

        Messages of one ordering key are stored in the order given. A retry after an unclear failure may store
        messages twice, under other ids: receivers drop duplicates by their own identity.

        Raises:
            TopicError: refused for good (no such topic, message too large), or not stored within `deadline_s`.
        """
        name = self.endpoint.topic(topic)
        metadata = (("x-goog-request-params", f"topic={name}"),)
        ids: list[str] = [""] * len(messages)
        waiting: deque[_Sent] = deque()
        for indices, data in _requests(name, messages):
            if len(indices) == len(messages):  # one request is quicker without a future
                self._settle(_Sent(indices, data, "", None), name, metadata, ids)
                break
            key = messages[indices[0]].ordering_key
            while len(waiting) >= self.in_flight or (key and any(sent.key == key for sent in waiting)):
                self._settle(waiting.popleft(), name, metadata, ids)
            call = self._call.future(data, timeout=REQUEST_DEADLINE_S, metadata=metadata)
            waiting.append(_Sent(indices, data, key, call))
        while waiting:
            self._settle(waiting.popleft(), name, metadata, ids)
        return ids

    def _settle(self, sent: _Sent, topic: str, metadata: Any, ids: list[str]) -> None:
        """Wait for an answer, trying again as long as it makes sense, and note the ids."""

        def again(left_s: float) -> Any:
            return self._call(sent.data, timeout=left_s, metadata=metadata)

        answer = None
        if sent.call is not None:
            try:
                answer = sent.call.result()
            except grpc.RpcError as error:
                if error.code() not in RETRYABLE:
                    text = f"Publish to {topic} failed for {self.endpoint}: {error.code().name}, {error.details()}"
                    raise TopicError(text, error.code()) from error
        if answer is None:
            answer = retrying(again, self.deadline_s, self.endpoint, f"Publish to {topic}")
        for index, message_id in zip(sent.indices, _PublishResponse.FromString(answer).message_ids, strict=True):
            ids[index] = message_id

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()


def _requests(topic: str, messages: Sequence[OutgoingMessage]) -> Iterator[tuple[list[int], bytes]]:
    """Serialised requests and which messages each carries: one ordering key, limited number and size."""
    by_key: dict[str, list[int]] = {}
    for index, one in enumerate(messages):
        by_key.setdefault(one.ordering_key, []).append(index)
    for indices in by_key.values():
        taken: list[int] = []
        request, size = _PublishRequest(topic=topic), 0
        for index in indices:
            one = messages[index]
            made = _PubsubMessage(data=one.data, attributes=one.attributes, ordering_key=one.ordering_key)
            made_size = made.ByteSize() + 8
            if taken and (len(taken) == REQUEST_MESSAGES or size + made_size > REQUEST_BYTES):
                yield taken, request.SerializeToString()
                request, taken, size = _PublishRequest(topic=topic), [], 0
            request.messages.append(made)
            taken.append(index)
            size += made_size
        yield taken, request.SerializeToString()
