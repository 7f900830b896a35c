"""What the steps of a job on a cluster share in one worker process: app, connections, live states.

A worker process serves one attempt of a job: Flink ends it when the job's tasks have ended, and begins another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.app import App, Rule
from shared_features.columns import Evaluator
from shared_features.compute import to_block, warm_up
from shared_features.plan import Plan, make_plan
from shared_features.reactions import ReactionStage, reaction_stages
from streaming import results
from streaming.archive import Archive, read_commits
from streaming.covered import Covered
from streaming.folders import Deduplication, Keyed, Reacting, hashes_of
from streaming.job import JobSettings, connect_externals, connect_models, open_intake
from streaming.job_description import read_description
from streaming.key_groups import shard_names
from streaming.keyed_state import LiveStates
from streaming.ledger import Ledger, last_counts
from streaming.naming import subscription_of, topic
from streaming.outgoing import dead_letter, dead_letter_of_row, outgoing
from streaming.pieces import Piece
from streaming.results import Answer
from streaming.routes import RoutedModel
from streaming.source import WORK_BYTES
from streaming.stages import take_events
from streaming.topics import Message, OutgoingMessage, Publisher, Subscriber

log = logging.getLogger(__name__)

HELD_MESSAGES, HELD_BYTES = 1_000_000, 1 << 30
BEAT_S = 1.0
NOTICE_S = 0.25


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job as its steps carry it to a worker.

    Attributes:
        description: see `streaming.job_description`.
        shards: of each keyed stage.
        checkpoint_ms: between two checkpoints.
        hold: whether results go out when a checkpoint holds them, and not at once.
    """

    description: bytes
    shards: int
    checkpoint_ms: int
    hold: bool

    @property
    def pause_ms(self) -> int:
        """Least time between the end of a checkpoint and the beginning of the next."""
        return self.checkpoint_ms // 2


