"""The element that travels from the source to the sink: a batch of messages and the block made of them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field

import apache_beam as beam
import pyarrow as pa

from shared_features.blocks import append_columns, from_ipc, to_ipc
from shared_features.columns import Evaluator
from shared_features.kernel import aggregate_columns
from shared_features.plan import Stage
from streaming.topics import Message


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that goes to the dead letters: its index in the work's messages, reason code and sentence."""

    index: int
    reason: str
    detail: str


@dataclass(slots=True)
class Work:
    """Messages pulled together and what has become of them so far.

    Attributes:
        messages: as pulled, in order.
        block: the rows to fold, in order; None before decoding.
        rows: for each row of the block, the index of its message.
        refused: messages that go to the dead letters.
        duplicates: number of messages that were dropped as duplicates.
        added: columns that the stages have appended; put together with the block once, at the end.
        known: what the stages have computed over the block, so that no step does it again.
        stages: the stages passed, whose aggregates are among what is known.
    """

    messages: list[Message]
    block: pa.RecordBatch | None = None
    rows: list[int] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    duplicates: int = 0
    added: dict[str, pa.Array] = field(default_factory=dict)
    known: Evaluator | None = field(default=None, compare=False, repr=False)
    stages: tuple[Stage, ...] = ()

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
            "refused": [[refused.index, refused.reason, refused.detail] for refused in value.refused],
            "duplicates": value.duplicates,
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
            [Refused(*refused) for refused in header["refused"]],
            header["duplicates"],
        )

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[Work]:
        return Work


beam.coders.registry.register_coder(Work, WorkCoder)
