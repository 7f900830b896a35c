"""The Beam steps between source and sink. They hold no arithmetic: each calls the code that batch calls too."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from shared_features.blocks import append_columns
from shared_features.kernel import feature_columns, fold, out_of_range
from shared_features.plan import Plan
from streaming import runtime
from streaming.intake import Intake, Taken, refuse_row
from streaming.topics import Message
from streaming.tracing import step
from streaming.work import Work


def take_events(plan: Plan, intake: Intake, messages: Sequence[Message]) -> Taken:
    """What `Intake.take` gives; rows with values that no aggregate can hold are refused, too."""
    taken = intake.take(messages)
    outside = out_of_range(plan, taken.block)
    if not outside:
        return taken
    refused = [
        refuse_row(plan.app.event_types, messages, int(taken.rows[row]), taken.block, row, "out_of_range", detail)
        for row, detail in outside.items()
    ]
    keep = np.ones(taken.block.num_rows, bool)
    keep[list(outside)] = False
    return replace(
        taken, block=taken.block.filter(pa.array(keep)), rows=taken.rows[keep], refused=taken.refused + refused
    )


class Decode(beam.DoFn):
    """Messages -> rows: validated, in range, each identity once. What is refused is noted, nothing is lost."""

    def process(self, element: tuple[bytes, Work]) -> Iterator[tuple[bytes, Work]]:
        job_id, work = element
        job, began_ns = runtime.get(job_id), time.time_ns()
        trace = None if job.tracing is None else job.tracing.begin(work.messages, job.plan.app.name)
        taken = take_events(job.plan, job.intake, work.messages)
        block, rows, refused = taken.block, taken.rows, taken.refused
        duplicate, beyond = job.deduplicator.accept(block)
        if duplicate.any() or beyond.any():
            horizon_s = job.deduplicator.horizon_us // 1_000_000
            detail = f"event time is more than the deduplication horizon of {horizon_s} s behind the newest event"
            refused = refused + [
                refuse_row(
                    job.plan.app.event_types, work.messages, int(rows[row]), block, row, "beyond_horizon", detail
                )
                for row in np.flatnonzero(beyond).tolist()
            ]
            keep = ~(duplicate | beyond)
            block, rows = block.filter(pa.array(keep)), rows[keep]
        job.events_in_steps += taken.events
        if job.monitoring is not None:
            job.monitoring.took(len(work.messages), taken.events)
        decoded = replace(
            work,
            block=block,
            rows=rows.tolist(),
            refused=refused,
            duplicates=int(duplicate.sum()),
            events=taken.events,
            trace=trace,
        )
        step(decoded, "decode", began_ns)
        yield job_id, decoded


class KeyedStage(beam.DoFn):
    """One keyed stage: folds the block into the shard's state and appends what each event could see.

    The state lives in the process; Beam's state holds the random token of the last fold. A fold takes the state
    out of the cache and puts it back only when it has returned, under a fresh token: what a failed bundle left
    half done is never used again, and another worker's state never fits.
    """

    TOKEN = ReadModifyWriteStateSpec("token", BytesCoder())

    def __init__(self, number: int) -> None:
        self.number = number

    def process(
        self,
        element: tuple[bytes, Work],
        token: Any = beam.DoFn.StateParam(TOKEN),  # noqa: B008
    ) -> Iterator[tuple[bytes, Work]]:
        job_id, work = element
        job, began_ns = runtime.get(job_id), time.time_ns()
        state = job.states.take(self.number, token.read() or runtime.RECOVERED)
        added = fold(state, work.evaluator())
        fresh = secrets.token_bytes(16)
        token.write(fresh)
        job.states.put(self.number, fresh, state)
        step(work, f"stage {state.stage.name}", began_ns)
        yield job_id, replace(work, added=work.added | added)


class Features(beam.DoFn):
    """After the last stage: aggregates become features."""

    def process(self, element: tuple[bytes, Work]) -> Iterator[tuple[bytes, Work]]:
        job_id, work = element
        assert work.block is not None
        began_ns = time.time_ns()
        features = feature_columns(runtime.get(job_id).plan, work.evaluator())
        block = append_columns(work.block, work.added | features)
        step(work, "features", began_ns)
        yield job_id, replace(work, block=block, added={}, known=None)


class Deliver(beam.DoFn):
    """Hands the block to the delivery queue; blocks while that is full."""

    def process(self, element: tuple[bytes, Work]) -> None:
        job_id, work = element
        job = runtime.get(job_id)
        job.delivery.submit(work)
        job.events_in_steps -= work.events
