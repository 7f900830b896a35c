"""What is known of events: asked about, predicted, reacted to or refused; bounded, the oldest forgotten first.

Lives on the event loop's thread. Every prediction on the topic is remembered, whoever published the event, so that
any of several gateways can answer for it; what it said is kept as it came, the smallest form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.gateway.ports import Arrival, Plain, Published, Refused
from shared_features.app import App
from shared_features.hashing import hash128_hex

BYTES_PER_EVENT = 2_000
"""About what one remembered event takes: message, identity and the tables around them."""


@dataclass(slots=True, eq=False)
class Entry:
    """All that is known of one event.

    Attributes:
        ticket: its name in ``/v1/predictions/{ticket}``, a hash of app and identity: the same in every gateway.
        sha256: of the event, if it was published here.
        asked: published here, so that an answer is awaited.
        stored: set when the attempt to publish it has ended.
        final: no prediction will come: the event is of another type than the app predicts on.
        prediction: the one of the app's first model, as received.
        others: those of its other models, by model. owed: the other models of which none has come.
        due: the reactions that belong to it.
        reactions: those that have come, by name.
        refused: the dead letter.
        failure: why it could not be published.
        complete: set when all that was awaited has come.
    """

    ticket: str
    event_type: str
    event_id: str
    sha256: str = ""
    asked: bool = False
    stored: asyncio.Event | None = None
    final: bool = False
    prediction: Published | None = None
    others: dict[str, Published] = field(default_factory=dict)
    owed: set[str] = field(default_factory=set)
    due: frozenset[str] = frozenset()
    reactions: dict[str, Published] = field(default_factory=dict)
    refused: Refused | None = None
    failure: str = ""
    complete: asyncio.Event | None = None

    def is_complete(self) -> bool:
        """Whether there is nothing to wait for."""
        if self.prediction is not None:
            return not self.owed and self.due <= self.reactions.keys()
        return self.final or self.refused is not None or bool(self.failure)


class Memory:
    """Entries by ticket and by prediction id.

    Args:
        app: its name is part of every ticket, its models say which predictions belong together.
        capacity: events remembered; about `BYTES_PER_EVENT` each.
        plain: reads the data of what was received.
    """

    def __init__(self, app: App, capacity: int, plain: Plain) -> None:
        self.capacity = capacity
        self._app = app.name.encode()
        self._others = frozenset(model.name for model in app.models[1:])
        self._plain = plain
        self._entries: dict[str, Entry] = {}  # in the order in which they were first heard of
        self._tickets: dict[str, str] = {}  # by prediction id

    def __len__(self) -> int:
        return len(self._entries)

    def ticket(self, event_type: str, event_id: str) -> str:
        """The name of an event in addresses: 32 hexadecimal digits."""
        return hash128_hex(b"gateway", self._app, event_type.encode(), event_id.encode())

    def find(self, name: str) -> Entry | None:
        """The entry of a ticket or of a prediction id."""
        return self._entries.get(name) or self._entries.get(self._tickets.get(name, ""))

    def entry(self, event_type: str, event_id: str) -> Entry:
        """The entry of an event, a new one if nothing was known of it."""
        ticket = self.ticket(event_type, event_id)
        found = self._entries.get(ticket)
        if found is None:
            found = self._entries[ticket] = Entry(ticket, event_type, event_id, owed=set(self._others))
            if len(self._entries) > self.capacity:
                self._forget(next(iter(self._entries)))
        return found

    def _forget(self, ticket: str) -> None:
        entry = self._entries.pop(ticket, None)
        if entry is not None and entry.prediction is not None:
            self._tickets.pop(entry.prediction.prediction_id, None)

    def unpublished(self, entries: Sequence[Entry], why: str) -> None:
        """Forget events that did not reach the topic, and tell whoever waits for them."""
        for entry in entries:
            if entry.prediction is None and self._entries.get(entry.ticket) is entry:
                entry.failure = why
                self._forget(entry.ticket)
                self._settle(entry)

    def final(self, entry: Entry) -> None:
        """Note that the event is on the topic and that nothing comes of it by itself."""
        entry.final = True
        self._settle(entry)

    def take(self, arrivals: Sequence[Arrival]) -> None:
        """Note what the job has published."""
        touched: dict[str, Entry] = {}
        for one in arrivals:
            entry = self.entry(one.event_type, one.event_id)
            touched[entry.ticket] = entry
            if isinstance(one, Refused):
                # Another message of this identity may have been refused; ours is known by its data.
                if not entry.asked or entry.sha256 == one.sha256:
                    entry.refused = one
            elif one.name:
                entry.reactions.setdefault(one.name, one)
            else:
                self._predicted(entry, one)
        for entry in touched.values():
            self._settle(entry)

    def _predicted(self, entry: Entry, one: Published) -> None:
        """The newest one of a model counts: another version may have predicted on the same event since."""
        record = self.record(one)
        if record["model"] in self._others:
            entry.others[record["model"]] = one
            entry.owed.discard(record["model"])
            return
        if entry.prediction is not None and entry.prediction.prediction_id != one.prediction_id:
            self._tickets.pop(entry.prediction.prediction_id, None)
            entry.reactions = {
                name: reaction
                for name, reaction in entry.reactions.items()
                if reaction.prediction_id == one.prediction_id
            }
        entry.prediction, entry.due = one, frozenset(record["reactions"])
        if not record["model"]:  # features are only collected
            entry.owed.clear()
        self._tickets[one.prediction_id] = entry.ticket

    def record(self, published: Published) -> dict[str, Any]:
        """What a prediction or reaction says."""
        return self._plain(published.data)

    @staticmethod
    def _settle(entry: Entry) -> None:
        if entry.complete is not None and entry.is_complete():
            entry.complete.set()
