"""What the gateway needs of topics, and the shapes of what travels over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class OutgoingEvent(NamedTuple):
    """One event to publish: its JSON, and its type, encoding and identity as attributes."""

    data: bytes
    attributes: Mapping[str, str]


class Published(NamedTuple):
    """A prediction or reaction as received: its record, not parsed before somebody wants it.

    Attributes:
        event_type, event_id: identity of the event that it is about.
        prediction_id: of the prediction, or of the one that the reaction is about.
        name: of the reaction; "" for a prediction.
        data: the message's data, as ``docs/messages.md`` has it.
    """

    event_type: str
    event_id: str
    prediction_id: str
    name: str
    data: bytes


class Refused(NamedTuple):
    """A dead letter: the event, the hash of its data in hexadecimal, the reason's code and sentence."""

    event_type: str
    event_id: str
    sha256: str
    reason: str
    detail: str


Arrival = Published | Refused


class NotPublishedError(Exception):
    """The topic did not take the events, as far as one can know; the text says why."""


class Topics(Protocol):
    """The app's topics, as the gateway uses them.

    Guaranteed: what `publish` returns for is stored. Not guaranteed: that an arrival comes once, or that a reaction
    comes after its prediction.
    """

    def publish(self, events: Sequence[OutgoingEvent]) -> None:
        """Store events on the app's topic; NotPublishedError if they could not be stored. Called on any thread."""
        ...

    def follow(self, arrived: Callable[[list[Arrival]], None]) -> None:
        """Begin to hand over what the job publishes, in lists, on threads of its own."""
        ...

    def failure(self) -> str:
        """Why nothing arrives any more; "" as long as all is well."""
        ...

    def close(self) -> None:
        """Stop handing over and let go of the connections."""
        ...


Plain = Callable[[bytes], dict[str, Any]]
"""Reads the data of a `Published`, with the unions of its encoding taken off."""
