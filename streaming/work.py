"""The element that travels from the source to the sink: a batch of messages and the block made of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import apache_beam as beam
import pyarrow as pa

from shared_features.blocks import append_columns, from_ipc, to_ipc
from shared_features.columns import Evaluator
from shared_features.kernel import aggregate_columns
from shared_features.plan import Stage
from streaming.topics import Message
from streaming.tracing import WorkTrace


@dataclass(frozen=True, slots=True)
class Refused:
    """A message, or an event of a block, that goes to the dead letters.

    Attributes:
        index: of the message among the work's.
        reason, detail: code and sentence.
        event: None for a whole message; or one event of a block, as the JSON of a single event.
        row: the event's place in its block.
        event_id: its identity, where its schema has no field for it.
    """

    index: int
    reason: str
    detail: str
    event: bytes | None = None
    row: int = 0
    event_id: str = ""

    def message(self, messages: Sequence[Message]) -> Message:
        """What the dead letter holds: the message as it came, or the event as if it had come alone."""
        whole = messages[self.index]
        if self.event is None:
            return whole
        attributes = {name: whole.attributes[name] for name in ("event_type",) if name in whole.attributes}
        if self.event_id:
            attributes["event_id"] = self.event_id
        return whole._replace(data=self.event, attributes=attributes, message_id=f"{whole.message_id}/{self.row}")


@dataclass(slots=True)
class Work:
    """Messages pulled together and what has become of them so far.

    Attributes:
        messages: as pulled, in order.
        block: the rows to fold, in order; None before decoding.
        rows: for each row of the block, the index of its message.
        refused: messages, or events of blocks, that go to the dead letters.
        duplicates: number of events that were dropped as duplicates.
        events: number of events that the messages brought.
        added: columns that the stages have appended; put together with the block once, at the end.
        known: what the stages have computed over the block, so that no step does it again.
        stages: the stages passed, whose aggregates are among what is known.
        trace: its spans, where traces are asked for; they stay in this process.
    """

    messages: list[Message]
    block: pa.RecordBatch | None = None
    rows: list[int] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    duplicates: int = 0
    events: int = 0
    added: dict[str, pa.Array] = field(default_factory=dict)
    known: Evaluator | None = field(default=None, compare=False, repr=False)
    stages: tuple[Stage, ...] = ()
    trace: WorkTrace | None = field(default=None, compare=False, repr=False)

    def evaluator(self) -> Evaluator:
        """The evaluator over the block, the same one for every step in this process."""
        if self.known is None:
            assert self.block is not None
            self.known = Evaluator(self.block)
        return self.known

    def whole_block(self) -> pa.RecordBatch:
        """The block with all that the stages have added, aggregates among it: what another process needs."""
        assert self.block is not None
        return append_columns(self.block, self.added | aggregate_columns(self.stages, self.evaluator()))


class WorkCoder(beam.coders.Coder):
    """JSON header, then the block as an Arrow IPC stream. Fused stages in one process never call it.

    The block travels with the columns that the stages added, aggregates among them.
    """

    def encode(self, value: Work) -> bytes:
        header = {
            "messages": [
                {
                    "data": base64.b64encode(message.data).decode("ascii"),
                    "attributes": dict(message.attributes),
                    "message_id": message.message_id,
                    "publish_time_us": message.publish_time_us,
                    "ack_id": message.ack_id,
                    "ordering_key": message.ordering_key,
                }
                for message in value.messages
            ],
            "rows": value.rows,
            "refused": [
                {**asdict(one), "event": None if one.event is None else base64.b64encode(one.event).decode("ascii")}
                for one in value.refused
            ],
            "duplicates": value.duplicates,
            "events": value.events,
        }
        text = json.dumps(header).encode("utf-8")
        return len(text).to_bytes(4, "big") + text + (b"" if value.block is None else to_ipc(value.whole_block()))

    def decode(self, encoded: bytes) -> Work:
        length = int.from_bytes(encoded[:4], "big")
        header = json.loads(encoded[4 : 4 + length])
        messages = [Message(**{**message, "data": base64.b64decode(message["data"])}) for message in header["messages"]]
        rest = encoded[4 + length :]
        return Work(
            messages,
            from_ipc(rest) if rest else None,
            header["rows"],
            [Refused(**{**one, "event": one["event"] and base64.b64decode(one["event"])}) for one in header["refused"]],
            header["duplicates"],
            header["events"],
        )

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[Work]:
        return Work


beam.coders.registry.register_coder(Work, WorkCoder)
