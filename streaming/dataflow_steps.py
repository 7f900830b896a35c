"""The steps of the job on Dataflow: what `streaming.stages` does in one process, shard by shard in the runner's state.

They hold no arithmetic, and nothing alive: a step is made of the job's description, in bytes, and small numbers. What
computes and remembers is the code that every other job calls too (`streaming.folders`, `shared_features.kernel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import BytesCoder, Coder
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.metrics import Metrics
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MAX_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from shared_features.app import App, Rule
from shared_features.columns import Evaluator, is_one_of
from shared_features.kernel import finish
from shared_features.plan import Plan, make_plan
from shared_features.reactions import reaction_stages
from streaming import results
from streaming.folders import Deduplication, Keyed, Reacting, hashes_of
from streaming.job import JobSettings, connect_externals, connect_models, open_intake
from streaming.job_description import read_description
from streaming.keyed_state import Cells, LiveStates
from streaming.naming import topics_of
from streaming.outgoing import dead_letter, outgoing, row_letter
from streaming.pieces import Outbox, Piece
from streaming.routes import RoutedModel
from streaming.stages import take_events
from streaming.topics import Message

HELD_BYTES = 16 << 20
"""Messages of a bundle are decoded together up to so many bytes."""

ONCE = "once"


@dataclass(frozen=True)
class KeyedStep:
    """A step that remembers.

    Attributes:
        name: of the step: `ONCE`, a stage's, or that of reactions by a key.
        hashes: of each row, by which it goes to a shard; uint64.
        folder: of a shard's number, what folds its rows; see `streaming.keyed_state.Folder`.
    """

    name: str
    hashes: Callable[[pa.RecordBatch], np.ndarray]
    folder: Callable[[int], Any]


@dataclass(frozen=True)
class Described:
    """A job as its description says, in one process."""

    app: App
    settings: JobSettings
    plan: Plan
    before: list[KeyedStep]
    after: list[KeyedStep]


def keyed_steps(app: App, plan: Plan, horizon_s: int) -> tuple[list[KeyedStep], list[KeyedStep]]:
    """The steps that remember, before and after prediction."""
    once = KeyedStep(ONCE, lambda block: Evaluator(block).identities(), lambda _: Deduplication(app, horizon_s))
    stages = [KeyedStep(stage.name, partial(hashes_of, stage.key), partial(Keyed, app, stage)) for stage in plan.stages]
    reactions = [
        KeyedStep(f"{stage.key.name} for reactions", partial(hashes_of, stage.key), partial(Reacting, app, stage.key))
        for stage in reaction_stages(app)
        if stage.key is not None
    ]
    return [once, *stages], reactions


@lru_cache(maxsize=8)
def read_job(description: bytes) -> Described:
    """The job of a description; made once in each process."""
    app, settings = read_description(description)
    plan = make_plan(app)
    return Described(app, settings, plan, *keyed_steps(app, plan, settings.horizon_s))


class Step(beam.DoFn):
    """Is made of a description; what comes of it is there after `setup`."""

    def __init__(self, description: bytes) -> None:
        self._description = description

    def setup(self) -> None:
        self.job = read_job(self._description)


class Sending(Step):
    """Sends pieces to the shards of the next step that remembers, together at the bundle's end.

    Args:
        before, number: the step that pieces go to, among those before prediction or those after it.
        shards: of that step.
    """

    def __init__(self, description: bytes, before: bool, number: int, shards: int) -> None:
        super().__init__(description)
        self._before, self._number, self._shards = before, number, shards

    def setup(self) -> None:
        super().setup()
        steps = self.job.before if self._before else self.job.after
        self._next = steps[self._number] if self._number < len(steps) else None
        self._step = steps[self._number - 1] if self._number else None

    def start_bundle(self) -> None:
        self._outbox, self._oldest = Outbox(), MAX_TIMESTAMP

    def send(self, piece: Piece, timestamp: Any) -> None:
        """Keep a piece until the bundle ends."""
        self._oldest = min(self._oldest, timestamp)
        if self._next is None or not piece.rows:
            self._outbox.put(piece)
        else:
            assert piece.block is not None
            self._outbox.put(piece, self._next.hashes(piece.block), self._shards)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for element in self._outbox.empty():
            yield WindowedValue(element, self._oldest, (GlobalWindow(),))


class Decode(Sending):
    """Messages -> rows, validated and in range; what is refused travels with them as dead letters."""

    def __init__(self, description: bytes, shards: int) -> None:
        super().__init__(description, before=True, number=0, shards=shards)

    def setup(self) -> None:
        super().setup()
        app, settings = self.job.app, self.job.settings
        self._externals = connect_externals(app, settings)
        self._intake = open_intake(app, settings, self._externals)

    def teardown(self) -> None:
        if self._externals is not None:
            self._externals.close()

    def start_bundle(self) -> None:
        super().start_bundle()
        self._held: list[Message] = []
        self._bytes = 0

    def process(self, element: PubsubMessage, timestamp: Any = beam.DoFn.TimestampParam) -> None:
        self._oldest = min(self._oldest, timestamp)
        self._held.append(received(element, timestamp))
        self._bytes += len(self._held[-1].data)
        if self._bytes > HELD_BYTES or len(self._held) >= self.job.settings.max_messages:
            self._take()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        self._take()
        yield from super().finish_bundle()

    def _take(self) -> None:
        messages, self._held, self._bytes = self._held, [], 0
        if not messages:
            return
        taken = take_events(self.job.plan, self._intake, messages)
        piece = Piece(taken.block, received=taken.events)
        for one in taken.refused:
            piece.refuse(one.reason, dead_letter(self.job.app, one.message(messages), one.reason, one.detail))
        self.send(piece, self._oldest)


def received(message: PubsubMessage, timestamp: Any) -> Message:
    """A message of Beam's as ours; an element's time is its publish time, where the source names no attribute."""
    published = message.publish_time
    publish_time_us = timestamp.micros if published is None else round(published.timestamp() * 1e6)
    return Message(
        message.data or b"",
        message.attributes or {},
        message.message_id or "",
        publish_time_us,
        ordering_key=message.ordering_key or "",
    )


_LIVE: dict[tuple[bytes, str], LiveStates[Any]] = {}


class Folding(Sending):
    """One step that remembers: folds the pieces of a shard in the order in which they come.

    The shard is the element's key, so that the runner gives all of it to one thread at a time, with its state.
    """

    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    BASE = BagStateSpec("base", BytesCoder())
    JOURNAL = BagStateSpec("journal", BytesCoder())

    def setup(self) -> None:
        super().setup()
        assert self._step is not None
        self._live = _LIVE.setdefault((self._description, self._step.name), LiveStates())

    def process(
        self,
        element: tuple[int, Piece],
        head: Any = beam.DoFn.StateParam(HEAD),  # noqa: B008
        base: Any = beam.DoFn.StateParam(BASE),  # noqa: B008
        journal: Any = beam.DoFn.StateParam(JOURNAL),  # noqa: B008
        timestamp: Any = beam.DoFn.TimestampParam,
    ) -> None:
        shard, piece = element
        if piece.rows:
            assert self._step is not None
            assert piece.block is not None
            cells, block = Cells(head, base, journal), piece.block
            state, known = self._live.take(shard, cells, self._step.folder(shard))
            piece = state.fold(piece)
            self._live.put(shard, cells, known, state, block)
        self.send(piece, timestamp)


class Predict(Sending):
    """Aggregates become features, and features predictions; reactions without memory fire."""

    def __init__(self, description: bytes, shards: int) -> None:
        super().__init__(description, before=False, number=0, shards=shards)

    def setup(self) -> None:
        super().setup()
        self._models = connect_models(self.job.app, self.job.settings)

    def teardown(self) -> None:
        for model in self._models.values():
            model.close()

    def process(self, element: tuple[int, Piece], timestamp: Any = beam.DoFn.TimestampParam) -> None:
        _, piece = element
        if piece.rows:
            piece = piece.with_block(with_results(self.job, piece.block, self._models))
            assert piece.block is not None
            failed = np.flatnonzero(is_one_of(piece.block.column("outcome"), results.FAILED))
            for row in failed.tolist():
                detail = piece.block.column("failure")[row].as_py()
                piece.letters += row_letter(self.job.app, piece.block, row, results.FAILED, detail)
        self.send(piece, timestamp)


def with_results(job: Described, block: pa.RecordBatch, models: dict[str, RoutedModel] | None) -> pa.RecordBatch:
    """Folded rows with features, and with what becomes of them.

    Args:
        models: those that a server holds; None answers nothing, for blocks without rows.
    """
    app, block = job.app, finish(job.plan, block)
    first = reaction_stages(app)[:1]
    if job.settings.collect or not app.models:
        return results.with_results(app, block, None, first)
    rows, answers = results.asked_rows(app, block), {}
    for model in app.models:
        if isinstance(model, Rule):
            answers[model.name] = results.apply_rule(app, model, block)
        elif len(rows) and models is not None:
            features = results.feature_block(app, block, rows)
            asked = models[model.name].predict(features, partial(results.key_values, app, block, rows))
            answers[model.name] = asked.result()
        else:
            answers[model.name] = results.Answer({name: np.zeros(0) for name in model.outputs}, {}, 0)
    return results.with_results(app, block, answers, first)


class Publish(Step):
    """Committed pieces -> messages, each to the output of its topic; counts what has ended."""

    def process(self, element: Piece) -> Iterator[TaggedOutput[Any, PubsubMessage]]:
        app, settings, block = self.job.app, self.job.settings, element.block
        sent = {}
        if element.rows:
            assert block is not None
            sent = outgoing(app, block, with_features=settings.with_features, as_blocks=settings.prediction_blocks)
            for outcome, count in results.count_outcomes(block).items():
                _count(outcome, count)
        if element.letters:
            sent[topics_of(app)["dead-letters"]] = element.letters
        _count("received", element.received)
        _count("duplicates", element.duplicates)
        for reason, count in element.dead_letters.items():
            _count(f"dead_letters.{reason}", count)
        for topic, messages in sent.items():
            for message in messages:
                yield TaggedOutput(topic, PubsubMessage(message.data, dict(message.attributes)))


def _count(name: str, count: int) -> None:
    if count:
        Metrics.counter("sameriver", name).inc(count)


class Rows(Step):
    """Committed pieces -> their rows."""

    def process(self, element: Piece) -> Iterator[pa.RecordBatch]:
        if element.rows:
            assert element.block is not None
            yield element.block


class PubsubMessageCoder(Coder):
    """Pub/Sub's own protocol buffer; Beam has none for its class, and would pickle it."""

    def encode(self, value: PubsubMessage) -> bytes:
        return bytes(value._to_proto_str())

    def decode(self, encoded: bytes) -> PubsubMessage:
        return PubsubMessage._from_proto_str(encoded)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[PubsubMessage]:
        return PubsubMessage


beam.coders.registry.register_coder(PubsubMessage, PubsubMessageCoder)


def topics(app: App) -> Sequence[str]:
    """The topics that the job publishes to."""
    return [topic for role, topic in topics_of(app).items() if role != "events"]
