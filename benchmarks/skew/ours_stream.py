"""This library's streaming path over the cases: the job's own graph, archive, recovery and steps.

    messages ─pull─> decode ─> drop duplicates ─> stage by key ─> features ─> archive ─┬─> restart: recover,
                                                                                       │   then the same again
                                                                                       └─> re-shard: fold by shard,
                                                                                           then a stage per shard

Only the subscription is ours: it hands out JSON messages in order of arrival, a few at a time. Everything from the
pull to the archive is the code of `sameriver stream` in collect mode, on Beam's in-process runner. The in-process
job has one shard; after a change of the shard count the same steps are called once per shard, as a router would.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.skew.cases import Action, Case, Value
from benchmarks.skew.ours import answers_of, app_of, rows_of, values_by_feature
from benchmarks.skew.systems import Answers
from shared_features.app import App
from shared_features.columns import Evaluator
from shared_features.hashing import hash_column, shard_of
from shared_features.kernel import fold, key_column
from shared_features.plan import Plan, Stage, make_plan
from shared_features.state import StageState
from streaming import runtime
from streaming.archive import Archive, read_commits
from streaming.deduplication import Deduplicator
from streaming.delivery import Delivery
from streaming.intake import Intake
from streaming.job import JobSettings, build, pipeline_options
from streaming.recovery import recover
from streaming.stages import Decode, Features, KeyedStage
from streaming.topics import Message, OutgoingMessage, Subscriber
from streaming.work import Work

_SIZES = (1, 2, 3, 5, 8)
"""How many messages pulls bring, in turn: the result must not depend on it."""

_HORIZON_US = JobSettings(cast(Any, None), Path()).horizon_s * 1_000_000
"""The job's own setting."""


class Feed:
    """A subscription that hands out given messages, in order, a few at a time, then tells the job to stop."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages = iter(messages)
        self._sizes = itertools.cycle(_SIZES)
        self.job: runtime.Job | None = None

    def pull(self, max_messages: int, timeout_s: float) -> list[Message]:  # noqa: ARG002
        messages = list(itertools.islice(self._messages, next(self._sizes)))
        if not messages and self.job is not None:
            self.job.stopping.set()
        return messages

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Nothing: what comes again after a restart is part of the case."""


def stream(cases: Sequence[Case]) -> Answers:
    """The features that the job gives, live."""
    app = app_of(cases)
    plan = make_plan(app)
    with tempfile.TemporaryDirectory(prefix="sameriver-skew-") as name:
        archive = Path(name, "archive")
        phases = itertools.zip_longest(*map(_phases, cases), fillvalue=None)
        resharded: dict[int, list[Message]] = {}
        for phase in phases:
            parts = [part for part in phase if part is not None]
            for action, messages in parts:
                if action is not None and action.do == "reshard":
                    resharded.setdefault(action.shards, []).extend(messages)
            live = [messages for action, messages in parts if action is None or action.do == "restart"]
            run_job(app, plan, archive, _by_arrival(live))
        found = _archived(app, archive)
        for shards, messages in resharded.items():
            found |= run_sharded(app, plan, archive, _by_arrival([messages]), shards)
    return answers_of(cases, found)


def _phases(case: Case) -> list[tuple[Action | None, list[Message]]]:
    """The case's messages, cut at its actions; the last message before a restart comes again after it."""
    messages = [_message(row, number) for number, row in enumerate(rows_of(case))]
    cuts = sorted(case.actions)
    parts: list[tuple[Action | None, list[Message]]] = [(None, messages[: cuts[0] if cuts else None])]
    for cut, until in itertools.pairwise([*cuts, len(messages)]):
        again = messages[cut - 1 : cut] if case.actions[cut].do == "restart" else []
        parts.append((case.actions[cut], again + messages[cut:until]))
    return parts


def _message(row: dict[str, Any], number: int) -> Message:
    """As a publisher in Python would write it; its NaN is no JSON."""
    data = {name: value for name, value in row.items() if name != "arrives_us"}
    message_id = f"{row['event_id']}#{number}"
    return Message(json.dumps(data).encode(), {"event_type": "reading"}, message_id, row["arrives_us"], message_id)


def _by_arrival(parts: Iterable[Iterable[Message]]) -> list[Message]:
    """The messages of all cases as they arrive: what is between two of a case are other keys' events to it."""
    return sorted(itertools.chain(*parts), key=lambda message: message.publish_time_us)


