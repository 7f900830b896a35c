"""Messages as they come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Message(NamedTuple):
    """One message as received.

    Attributes:
        data, attributes, ordering_key: as published.
        message_id: given by the service, unique per topic.
        publish_time_us: microseconds since 1970 (UTC).
        ack_id: names this delivery towards `Subscriber.acknowledge` and `release`.
        delivery_attempt: 0 unless the subscription has a dead-letter policy.
    """

    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    publish_time_us: int
    ack_id: str = ""
    ordering_key: str = ""
    delivery_attempt: int = 0


class OutgoingMessage(NamedTuple):
    """One message to publish: data, or at least one attribute; attribute values up to 1,024 bytes."""

    data: bytes
    attributes: Mapping[str, str] = {}
    ordering_key: str = ""
