"""The protobuf messages of google.pubsub.v1, and the bytes written by hand where every microsecond counts.

The classes are those that the installed Pub/Sub client registers, so broker and clients never disagree on fields.
A published message is serialised once: its id and publish time are appended to the publisher's bytes (protobuf
takes the last value of a field), and every delivery of it copies those bytes behind an ack id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.pubsub_v1 import types

Topic: Any = types.Topic.pb()
Subscription: Any = types.Subscription.pb()
Snapshot: Any = types.Snapshot.pb()
Schema: Any = types.Schema.pb()
SchemaRevisions: Any = types.ListSchemaRevisionsResponse.pb()
PubsubMessage: Any = types.PubsubMessage.pb()
PublishRequest: Any = types.PublishRequest.pb()
PublishResponse: Any = types.PublishResponse.pb()
AcknowledgeRequest: Any = types.AcknowledgeRequest.pb()
ModifyAckDeadlineRequest: Any = types.ModifyAckDeadlineRequest.pb()
PullRequest: Any = types.PullRequest.pb()
PullResponse: Any = types.PullResponse.pb()
StreamingPullRequest: Any = types.StreamingPullRequest.pb()
StreamingPullResponse: Any = types.StreamingPullResponse.pb()


def varint(value: int) -> bytes:
    """A non-negative integer in protobuf's base-128 encoding.

    >>> varint(1), varint(300)
    (b'\\x01', b'\\xac\\x02')
    """
    if value < 128:
        return _ONE_BYTE[value]
    if value < 16384:
        return _TWO_BYTES[value]
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_ONE_BYTE = [bytes((n,)) for n in range(128)]
_TWO_BYTES = [bytes((n & 127 | 128, n >> 7)) for n in range(16384)]


def publish_time_field(publish_time_us: int) -> bytes:
    """PubsubMessage.publish_time (field 4); both parts are written, so that they replace what a publisher set."""
    seconds, micros = divmod(publish_time_us, 1_000_000)
    stamp = b"\x08" + varint(seconds) + b"\x10" + varint(micros * 1000)
    return b"\x22" + varint(len(stamp)) + stamp


def framed(message: bytes, message_id: int, time_field: bytes) -> bytes:
    """ReceivedMessage.message (field 2): a serialised PubsubMessage with its id and publish time."""
    stamped = b"%b\x1a%c%d%b" % (message, len(str(message_id)), message_id, time_field)
    return b"\x12" + varint(len(stamped)) + stamped


def unframed(field: bytes) -> bytes:
    """The serialised PubsubMessage inside what `framed` returned."""
    start = 1
    while field[start] & 128:
        start += 1
    return field[start + 1 :]


def split_fields(joined: bytes) -> list[bytes]:
    """The parts of what was joined from results of `framed`.

    >>> split_fields(b"\\x12\\x01a\\x12\\x02bc")
    [b'\\x12\\x01a', b'\\x12\\x02bc']
    """
    fields = []
    start, end = 0, len(joined)
    while start < end:
        at, size, shift = start + 1, 0, 0
        while True:
            byte = joined[at]
            at += 1
            size |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
        fields.append(joined[start : at + size])
        start = at + size
    return fields


def received(ack_id: bytes, field: bytes, attempt: int = 0) -> bytes:
    """One element of ``received_messages`` (field 1 of PullResponse and of StreamingPullResponse).

    Args:
        ack_id: at most 127 bytes of ASCII.
        field: what `framed` returned.
        attempt: delivery attempt; 0 leaves it out, as without a dead-letter policy.
    """
    tail = b"\x18" + varint(attempt) if attempt else b""
    size = 2 + len(ack_id) + len(field) + len(tail)
    return b"\x0a%b\x0a%c%b%b%b" % (varint(size), len(ack_id), ack_id, field, tail)


def publish_response(message_ids: Iterable[int]) -> bytes:
    """PublishResponse with these ids."""
    return b"".join([b"\x0a%c%d" % (len(str(one)), one) for one in message_ids])
