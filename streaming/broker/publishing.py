"""What may be published, and how small batches become larger ones."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from streaming.broker.backlog import Batch
from streaming.broker.errors import invalid, too_large, too_small
from streaming.broker.resources import Accepted

MAX_REQUEST_BYTES = 10_000_000
MAX_MESSAGES = 1000
MAX_ATTRIBUTES = 100
MERGED_BYTES = 1 << 20
MAX_ATTRIBUTE_KEY_BYTES = 256
MAX_ATTRIBUTE_VALUE_BYTES = 1024
MAX_ORDERING_KEY_BYTES = 1024


def check_request(messages: Sequence[Any], request_bytes: int) -> None:
    """The limits of a request as a whole.

    Raises:
        RefusedError: INVALID_ARGUMENT.
    """
    if request_bytes > MAX_REQUEST_BYTES:
        raise too_large("request_size", request_bytes, MAX_REQUEST_BYTES)
    if not messages:
        raise too_small("message_count", 0, 1)
    if len(messages) > MAX_MESSAGES:
        raise too_large("message_count", len(messages), MAX_MESSAGES)


def check_messages(messages: Sequence[Any]) -> tuple[list[bytes], str]:
    """The messages of one request, serialised, and their ordering key.

    Raises:
        RefusedError: INVALID_ARGUMENT if any of them breaks a limit.
    """
    key = messages[0].ordering_key
    if len(key) > MAX_ORDERING_KEY_BYTES // 4 and len(key.encode()) > MAX_ORDERING_KEY_BYTES:
        raise too_large("ordering_key", len(key.encode()), MAX_ORDERING_KEY_BYTES)
    serialised = []
    for one in messages:
        if one.ordering_key != key:
            raise invalid("In a publish request, all messages must have the same ordering key.")
        if one.attributes:
            _check_attributes(one.attributes)
        elif not one.data:
            raise invalid(
                "One or more messages in the publish request is empty. Each message must contain either "
                "non-empty data, or at least one attribute."
            )
        serialised.append(one.SerializeToString())
    return serialised, key


def merged(accepted: Sequence[Accepted]) -> list[Accepted]:
    """The same messages in fewer batches: those without a key, by topic, up to the size of a request.

    A backlog of single messages then costs memory and storage per commit, not per message.
    """
    groups: list[_Group] = []
    growing: dict[int, _Group] = {}
    for one in accepted:
        group = growing.get(one.topic.uid)
        if group is None or one.batch.key or not group.has_room(one):
            group = _Group()
            groups.append(group)
            if not one.batch.key:
                growing[one.topic.uid] = group
        group.add(one)
    return [group.together() for group in groups]


class _Group:
    """Accepted messages of one topic that become one batch."""

    def __init__(self) -> None:
        self.members: list[Accepted] = []
        self.messages = 0
        self.size_bytes = 0

    def has_room(self, one: Accepted) -> bool:
        return (
            self.messages + len(one.batch.ids) <= MAX_MESSAGES
            and self.size_bytes + one.batch.size_bytes <= MERGED_BYTES
        )

    def add(self, one: Accepted) -> None:
        self.members.append(one)
        self.messages += len(one.batch.ids)
        self.size_bytes += one.batch.size_bytes

    def together(self) -> Accepted:
        if len(self.members) == 1:
            return self.members[0]
        ids = array("q", [message_id for one in self.members for message_id in one.batch.ids])  # 8 bytes, not 36
        fields = [field for one in self.members for field in one.batch.fields()]
        last = self.members[-1]
        return Accepted(last.topic, Batch(ids, fields, "", last.batch.publish_time_us))


def _check_attributes(attributes: Any) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise too_large("attributes_count", len(attributes), MAX_ATTRIBUTES)
    for key, value in attributes.items():
        if not key:
            raise invalid("A message has an attribute with an empty key: name every attribute.")
        if len(key) > 64 and len(key.encode()) > MAX_ATTRIBUTE_KEY_BYTES:
            raise too_large("attribute key size", len(key.encode()), MAX_ATTRIBUTE_KEY_BYTES)
        if len(value) > 256 and len(value.encode()) > MAX_ATTRIBUTE_VALUE_BYTES:
            raise too_large("attribute value size", len(value.encode()), MAX_ATTRIBUTE_VALUE_BYTES)
