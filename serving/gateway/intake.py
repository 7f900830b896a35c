"""Request bodies → events: read within limits, completed with what a caller need not know, validated as the job does.

A caller may leave out the event's type (then it is the one that the app predicts on), its identity (a random one is
given) and its time (now). Everything else is judged by the library's own decoder, so that what passes here is not
refused later, but for what only the job can know.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import pyarrow as pa

from serving.gateway.ports import OutgoingEvent
from shared_features.app import App
from shared_features.decode import MAX_DEPTH, Decoder, Received
from shared_features.parse import parse_json
from shared_features.schema import EventSchema
from shared_features.validate import Faults, unknown_type

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_FIELD: Final = re.compile(r"\w+\.(\w+) ")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an event is refused.

    Attributes:
        index: which event of a list; 0 for a single one.
        reason: stable code, as for dead letters (``docs/messages.md``).
        detail: one sentence.
        field: the field's name, "" where it is not one field's doing.
    """

    index: int
    reason: str
    detail: str
    field: str = ""


class InvalidError(Exception):
    """A body that cannot become events; nothing of it was published."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(faults[0].detail)
        self.faults = list(faults)


@dataclass(slots=True, eq=False)
class Event:
    """One event of a request.

    Attributes:
        event_type, event_id: its identity; the id is never empty.
        data: its JSON, completed.
        ignored: names in it that the schema does not have.
        row: its row as a block of one, once it is validated.
        trace: the caller's trace context, as W3C Trace Context has it; "" for none.
    """

    event_type: str
    event_id: str
    data: bytes
    ignored: list[str] = field(default_factory=list)
    row: pa.RecordBatch | None = None
    trace: str = ""

    def message(self) -> OutgoingEvent:
        """As it is published."""
        attributes = {"event_type": self.event_type, "event_id": self.event_id}
        return OutgoingEvent(self.data, attributes | {"traceparent": self.trace} if self.trace else attributes)

    def sha256(self) -> str:
        """Of its data, hexadecimal, as dead letters have it."""
        return hashlib.sha256(self.data).hexdigest()


class Intake:
    """Reads and validates the events of one app.

    Args:
        app: the app.
        max_events: in one list.
    """

    def __init__(self, app: App, max_events: int) -> None:
        self.app, self.max_events = app, max_events
        self._decoder = Decoder(app.event_types)
        # Arrow loads pandas at its first conversion, 0.3 s that the first caller should not wait.
        self.validate([[Event(app.predict_on.name, "warm-up", b"{}")]])

    def read(self, body: bytes) -> tuple[list[Event], bool]:
        """The events of a body, completed and not yet validated; and whether it was a list.

        Raises:
            InvalidError: it is no JSON object or list of some, too deep, too long, or of an unknown event type.
        """
        value = _parsed(body)
        is_list = isinstance(value, list)
        records: list[Any] = value if is_list else [value]
        if not records:
            raise InvalidError([Fault(0, "wrong_type", "A list of events must have at least one, got none.")])
        if len(records) > self.max_events:
            detail = f"A list may have {self.max_events} events at most, got {len(records)}: send several."
            raise InvalidError([Fault(self.max_events, "out_of_range", detail)])
        faults: list[Fault] = []
        events = []
        for index, record in enumerate(records):
            made = self._completed(index, record)
            if isinstance(made, Fault):
                faults.append(made)
            else:
                events.append(made)
        if faults:
            raise InvalidError(faults)
        return events, is_list

    def validate(self, requests: Sequence[Sequence[Event]]) -> list[list[Fault]]:
        """Check the events of several requests at once.

        Returns:
            The faults of each request, by the event's index in it; empty where all of it is good.
        """
        events = [event for request in requests for event in request]
        now_us = time.time_ns() // 1_000
        decoded = self._decoder.decode(
            [Received(event.data, dict(event.message().attributes), event.event_id, now_us) for event in events]
        )
        rejected = {one.index: one for one in decoded.rejected}
        found: list[list[Fault]] = []
        first = 0
        for request in requests:
            faults = []
            for index in range(len(request)) if rejected else ():
                one = rejected.get(first + index)
                if one is not None:
                    faults.append(Fault(index, one.reason, one.detail, self._field(request[index], one.detail)))
            found.append(faults)
            first += len(request)
        return found

    def _completed(self, index: int, record: Any) -> Event | Fault:
        if type(record) is not dict:
            return Fault(index, "wrong_type", f"An event must be a JSON object, got {type(record).__name__}.")
        known = self.app.event_types
        name = record.get("event_type")
        if name is None:
            name = self.app.predict_on.name
        if not isinstance(name, str) or name not in known:
            return Fault(index, "unknown_event_type", unknown_type(str(name), known), "event_type")
        schema: EventSchema = known[name]
        member = schema.id or "event_id"
        event_id = record.get(member)
        if event_id is None:
            event_id = uuid.uuid4().hex
        elif type(event_id) is not str or not event_id or "\0" in event_id:
            detail = f"{name}.{member} must be a string of 1 to 1,024 bytes, got {event_id!r:.60}."
            return Fault(index, "missing_event_id" if event_id == "" else "wrong_type", detail, member)
        ignored = [key for key in record if key not in schema.fields and key not in ("event_type", member)]
        values = {key: value for key, value in record.items() if key in schema.fields}
        if schema.id:
            values[schema.id] = event_id
        if values.get(schema.time) is None:
            per_unit = 1_000_000 if schema.fields[schema.time].avro == "timestamp-millis" else 1_000
            values[schema.time] = time.time_ns() // per_unit
        return Event(name, event_id, orjson.dumps(values), ignored[:20])

    def _field(self, event: Event, detail: str) -> str:
        """The field that a sentence of the decoder is about."""
        match = _FIELD.match(detail)
        schema = self.app.event_types[event.event_type]
        return match[1] if match and (match[1] in schema.fields or match[1] == "event_id") else ""


def _parsed(body: bytes) -> Any:
    """The body's JSON, measured before it is parsed; one list around the events does not count as depth."""
    if _depth(body) > MAX_DEPTH + 1:
        raise InvalidError([Fault(0, "malformed_json", f"An event may be nested {MAX_DEPTH} deep at most, got more.")])
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        faults = Faults()
        if body.lstrip()[:1] == b"{":
            parse_json([body], MAX_DEPTH, faults)  # tells NaN from what is no JSON at all
        reason, detail = faults.by_row.get(0, ("malformed_json", f"The body is no JSON: {error}."))
        raise InvalidError([Fault(0, reason, detail)]) from None
    if not isinstance(value, list | dict):
        raise InvalidError(
            [Fault(0, "wrong_type", f"The body must be an event or a list of events, got {type(value).__name__}.")]
        )
    return value


def _depth(body: bytes) -> int:
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
