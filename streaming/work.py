"""The element that travels from the source to the sink: a batch of messages and the block made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from shared_features.columns import Evaluator
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
    trace: WorkTrace | None = field(default=None, compare=False, repr=False)

    def evaluator(self) -> Evaluator:
        """The evaluator over the block, the same one for every step in this process."""
        if self.known is None:
            assert self.block is not None
            self.known = Evaluator(self.block)
        return self.known


class WorkCoder(beam.coders.Coder):
    """A work stays in the process that pulled it: the runner fuses all steps, which a test holds it to."""

    def encode(self, value: Work) -> bytes:  # noqa: ARG002
        raise TypeError("a work is not sent to another process: run the job's steps fused, on its own runner")

    def decode(self, encoded: bytes) -> Work:  # noqa: ARG002
        raise TypeError("a work does not come from another process: run the job's steps fused, on its own runner")

    def estimate_size(self, value: Work) -> int:
        """Bytes of what was pulled. Beam asks now and then, and would encode the work if this did not answer."""
        return sum(len(message.data) for message in value.messages)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[Work]:
        return Work


beam.coders.registry.register_coder(Work, WorkCoder)
