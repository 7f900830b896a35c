"""Dead letters: an unusable message, byte for byte, with the reason; made so that it can be sent again.

A dead letter has one of two forms. Nearly always the data is the original data, the original attributes
are there with ``original_`` before their names, and the rest of ``dead_letter.avsc`` stands in attributes.
Where that does not fit Pub/Sub's limits, the data is the whole record as one Avro datum, cut into parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final, Protocol

from fastavro import schemaless_reader, schemaless_writer
from fastavro.schema import parse_schema

from shared_features import validate
from shared_features.decode import MessageLike
from shared_features.encode import EventMessage
from streaming.messages import message_schema
from streaming.topics import OutgoingMessage

DEAD_LETTER: Final = "dead_letter/1"
PREFIX: Final = "original_"

# Pub/Sub's limits: https://cloud.google.com/pubsub/quotas (attributes), 10^7 bytes a request.
MAX_ATTRIBUTES: Final = 100
MAX_NAME_BYTES: Final = 256
MAX_VALUE_BYTES: Final = 1024
MAX_PART_BYTES: Final = 8_000_000


REASONS: Final[Mapping[str, str]] = {
    **validate.REASONS,
    "malformed_block": "the data is no block of events as its encoding has it",
    "malformed_compression": "the data is not what the attribute compression says",
    "incompatible_schema": "the event was written with a schema that cannot become the app's",
    "unknown_schema": "no schema has the revision that the message says it was written with",
    "external_refused": "an external model refuses the event's text, or says no finite number about it",
    "beyond_horizon": "the event is older, behind the newest one, than duplicates can be told",
    "prediction_failed": "the model refused the event's features, or its output was no finite number",
    "export_refused": "BigQuery refused a row of the event: `archive export` left it out",
}
"""Every reason of a dead letter. Codes never change their meaning."""


class OriginalMessage(MessageLike, Protocol):
    """What a dead letter keeps of a message; ``streaming.topics.Message`` is one."""

    @property
    def ordering_key(self) -> str:
        """As received, mostly empty."""
        ...


class ReceivedMessage(Protocol):
    """What a received dead letter must have; official clients' messages do."""

    @property
    def data(self) -> bytes:
        """As received."""
        ...

    @property
    def attributes(self) -> Mapping[str, str]:
        """As received."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An original message and why it gave no prediction.

    Attributes:
        app: whose job refused it.
        reason: stable code, see ``docs/messages.md``.
        detail: one sentence.
        data, attributes, message_id, publish_time_us, ordering_key: of the original message.
    """

    app: str
    reason: str
    detail: str
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)
    message_id: str = ""
    publish_time_us: int = 0
    ordering_key: str = ""

    @classmethod
    def of(cls, message: OriginalMessage, reason: str, detail: str, *, app: str) -> DeadLetter:
        """The dead letter of a received message."""
        return cls(
            app,
            reason,
            detail,
            message.data,
            dict(message.attributes),
            message.message_id,
            message.publish_time_us,
            message.ordering_key,
        )

    @property
    def sha256(self) -> str:
        """Of the original data, 64 hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()

    def messages(self) -> list[OutgoingMessage]:
        """For the topic ``<app>-dead-letters``: one message, or several parts if it is huge."""
        attributes = self._attributes()
        originals = {PREFIX + name: value for name, value in self.attributes.items()}
        if len(self.data) <= MAX_PART_BYTES and _fits(attributes | originals):
            return [OutgoingMessage(self.data, attributes | originals)]
        whole = self._datum()
        pieces = [whole[at : at + MAX_PART_BYTES] for at in range(0, len(whole), MAX_PART_BYTES)]
        return [
            OutgoingMessage(piece, {**attributes, "form": "avro", "part": f"{number}/{len(pieces)}"})
            for number, piece in enumerate(pieces, 1)
        ]

    def replay(self) -> EventMessage:
        """The original message as it can be published again.

        An event that was known by its message id alone keeps that identity, as attribute ``event_id``, so
        that it is still the same event to whoever has seen it (promise C5). Attributes that begin with
        ``goog`` are left out: Pub/Sub keeps these to itself.
        """
        attributes = {name: value for name, value in self.attributes.items() if not name.startswith("goog")}
        encoding = self.attributes.get("googclient_schemaencoding")
        if "encoding" not in attributes and encoding == "BINARY":
            attributes["encoding"] = "avro"
        if not attributes.get("event_id") and self.message_id:
            attributes["event_id"] = self.message_id
        return EventMessage(self.data, attributes)

    def record(self) -> dict[str, Any]:
        """As ``dead_letter.avsc`` has it; ``publish_time`` in microseconds."""
        return {
            "app": self.app,
            "reason": self.reason,
            "detail": self.detail,
            "message_id": self.message_id,
            "publish_time": self.publish_time_us,
            "ordering_key": self.ordering_key,
            "sha256": self.sha256,
            "attributes": dict(self.attributes),
            "data": self.data,
        }

    def _attributes(self) -> dict[str, str]:
        return {
            "schema": DEAD_LETTER,
            "app": self.app,
            "reason": self.reason,
            "detail": _cut(self.detail),
            "message_id": _cut(self.message_id),
            "publish_time_us": str(self.publish_time_us),
            "sha256": self.sha256,
        } | ({"ordering_key": self.ordering_key} if self.ordering_key else {})

    def _datum(self) -> bytes:
        sink = BytesIO()
        schemaless_writer(sink, _schema(), self.record())
        return sink.getvalue()


def read_dead_letters(messages: Iterable[ReceivedMessage]) -> list[DeadLetter]:
    """Dead letters from the messages of their topic, in the order of the messages (of their last parts).

    Args:
        messages: any dead letters, parts in any order; of a letter whose parts are not all there, nothing
            is returned.

    Raises:
        ValueError: a message is no dead letter, or its data is not what its ``sha256`` says.
    """
    letters = []
    parts: dict[tuple[str, str], dict[int, bytes]] = {}
    for message in messages:
        attributes = message.attributes
        if attributes.get("schema") != DEAD_LETTER:
            got = attributes.get("schema", "none")
            raise ValueError(f"A dead letter has the attribute schema {DEAD_LETTER!r}, got {got!r}.")
        try:
            letter = _letter(message.data, attributes, parts)
        except Exception as error:  # fastavro raises whatever foreign bytes lead it to
            raise ValueError(f"A message of schema {DEAD_LETTER} was wanted, but this is none ({error!r}).") from error
        if letter is None:
            continue
        if letter.sha256 != attributes.get("sha256"):
            raise ValueError(f"The data of dead letter {letter.message_id!r} is not what its sha256 says.")
        letters.append(letter)
    return letters


def _letter(
    data: bytes, attributes: Mapping[str, str], parts: dict[tuple[str, str], dict[int, bytes]]
) -> DeadLetter | None:
    """The letter that this message is, or completes; None as long as other parts are missing."""
    if attributes.get("form") != "avro":
        return _from_attributes(data, attributes)
    number, count = (int(digits) for digits in attributes["part"].split("/"))
    whose = (attributes["message_id"], attributes["sha256"])
    mine = parts.setdefault(whose, {})
    mine[number] = data
    if len(mine) < count:
        return None
    del parts[whose]
    return _from_datum(b"".join(mine[number] for number in sorted(mine)))


def _from_attributes(data: bytes, attributes: Mapping[str, str]) -> DeadLetter:
    originals = {name[len(PREFIX) :]: value for name, value in attributes.items() if name.startswith(PREFIX)}
    return DeadLetter(
        attributes["app"],
        attributes["reason"],
        attributes["detail"],
        data,
        originals,
        attributes["message_id"],
        int(attributes["publish_time_us"]),
        attributes.get("ordering_key", ""),
    )


def _from_datum(datum: bytes) -> DeadLetter:
    record: Any = schemaless_reader(BytesIO(datum), _schema(), None)
    return DeadLetter(
        record["app"],
        record["reason"],
        record["detail"],
        record["data"],
        record["attributes"],
        record["message_id"],
        record["publish_time"],
        record["ordering_key"],
    )


def _schema() -> Any:
    """Without the logical type: the publish time is read as the integer that was written."""
    schema = message_schema("dead_letter")
    fields = [{**f, "type": f["type"]["type"]} if f["name"] == "publish_time" else f for f in schema["fields"]]
    return parse_schema({**schema, "fields": fields})


def _fits(attributes: Mapping[str, str]) -> bool:
    return len(attributes) <= MAX_ATTRIBUTES and all(
        len(name.encode()) <= MAX_NAME_BYTES and len(value.encode()) <= MAX_VALUE_BYTES
        for name, value in attributes.items()
    )


def _cut(text: str) -> str:
    """At most 1,024 bytes of UTF-8, cut between characters."""
    return text.encode()[:MAX_VALUE_BYTES].decode(errors="ignore")
