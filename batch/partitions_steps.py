"""Folding a history shard by shard and bucket by bucket, through Beam, with state carried from bucket to bucket.

    splits ─> scatter ─┬───────────────────────────────> by shard ─> fold ─┬─> by shard ─> fold ─> … ─> ended rows
                       └─> identities ─> twice? ─> which ─┘ (left out)     └─> ended rows

Rows do not travel through the runner: a step writes them to files of a work folder (`batch.partitions_spill`) and
hands on where they are. So a shuffle costs one write and one read whatever the runner does with its elements, memory
holds one bucket of a shard, and a run that was cut off goes on: a split that is scattered and a bucket that is folded
are files, which the next run finds. All workers must see the folder.

Nothing is computed here: rows are put in order and handed to `shared_features.kernel.step`. The result depends on the
rows only, not on splits, shards, buckets or the runner (contract C3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from batch import runner
from batch.admission import admit, identities
from batch.lateness import Lateness, arriving
from batch.partitions import Place, columns_before, conformed, end_of, in_fold_order, route, without_key
from batch.partitions_beam import SideBySide, tagged
from batch.partitions_ended import Ended, Ending, Memory
from batch.partitions_spans import Before, IntoSpans, Tails, in_order, rows_of
from batch.partitions_spill import Spilled, Where, by_bucket, count, handed_on, read_piece, read_spill, write_spill
from batch.partitions_state import checkpoint_path, load_checkpoint, save_checkpoint
from batch.partitions_twice import IDENTITY_BOUNDS, FindRows, FindTwice, LeaveOut, identities_of
from batch.tables import read_split
from shared_features.app import App
from shared_features.compute import BLOCK_ROWS
from shared_features.kernel import finish, step
from shared_features.plan import Plan, Stage, make_plan
from shared_features.state import StageState
from streaming import coders

coders.register()

ADMITTED = "admitted"
"""Folder of the identities, times and epochs of all events, in Arrow IPC streams: where `Fold.keep_state`."""


@dataclass(frozen=True)
class Fold:
    """What one job folds.

    Attributes:
        app: the app.
        work: its work folder.
        columns: of events, carried from reading to the end.
        shards: into how many shards keys go.
        archived: whether rows carry the positions of a live job.
        ended: makes, in a worker, what takes the rows that have passed all stages.
        ending: event types whose rows it takes.
        token: by which progress is told, see `runner.watched`.
        keep_state: whether the states at the end are kept, and in `ADMITTED` the identities of all that was folded.
        keep_places: whether rows keep the places at which the stages folded them.
        lateness: delays of arrival for a history that has none.
        span: so many buckets of a shard are folded side by side with those that follow; None folds them in turn.
    """

    app: App
    work: str
    columns: tuple[str, ...]
    shards: int
    archived: bool
    ended: Callable[[Plan], Ended]
    ending: tuple[str, ...]
    token: str = ""
    keep_state: bool = False
    keep_places: bool = True
    lateness: Lateness | None = None
    span: int | None = None


class Scatter(SideBySide):
    """Split (bytes) → where its rows are, by step and shard; its sorted identities, by shard of these."""

    def __init__(self, fold: Fold) -> None:
        self._fold = fold

    def prepare(self) -> None:
        self._plan = make_plan(self._fold.app)

    def work(self, element: bytes) -> Iterator[Any]:
        name = hashlib.blake2b(element, digest_size=12).hexdigest()
        path = Path(self._fold.work, "rows", f"{name}.arrow")
        spilled = read_spill(path)
        if spilled is None:
            counts: dict[str, int] = {}
            spilled = write_spill(path, self._scattered(element, identities_of(path), counts), counts)
        runner.report(self._fold.token, spilled.counts.get("events.read", 0), "read")
        yield from outputs(spilled)
        if not self._fold.archived and spilled.pieces:
            found = np.memmap(identities_of(path), np.uint64, "r")
            bounds = np.searchsorted(found, IDENTITY_BOUNDS).tolist()
            for shard, (begin, end) in enumerate(zip([0, *bounds], [*bounds, len(found)], strict=True)):
                yield tagged("identities", (shard, (str(path), begin, end)))
            yield tagged("scattered", str(path))

    def _scattered(self, split: bytes, known: Path, counts: dict[str, int]) -> Iterator[tuple[Place, pa.RecordBatch]]:
        hashes, kept = [np.empty(0, np.uint64)], list[pa.RecordBatch]()
        for block in read_split(split):
            block = block if self._fold.lateness is None else arriving(block, self._fold.lateness)
            admitted, left_out = admit(self._plan, block)
            unpublished = admitted.column("publish_time").null_count
            count(counts, {"events.read": block.num_rows, "events.unpublished": unpublished})
            count(counts, {"events.published": admitted.num_rows - unpublished, **without_key(self._plan, admitted)})
            count(counts, {f"left_out.{reason}": number for reason, number in left_out.items()})
            stages = [name for name in admitted.schema.names if name.startswith("stage.")]
            admitted = admitted.select([*columns_before(self._plan, 0, self._fold.columns), *stages])
            if not self._fold.archived:
                hashes.append(identities(admitted))
            if self._fold.keep_state:
                kept.append(_identified(admitted))
            yield from route(self._plan, admitted, -1, self._fold.shards, self._fold.ending)
        if not self._fold.archived:
            known.parent.mkdir(parents=True, exist_ok=True)
            np.sort(np.concatenate(hashes)).tofile(known)
        if kept:
            path = Path(self._fold.work, ADMITTED, f"{known.stem}.arrow")
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, kept[0].schema) as writer:
                for block in kept:
                    writer.write_batch(block)


class FoldShard(SideBySide):
    """Where all rows of one shard of a step are → where they are for later steps, folded; the others have ended.

    A span of a shard comes with what was `Before`.
    """

    def __init__(self, fold: Fold, index: int) -> None:
        self._fold, self._index = fold, index

    def prepare(self) -> None:
        self._plan = make_plan(self._fold.app)
        stages = self._plan.stages
        self._stage: Stage | None = stages[self._index] if self._index < len(stages) else None
        self._columns = set(columns_before(self._plan, self._index, self._fold.columns))
        self._ended = self._fold.ended(self._plan)

    def teardown(self) -> None:
        super().teardown()
        self._ended.close()

    def work(self, element: tuple[int, Iterable[Where]] | tuple[int, Iterable[Where], Before]) -> Iterator[Any]:
        shard, wheres, *span = element
        before, pieces = span[0] if span else Before(0, "", 0), by_bucket(wheres)
        buckets = list(pieces)
        folded = [read_spill(self._path(shard, bucket)) for bucket in buckets]
        checkpoint = checkpoint_path(self._fold.work, self._index, shard, before.span if span else None)
        memory = self._ended.memory(shard)
        first, state = self._resumed(checkpoint, buckets, folded, memory, lambda: self._begun(shard, before))
        for number, bucket in enumerate(buckets):
            spilled = folded[number] if number < first else None
            if spilled is None:
                spilled = self._fold_bucket(shard, bucket, pieces[bucket], state, memory)
                if state is not None and (number + 1 < len(buckets) or self._fold.keep_state):
                    save_checkpoint(checkpoint, bucket, state, [] if memory is None else memory.save())
            name = "rows without a key" if self._stage is None else f"fold by {self._stage.name}"
            runner.report(self._fold.token, spilled.counts.get(_FOLDED, 0), name)
            yield from outputs(spilled)
        if not self._fold.keep_state:
            checkpoint.unlink(missing_ok=True)

    def _resumed(
        self,
        checkpoint: Path,
        buckets: list[int],
        folded: list[Spilled | None],
        memory: Memory | None,
        begin: Callable[[], StageState],
    ) -> tuple[int, StageState | None]:
        """How many buckets are done with, and the state after them."""
        done = folded.index(None) if None in folded else len(folded)
        if self._stage is None or (done == len(buckets) and not self._fold.keep_state):
            return done, None
        saved = load_checkpoint(checkpoint, self._stage)
        if saved is None or saved.bucket not in buckets[:done]:
            return 0, begin()
        if memory is not None:
            memory.load(saved.remembered)
        return buckets.index(saved.bucket) + 1, saved.state

    def _begun(self, shard: int, before: Before) -> StageState:
        """The state with which a shard, or a span of it, begins."""
        assert self._stage is not None
        state = StageState(self._stage, shard=shard)
        if before.file:
            block = rows_of(before.file)
            for start in range(0, block.num_rows, BLOCK_ROWS):
                _stepped(state, block.slice(start, BLOCK_ROWS))
            state.position = before.position
        return state

    def _path(self, shard: int, bucket: int) -> Path:
        return Path(self._fold.work, f"step-{self._index}", f"{shard}_{bucket}.arrow")

    def _fold_bucket(
        self, shard: int, bucket: int, wheres: list[Where], state: StageState | None, memory: Memory | None
    ) -> Spilled:
        counts: dict[str, int] = {}
        ending = self._ended.open(f"{self._index}_{shard}_{bucket}", memory)
        return write_spill(self._path(shard, bucket), self._folded(ending, wheres, state, counts), counts)

    def _folded(
        self, ending: Ending, wheres: list[Where], state: StageState | None, counts: dict[str, int]
    ) -> Iterator[tuple[Place, pa.RecordBatch]]:
        end = end_of(self._plan)
        block = in_fold_order(self._read(wheres), "" if self._stage is None else self._stage.name)
        for start in range(0, block.num_rows, BLOCK_ROWS):
            part = block.slice(start, BLOCK_ROWS)
            part = part if state is None else _stepped(state, part)
            for place, rows in route(self._plan, part, self._index, self._fold.shards, self._fold.ending):
                if place.step < end:
                    yield place, rows
                else:
                    yield from ending.write(finish(self._plan, conformed(self._plan, [rows], end)))
        count(counts, {_FOLDED: block.num_rows, **ending.close()})

    def _read(self, wheres: list[Where]) -> pa.RecordBatch:
        left_out: dict[tuple[str, int], list[bytes]] = {}
        for _, file, offset, _, rows in wheres:
            if rows:
                left_out.setdefault((file, offset), []).append(rows)
        blocks = []
        for _, file, offset, length, rows in wheres:
            if rows:
                continue
            block = self._needed(read_piece(file, offset, length))
            if (file, offset) in left_out:
                keep = np.ones(block.num_rows, np.bool_)
                keep[np.frombuffer(b"".join(left_out[file, offset]), np.int32)] = False
                block = block.filter(pa.array(keep))
            blocks.append(block)
        return conformed(self._plan, blocks, self._index)

    def _needed(self, block: pa.RecordBatch) -> pa.RecordBatch:
        """The columns that this step or a later one reads, and of places those to come, or all where they are kept."""
        later = () if self._stage is None else tuple(f"stage.{one.name}." for one in self._plan.stages[self._index :])
        kept = ("aggregate.", "stage.") if self._fold.keep_places else ("aggregate.", *later)
        return block.select([name for name in block.schema.names if name in self._columns or name.startswith(kept)])


class TailOfSpan(FoldShard):
    """Span of a shard, see `IntoSpans` → what of it those that follow can reach; of the last one nothing."""

    def work(self, element: Any) -> Iterator[Any]:
        shard, span, wheres, followed = element
        tail, rows = "", 0
        if followed:
            blocks = (self._read(some) for some in by_bucket(wheres).values())
            tail, rows = Tails(self._plan, self._index, self._fold.work).of_span(shard, span, blocks)
        yield shard, (span, wheres, tail, rows)


class BeforeSpans(beam.DoFn):
    """All spans of a shard, with their tails → each with what comes before it."""

    def __init__(self, fold: Fold, index: int) -> None:
        self._fold, self._index = fold, index

    def process(self, element: tuple[int, Iterable[tuple[int, list[Where], str, int]]]) -> Iterator[Any]:
        yield from in_order(Tails(make_plan(self._fold.app), self._index, self._fold.work), *element)


class Folded(beam.PTransform[Any, Any]):
    """Splits of a history → what was counted; rows that have passed all stages are given to `Fold.ended`.

    Args:
        fold: what is folded.
        then: makes the steps behind the end, of all that is handed on; what else was counted.
    """

    def __init__(self, fold: Fold, then: Callable[[Fold, Sequence[Any]], Sequence[Any]] | None = None) -> None:
        super().__init__()
        self._fold, self._then = fold, then

    def expand(self, splits: Any) -> Any:
        fold, plan = self._fold, make_plan(self._fold.app)
        scattered = splits | "scatter" >> typed(
            Scatter(fold), HANDED_ON, counts=COUNT, identities=tuple[int, tuple[str, int, int]], scattered=str
        )
        ways, counts = [scattered.main], [scattered.counts]
        if not fold.archived:
            twice = (
                scattered.identities
                | "by identity" >> beam.GroupByKey()
                | "come twice" >> beam.ParDo(FindTwice(fold.work)).with_output_types(str)
            )
            find, leave_out = FindRows(), LeaveOut(fold.app)  # type: ignore[no-untyped-call]
            others = (
                scattered.scattered
                | "which rows"
                >> beam.ParDo(find, beam.pvalue.AsList(twice)).with_output_types(tuple[int, pa.RecordBatch])
                | "rows by identity" >> beam.GroupByKey()
                | "all but the first" >> typed(leave_out, HANDED_ON, counts=COUNT)
            )
            ways.append(others.main)
            counts.append(others.counts)
        for index in range(end_of(plan) + 1):
            name = "ended" if index == end_of(plan) else plan.stages[index].name
            here = arrived(ways, index, name)
            if fold.span and index < end_of(plan) and not plan.stages[index].counts_events and not fold.keep_state:
                here = (
                    here
                    | f"spans of {name}" >> beam.ParDo(IntoSpans(fold.span))
                    | f"spread {name}" >> beam.Reshuffle()
                    | f"tails of {name}" >> beam.ParDo(TailOfSpan(fold, index)).with_output_types(tuple[int, Any])
                    | f"tails by {name}" >> beam.GroupByKey()
                    | f"before spans of {name}" >> beam.ParDo(BeforeSpans(fold, index))
                    | f"spread spans of {name}" >> beam.Reshuffle()
                )
            folded = here | f"fold by {name}" >> typed(FoldShard(fold, index), HANDED_ON, counts=COUNT)
            ways.append(folded.main)
            counts.append(folded.counts)
        if self._then is not None:
            counts += self._then(fold, ways)
        return counts | "all that was counted" >> beam.Flatten()


def arrived(ways: Sequence[Any], index: int, name: str) -> Any:
    """Of all that is handed on: what goes to one step, grouped by shard."""
    mine = [
        way | f"{number} to {name}" >> beam.ParDo(Of(index)).with_output_types(tuple[int, Where])
        for number, way in enumerate(ways)
    ]
    return mine | f"all to {name}" >> beam.Flatten() | f"by {name}" >> beam.GroupByKey()


class Of(beam.DoFn):
    """Of what is handed on: what goes to one step, by shard."""

    def __init__(self, index: int) -> None:
        self._index = index

    def process(self, element: tuple[int, tuple[int, Where]]) -> Iterator[tuple[int, Where]]:
        if element[0] == self._index:
            yield element[1]


_FOLDED = "steps.rows"
COUNT = tuple[str, int]
HANDED_ON = tuple[int, tuple[int, Where]]


def typed(function: beam.DoFn, main: Any, **tags: Any) -> Any:
    """ParDo with its outputs typed, so that each has an explicit coder."""
    return beam.ParDo(function).with_output_types(main, **tags).with_outputs(*tags, main="main")


def outputs(spilled: Spilled) -> Iterator[Any]:
    """What a step hands on, and what it counted."""
    for piece in spilled.pieces:
        yield handed_on(piece)
    for item in spilled.counts.items():
        yield tagged("counts", item)


def _identified(block: pa.RecordBatch) -> pa.RecordBatch:
    """Identity and time of each row, and the epochs in which an archive has them."""
    names = ["event_type", "event_id", "event_time"]
    return block.select([*names, *(name for name in block.schema.names if name.endswith(".epoch"))])


def _stepped(state: StageState, block: pa.RecordBatch) -> pa.RecordBatch:
    """One step of the kernel; rows of an archive keep the positions that they have."""
    prefix = f"stage.{state.stage.name}."
    given = {name: block.column(name) for name in block.schema.names if name.startswith(prefix)}
    done = step(state, block.drop_columns(list(given)) if given else block)
    for name, column in given.items():
        done = done.set_column(done.schema.get_field_index(name), name, column)
    return done
