"""The steps of a job on a cluster, and the graph that they make.

    impulse ─> pull, decode ─> by identity ─> by key 1 ─> … ─> by key n, predict ─> reactions by key … ─> archive
                               deduplicate    fold             fold                 fold, publish

Between two steps rows go to the worker that owns the shard of their next key. Each step that remembers keeps its state
in the runner's (`streaming.keyed_state`). The source is Flink's own clock and not a splittable DoFn: each deferral of
one leaves 6 KB in the job server's state for ever (https://github.com/apache/beam/issues/27648).
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.io.flink.flink_streaming_impulse_source import FlinkStreamingImpulseSource
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from shared_features.app import App
from shared_features.kernel import finish
from streaming.cluster_worker import NOTICE_S, ClusterJob, Worker, steps_of, worker_of
from streaming.job import JobSettings
from streaming.key_groups import shard_number
from streaming.keyed_state import Cells
from streaming.pieces import Outbox, Piece, decode_piece, encode_piece
from streaming.results import Answer
from streaming.source import portions

IMPULSE_MS = 50
ARCHIVE = b"archive"
Keyed = tuple[bytes, Piece]


class _Step(beam.DoFn):
    """A step that sends on what a bundle has made at the bundle's end.

    Args:
        job: what it is a step of.
        following: name of the step that gets it.
    """

    def __init__(self, job: ClusterJob, following: str) -> None:
        self.job, self.following = job, following

    def setup(self) -> None:
        self.worker: Worker = worker_of(self.job)

    def start_bundle(self) -> None:
        self.outbox = Outbox()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        ends = self.following == "archive"
        for shard, piece in self.outbox.empty():
            name = ARCHIVE if ends else self.worker.names[shard]
            yield GlobalWindows.windowed_value((name, self.worker.ended(piece) if ends else piece))

    def send(self, piece: Piece) -> None:
        """Put a piece into the outbox, rows by the key of the following step."""
        if self.following == "archive":
            self.outbox.put(piece)
        elif piece.block is None or not piece.block.num_rows:
            self.outbox.put(piece.with_block(None))
        else:
            self.outbox.put(piece, self.worker.hashes(self.following, piece.block), self.job.shards)


class Pull(_Step):
    """Flink's clock -> events: validated, in range."""

    def process(self, element: bytes, finalizer: Any = beam.DoFn.BundleFinalizerParam) -> None:  # noqa: ARG002
        source = self.worker.source
        for part in portions(source.pull()):
            self.send(source.decode(part))
        if source.is_beat_due():
            self.send(Piece())
        notice = source.notice()
        if notice is not None:
            finalizer.register(notice)


class Fold(_Step):
    """One step with memory, shard by shard."""

    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    BASE = BagStateSpec("base", BytesCoder())
    JOURNAL = BagStateSpec("journal", BytesCoder())

    def __init__(self, job: ClusterJob, step: str, following: str) -> None:
        super().__init__(job, following)
        self.step = step

    def process(
        self,
        element: Keyed,
        head: Any = beam.DoFn.StateParam(HEAD),  # noqa: B008
        base: Any = beam.DoFn.StateParam(BASE),  # noqa: B008
        journal: Any = beam.DoFn.StateParam(JOURNAL),  # noqa: B008
    ) -> None:
        name, piece = element
        if piece.block is not None and piece.block.num_rows:
            shard, cells = shard_number(name), Cells(head, base, journal)
            states = self.worker.states(self.step)
            state, known = states.take(shard, cells, self.worker.folder(self.step, shard))
            folded = state.fold(piece)
            states.put(shard, cells, known, state, piece.block)
            piece = folded
        self.send(piece)


class FoldAndPredict(Fold):
    """The last step before predictions; all of a bundle are asked for at the same time."""

    def start_bundle(self) -> None:
        super().start_bundle()
        self._asked: list[tuple[Piece, dict[str, Future[Answer]] | None]] = []
        self._passing: list[Piece] = []

    def send(self, piece: Piece) -> None:
        if piece.block is None or not piece.block.num_rows:
            self._passing.append(piece.with_block(None))
            return
        piece = piece.with_block(finish(self.worker.plan, piece.block))
        self._asked.append((piece, self.worker.ask(piece.block)))

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for piece in self._passing:
            super().send(piece)
        for piece, asked in self._asked:
            super().send(piece.with_block(self.worker.answered(piece.block, asked)))
        yield from super().finish_bundle()


class ToArchive(beam.DoFn):
    """The last step: entries wait in the runner's state until a checkpoint holds them, then they are archived."""

    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    BAGS = (BagStateSpec("even", BytesCoder()), BagStateSpec("odd", BytesCoder()))

    def __init__(self, job: ClusterJob) -> None:
        self.job = job

    def setup(self) -> None:
        self.worker: Worker = worker_of(self.job)

    def process(
        self,
        element: Keyed,
        head: Any = beam.DoFn.StateParam(HEAD),  # noqa: B008
        even: Any = beam.DoFn.StateParam(BAGS[0]),  # noqa: B008
        odd: Any = beam.DoFn.StateParam(BAGS[1]),  # noqa: B008
        finalizer: Any = beam.DoFn.BundleFinalizerParam,
    ) -> None:
        data, piece, bags = head.read(), element[1], (even, odd)
        known: dict[str, Any] = {"newest": 0, "bag": 0, "ends": [0, 0]} if data is None else json.loads(data)
        live = self.worker.live_ledger(known.get("token"))
        if live is None:
            held = [] if data is None else [*even.read(), *odd.read()]
            entries = [(int.from_bytes(one[:8], "big"), decode_piece(one[8:])) for one in held]
            live = self.worker.open_ledger(entries, known["newest"])
        if not piece.is_empty:
            if not self.job.hold:
                self.worker.publish(None, piece.letters)
            other = 1 - known["bag"]
            if known["ends"][other] <= live.ledger.settled:  # all of it is final: the other bag takes the next entries
                bags[other].clear()
                known["bag"] = other
            number = live.ledger.take(piece)
            bags[known["bag"]].add(number.to_bytes(8, "big") + encode_piece(piece))
            known["newest"] = known["ends"][known["bag"]] = number
        if time.monotonic() - live.told_s >= NOTICE_S:
            live.told_s = time.monotonic()
            finalizer.register(live.covered.notice(live.ledger.newest))
        known["token"] = secrets.token_hex(16)
        head.write(json.dumps(known).encode("ascii"))
        self.worker.keep_ledger(known["token"], live)


def build_cluster(pipeline: beam.Pipeline, app: App, settings: JobSettings, job: ClusterJob) -> None:
    """Add the steps of a job to a pipeline; their names stay, since state is found by them."""
    before, behind = steps_of(app, settings)
    steps = [*before, *behind, "archive"]
    pieces = (
        pipeline
        | "Clock" >> FlinkStreamingImpulseSource().set_interval_ms(IMPULSE_MS)
        | "Pull" >> beam.ParDo(Pull(job, steps[0])).with_output_types(Keyed)
    )
    for step, following in itertools.pairwise(steps):
        make = FoldAndPredict if step == before[-1] else Fold
        pieces = pieces | step.capitalize() >> beam.ParDo(make(job, step, following)).with_output_types(Keyed)
    _ = pieces | "Archive" >> beam.ParDo(ToArchive(job))
