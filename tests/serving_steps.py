"""The live road without Beam and broker, for tests that need an archive: the same steps, called one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from shared_features.app import App
from shared_features.decode import rows_to_messages
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from streaming import recovery
from streaming.archive import Archive
from streaming.deduplication import Deduplicator
from streaming.delivery import Delivery
from streaming.intake import Intake
from streaming.topics import Message, OutgoingMessage
from streaming.work import Work


class Served:
    """What went out while an archive was written."""

    def __init__(self) -> None:
        self.sent: dict[str, list[OutgoingMessage]] = {}
        self.acknowledged: list[str] = []

    def publish(self, topic: str, messages: Sequence[OutgoingMessage]) -> None:
        self.sent.setdefault(topic, []).extend(messages)

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        self.acknowledged.extend(ack_ids)


def to_messages(app: App, block: pa.RecordBatch, publish_time_us: Sequence[int] | None = None) -> list[Message]:
    """The rows of ``block`` as received messages, in order."""
    times = block.column("event_time").cast(pa.int64()).to_pylist() if publish_time_us is None else publish_time_us
    return [
        Message(event.data, event.attributes, f"m{i}", times[i], f"ack{i}")
        for i, event in enumerate(rows_to_messages(block, app.event_types))
    ]


def serve(app: App, messages: Sequence[Message], archive: Path, *, block_rows: int = 7) -> Served:
    """Take ``messages`` through decoding, stages and delivery, from where the archive ends; models must be rules."""
    served = Served()
    plan = make_plan(app)
    opened = Archive(archive, {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
    intake, deduplicator = Intake(app.event_types), Deduplicator(7 * 86_400_000_000)
    recovered = recovery.recover(plan, archive, deduplicator, served.publish, with_features=False)
    delivery = Delivery(
        app,
        predict={},
        archive=opened,
        publish=served.publish,
        acknowledge=served.acknowledge,
        stages=recovered.stages,
    )
    try:
        for start in range(0, len(messages), block_rows):
            pulled = list(messages[start : start + block_rows])
            taken = intake.take(pulled)
            duplicate, _ = deduplicator.accept(taken.block)
            keep = ~duplicate
            block, rows = taken.block.filter(pa.array(keep)), taken.rows[keep]
            for state in recovered.states:
                block = step(state, block)
            delivery.submit(
                Work(pulled, finish(plan, block), rows.tolist(), taken.refused, int(duplicate.sum()), taken.events)
            )
        delivery.close()
    finally:
        opened.close()
    return served