def run_job(app: App, plan: Plan, folder: Path, messages: Sequence[Message]) -> None:
    """One life of the job: come back from the archive, take all messages, stop."""
    deduplicator = Deduplicator(_HORIZON_US)
    with_archive = {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions}
    archive = Archive(folder, with_archive)
    recovered = recover(plan, folder, deduplicator, _published, with_features=False)
    states = [StageState.load(state.stage, state.save()) for state in recovered.states]
    feed = Feed(messages)
    delivery = Delivery(
        app, predict={}, archive=archive, publish=_published, acknowledge=feed.acknowledge, collect=True
    )
    job = runtime.Job(
        plan,
        Intake(app.event_types),
        deduplicator,
        runtime.StateCache(states),
        cast(Subscriber, feed),
        delivery,
        max_messages=1_000,
    )
    feed.job = job
    runtime.register(b"skew", job)
    try:
        pipeline = beam.Pipeline(runner=FnApiRunner(), options=pipeline_options())
        build(pipeline, plan, b"skew")
        pipeline.run().wait_until_finish()
        delivery.close()
    finally:
        runtime.forget(b"skew")
        archive.close()


def _published(topic: str, messages: Sequence[OutgoingMessage]) -> None:
    """Nobody listens; the archive holds what is published."""


def _archived(app: App, folder: Path) -> dict[tuple[str, str], Value]:
    found: dict[tuple[str, str], Value] = {}
    for commit in read_commits(folder):
        if commit.block.num_rows:
            found |= values_by_feature(app, commit.block, "feature.")
    return found


# -- after a change of the shard count ----------------------------------------------------------------------
class _Token:
    """Beam's state cell of one shard's stage."""

    def __init__(self) -> None:
        self._held: bytes | None = None

    def read(self) -> bytes | None:
        return self._held

    def write(self, token: bytes) -> None:
        self._held = token


def run_sharded(
    app: App, plan: Plan, folder: Path, messages: Sequence[Message], shards: int
) -> dict[tuple[str, str], Value]:
    """The steps of the job with the keyed stage in several shards, their state made from the archive."""
    (stage,) = plan.stages
    deduplicator = Deduplicator(_HORIZON_US)
    recover(plan, folder, deduplicator, _published, with_features=False)
    jobs = [b"skew-%d" % shard for shard in range(shards)]
    for job_id, state in zip(jobs, reshard(plan, folder, shards), strict=True):
        cache = runtime.StateCache([StageState.load(stage, state.save())])
        nothing = cast(Any, None)
        job = runtime.Job(plan, Intake(app.event_types), deduplicator, cache, nothing, nothing, max_messages=1_000)
        runtime.register(job_id, job)
    tokens = [_Token() for _ in jobs]
    found: dict[tuple[str, str], Value] = {}
    feed = Feed(messages)
    decode, keyed_stage, features = Decode(), KeyedStage(0), Features()  # type: ignore[no-untyped-call]
    try:
        while pulled := feed.pull(1_000, 0.0):
            ((_, work),) = decode.process((jobs[0], Work(pulled)))
            assert work.block is not None
            for shard, piece in by_shard(stage, work.block, shards):
                element = (jobs[shard], replace(work, block=piece, known=None))
                (element,) = keyed_stage.process(element, tokens[shard])
                ((_, done),) = features.process(element)
                assert done.block is not None
                found |= values_by_feature(app, done.block, "feature.")
    finally:
        for job_id in jobs:
            runtime.forget(job_id)
    return found


def by_shard(stage: Stage, block: pa.RecordBatch, shards: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of a block by the shard that owns their key; all have one."""
    of = shard_of(hash_column(key_column(stage.key, Evaluator(block))), shards)
    for shard in np.unique(of).tolist():
        yield shard, block.filter(pa.array(of == shard))


def reshard(plan: Plan, folder: Path, shards: int) -> list[StageState]:
    """The archive folded again, each row in the shard that now owns its key; the epoch is one higher (C1)."""
    (stage,) = plan.stages
    states = [StageState(stage, epoch=1, shard=shard) for shard in range(shards)]
    for commit in read_commits(folder):
        if commit.block.num_rows:
            for shard, piece in by_shard(stage, commit.block, shards):
                fold(states[shard], Evaluator(piece))
    return states