class Worker:
    """One job in one worker process. Its parts are made when a step first asks for them."""

    def __init__(self, job: ClusterJob) -> None:
        self.job = job
        self.app, self.settings = read_description(job.description)
        self.plan = make_plan(self.app)
        load_machine_code(self.app, self.plan)
        first, *remembering = reaction_stages(self.app)
        self.reactions: ReactionStage = first
        self.keys = {f"stage {number}": stage.key for number, stage in enumerate(self.plan.stages)}
        self.keys |= {f"reactions {number}": stage.key for number, stage in enumerate(remembering) if stage.key}
        self.names = shard_names(job.shards)
        self.publisher = Publisher(self.settings.endpoint)
        self.live: dict[str, LiveStates[Any]] = {}
        self._lock = threading.RLock()
        self._source: Source | None = None
        self._models: dict[str, RoutedModel] | None = None
        self._ledger: tuple[str, LiveLedger] | None = None
        self._archive: Archive | None = None

    def states(self, step: str) -> LiveStates[Any]:
        """The live states of a step."""
        with self._lock:
            return self.live.setdefault(step, LiveStates())

    def folder(self, step: str, shard: int) -> Deduplication | Keyed | Reacting:
        """A new one with nothing remembered, for a step as `steps_of` names it."""
        kind, _, number = step.partition(" ")
        if kind == "stage":
            return Keyed(self.app, self.plan.stages[int(number)], shard)
        if kind == "reactions":
            return Reacting(self.app, self.keys[step], shard)
        return Deduplication(self.app, self.settings.horizon_s)

    def hashes(self, step: str, block: pa.RecordBatch) -> np.ndarray:
        """By which rows go to the shards of a step; uint64, shape [rows]."""
        return hashes_of(self.keys[step], block) if step in self.keys else Evaluator(block).identities()

    @property
    def source(self) -> Source:
        """The subscription, pulled in this process."""
        with self._lock:
            if self._source is None:
                self._source = Source(self)
            return self._source

    def ask(self, block: pa.RecordBatch) -> dict[str, Future[Answer]] | None:
        """Start the predictions of a block with features; None where features are only collected."""
        with self._lock:
            if self._models is None:
                self._models = connect_models(self.app, self.settings)
        answered = all(isinstance(model, Rule) or model.name in self._models for model in self.app.models)
        if self.settings.collect or not self.app.models or not answered:
            return None
        rows = results.asked_rows(self.app, block)
        if not len(rows):
            return {}
        features = results.feature_block(self.app, block, rows)
        keys = partial(results.key_values, self.app, block, rows)
        return {name: routed.predict(features, keys) for name, routed in self._models.items()}

    def answered(self, block: pa.RecordBatch, asked: dict[str, Future[Answer]] | None) -> pa.RecordBatch:
        """The block with how its rows ended; waits for the predictions."""
        if asked is None:
            return results.with_results(self.app, block, None, [])
        answers = {}
        for model in self.app.models:
            if isinstance(model, Rule):
                answers[model.name] = results.apply_rule(self.app, model, block)
            elif model.name in asked:
                answers[model.name] = asked[model.name].result()
            else:
                answers[model.name] = Answer({name: np.zeros(0) for name in model.outputs}, {}, 0)
        return results.with_results(self.app, block, answers, [self.reactions])

    def ended(self, piece: Piece) -> Piece:
        """A piece that has passed its last keyed step: its letters are written, and, at once, its results go out."""
        if piece.block is not None and piece.block.num_rows:
            failed = np.flatnonzero(np.asarray(pc.equal(piece.block.column("outcome"), results.FAILED)))
            for row in failed.tolist():
                piece.letters += dead_letter_of_row(self.app, piece.block, row)
            if not self.job.hold:
                self.publish(piece.block, [])
        return piece

    def publish(self, block: pa.RecordBatch | None, letters: Sequence[OutgoingMessage]) -> None:
        """Send results and dead letters, with a revision where a later one may take its place."""
        settings, sent = self.settings, dict[str, list[OutgoingMessage]]()
        if block is not None and block.num_rows:
            sent = outgoing(self.app, block, with_features=settings.with_features, as_blocks=settings.prediction_blocks)
        if not self.job.hold:
            revision = {"revision": str(time.time_ns() // 1000)}
            sent = {
                to: [one._replace(attributes={**one.attributes, **revision}) for one in messages]
                for to, messages in sent.items()
            }
        if letters:
            sent[topic(self.app.name, "dead-letters")] = list(letters)
        for to, messages in sent.items():
            self.publisher.publish(to, messages)

    def live_ledger(self, token: str | None) -> LiveLedger | None:
        """The live ledger, if it is the one that the runner's state knows by this token; else it is closed."""
        with self._lock:
            held, self._ledger = self._ledger, None
            if held is None or held[0] == token:
                return held and held[1]
            held[1].ledger.close()
            return None

    def open_ledger(self, entries: Sequence[tuple[int, Piece]], newest: int) -> LiveLedger:
        """A ledger from what the runner's state holds."""
        with self._lock:
            if self._archive is None:
                whose = {"app": self.app.name, "fingerprint": self.app.fingerprint, "definitions": self.app.definitions}
                self._archive = Archive(self.settings.archive, whose)
            archive = self._archive
        last = archive.next_sequence - 1
        if self.job.hold and last >= 0:
            for commit in read_commits(archive.folder, last - 1):
                if not commit.published and commit.block.num_rows:
                    self.publish(commit.block, [])
            archive.mark_published(last)
        publish = self.publish if self.job.hold else None
        ledger = Ledger(archive, last_counts(archive.folder, last), entries, newest, publish)
        return LiveLedger(ledger, Covered(ledger.commit, self.job.pause_ms / 2000))

    def keep_ledger(self, token: str, ledger: LiveLedger) -> None:
        """Hold the ledger under a fresh token."""
        with self._lock:
            self._ledger = token, ledger


@dataclass(slots=True)
class LiveLedger:
    """A ledger with what tells it of checkpoints; the clock of the last bundle that asked to be told."""

    ledger: Ledger
    covered: Covered
    told_s: float = 0.0


class Source:
    """The subscription in one worker: what it hands out is acknowledged when a checkpoint holds what became of it."""

    def __init__(self, worker: Worker) -> None:
        self._worker, settings = worker, worker.settings
        self._subscriber = Subscriber(
            settings.endpoint,
            settings.subscription or subscription_of(worker.app),
            streams=settings.streams,
            lease_s=10,
            max_messages=HELD_MESSAGES,
            max_bytes=HELD_BYTES,
        )
        self._externals = connect_externals(worker.app, settings)
        self._intake = open_intake(worker.app, settings, self._externals)
        self._covered = Covered(self._acknowledge, worker.job.pause_ms / 2000)
        self._drain = settings.archive / DRAIN_FILE
        self._waiting: deque[tuple[int, list[str]]] = deque()
        self._lock = threading.Lock()
        self._number = 0
        self._message_bytes = 1000.0
        self._told_s = self._beat_s = self._looked_s = 0.0
        self._draining = False

    def pull(self) -> list[Message]:
        """What has come, about `WORK_BYTES` of it; nothing when the job drains."""
        if self._is_draining():
            return []
        most = max(1, min(self._worker.settings.max_messages, int(WORK_BYTES / self._message_bytes)))
        messages = self._subscriber.pull(most, 0)
        if messages:
            size = sum(len(message.data) for message in messages) / len(messages)
            self._message_bytes += (size - self._message_bytes) / 4
            with self._lock:
                self._number += 1
                self._waiting.append((self._number, [message.ack_id for message in messages]))
        return messages

    def is_beat_due(self) -> bool:
        """Whether it is time for a sign of life, by which later steps hear of checkpoints while nothing comes."""
        now = time.monotonic()
        due = now - self._beat_s >= BEAT_S
        if due:
            self._beat_s = now
        return due

    def notice(self) -> Callable[[], None] | None:
        """A finalizer for the bundle at work; now and then only, as Beam keeps a bundle's steps until it is called."""
        now = time.monotonic()
        if now - self._told_s < NOTICE_S:
            return None
        self._told_s = now
        return self._covered.notice(self._number)

    def decode(self, messages: list[Message]) -> Piece:
        """The valid events, and letters of the others."""
        app = self._worker.app
        taken = take_events(self._worker.plan, self._intake, messages)
        piece = Piece(taken.block, received=taken.events)
        for one in taken.refused:
            piece.refuse(one.reason, dead_letter(app, one.message(messages), one.reason, one.detail))
        return piece

    def _acknowledge(self, number: int) -> None:
        ack_ids: list[str] = []
        with self._lock:
            while self._waiting and self._waiting[0][0] <= number:
                ack_ids += self._waiting.popleft()[1]
        if ack_ids:
            self._subscriber.acknowledge(ack_ids)

    def _is_draining(self) -> bool:
        now = time.monotonic()
        if now - self._looked_s >= BEAT_S / 2:
            self._looked_s, self._draining = now, self._drain.exists()
        return self._draining


DRAIN_FILE = "draining"
"""While the archive's folder has it, nothing is pulled."""

_WORKERS: dict[ClusterJob, Worker] = {}
_OPENING = threading.Lock()


def load_machine_code(app: App, plan: Plan) -> None:
    """Compile or load what the steps of an app call (seconds); a process that is forked afterwards has it."""
    warm_up(plan)
    event = {"event_type": [app.predict_on.name], "event_id": [""], "event_time": pa.array([0])}
    block = to_block(app, pa.table(event))
    Deduplication(app, 1).fold(Piece(block))
    for stage in plan.stages:
        hashes_of(stage.key, block)


def steps_of(app: App, settings: JobSettings) -> tuple[list[str], list[str]]:
    """Names of the steps with memory before the predictions and behind them."""
    before = ["deduplicate", *(f"stage {number}" for number in range(len(make_plan(app).stages)))]
    collects = settings.collect or not app.models
    return before, [] if collects else [f"reactions {number}" for number in range(len(reaction_stages(app)) - 1)]


def worker_of(job: ClusterJob) -> Worker:
    """The worker of this job in this process."""
    with _OPENING:
        if job not in _WORKERS:
            _WORKERS[job] = Worker(job)
        return _WORKERS[job]
