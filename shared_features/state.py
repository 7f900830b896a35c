"""The state of one shard of a keyed stage, and its encoding on disk (version 3, see docs/state.md).

What is saved is the set of retained events per key and group of tracks, the greatest event time per key and the next
position. Edges and sums of windows are derived and rebuilt, so that the encoding does not know of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.errors import HistoryError
from shared_features.interning import Interner
from shared_features.layout import HOLE, IDENTITY, TIME, VALUE
from shared_features.partitions import PARTITIONS, Partition, deal, run_all, side_by_side
from shared_features.plan import Stage
from shared_features.retained import Answers, Rows
from shared_features.slots import IntegerSlots, TextSlots

ENCODING_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
_FIRST_SLOTS = 16
_PIECE_EVENTS = 1 << 17
_IDENTITY_FLIP = np.int64(-(2**63))


def flip_identities(identities: np.ndarray) -> np.ndarray:
    """Between uint64 identities and int64 of the same order; its own inverse but for the type."""
    if identities.dtype == np.uint64:
        return identities.view(np.int64) ^ _IDENTITY_FLIP
    flipped: np.ndarray = (identities ^ _IDENTITY_FLIP).view(np.uint64)
    return flipped


class StageState:
    """State of one shard of a stage. Not thread-safe; `kernel.step` changes it in place.

    Args:
        stage: what the stage computes.
        epoch, shard: part of the position of every row folded here (contract C1).

    Attributes:
        position: the one that the next row gets.
        outputs: of the stage, in the order in which the compiled pass numbers them, with their tracks and interners.
        missing: rows so far of the key's event types whose key was null; they passed the stage with nulls.
    """

    def __init__(self, stage: Stage, *, epoch: int = 0, shard: int = 0) -> None:
        self.stage, self.epoch, self.shard = stage, epoch, shard
        self.position = 0
        self.missing = 0
        self.slots = TextSlots() if stage.key.dtype == "string" else IntegerSlots()
        self.interners = [Interner() if track.encoding == "interned" else None for track in stage.tracks]
        pairs = zip(stage.tracks, self.interners, strict=True)
        self.outputs = [(track, interner, output) for track, interner in pairs for output in track.outputs]
        self.partitions = [Partition(stage) for _ in range(PARTITIONS)]
        self._capacity = 0
        self._grow(_FIRST_SLOTS)

    def slots_of(self, keys: pa.Array) -> np.ndarray:
        """The slot of each key, new ones made, -1 for null; int64, shape [rows]."""
        slots = self.slots.of(keys)
        if len(self.slots) > self._capacity:
            self._grow(len(self.slots) + (len(self.slots) >> 1))
        return slots

    def warm_up(self) -> None:
        """Compile what `run` calls."""
        self.partitions[0].warm_up()

    def run(self, slots: np.ndarray, rows: Rows, answers: Answers) -> None:
        """Fold and answer a block; ``rows.slots`` are the slots within their partitions."""
        run_all(self.partitions, slots, rows, answers)

    def release_strings(self) -> None:
        """Forget strings that no retained event holds, where there are many of them."""
        for number, group in enumerate(self.stage.groups):
            for lane, interner in enumerate(self.interners[track] for track in group.numbers):
                if interner is not None and interner.is_full:
                    slots = len(self.partitions[0].newest)
                    held = [one.groups[number].held(0, slots)[1][:, VALUE + lane] for one in self.partitions]
                    codes = np.concatenate(held)
                    interner.release(codes[codes != HOLE])

    def _grow(self, slots: int) -> None:
        each = -(-slots // PARTITIONS)
        for partition in self.partitions:
            partition.grow(each)
        self._capacity = each * PARTITIONS

    @property
    def keys(self) -> int:
        """Number of keys seen."""
        return len(self.slots)

    @property
    def retained(self) -> int:
        """Events held, over all keys and groups of tracks."""
        return sum(partition.retained for partition in self.partitions)

    @property
    def nbytes(self) -> int:
        """Bytes held, without the keys themselves and the strings of tracks."""
        return sum(partition.nbytes for partition in self.partitions)

    def save(self) -> bytes:
        """What `write` writes."""
        sink = pa.BufferOutputStream()
        self.write(sink)
        return bytes(sink.getvalue())

    def write(self, sink: Any) -> None:
        """Write the state as Arrow IPC streams, one after the other (see docs/state.md), some megabytes at a time.

        Args:
            sink: a file that bytes are written to; it is not closed.
        """
        keys = self.slots.keys()
        header = {
            "encoding_version": ENCODING_VERSION,
            "stage": self.stage.name,
            "epoch": self.epoch,
            "shard": self.shard,
            "position": self.position,
            "missing": self.missing,
            "tracks": [track.name for track in self.stage.tracks],
        }
        newest = np.empty(len(keys), np.int64)
        for p, partition in enumerate(self.partitions):
            newest[p::PARTITIONS] = partition.newest[: len(newest[p::PARTITIONS])]
        table = pa.table({"key": keys, "newest_us": newest})
        metadata = {"sameriver.state": json.dumps(header, sort_keys=True)}
        _write(sink, iter([table.replace_schema_metadata(metadata)]))
        for group in range(len(self.stage.groups)):
            _write(sink, self._pieces(group))

    def _pieces(self, group: int) -> Iterator[pa.Table]:
        """The retained events of a group, by slot: the slots of a piece hold some 100,000 events, or it is one slot."""
        lengths = np.zeros(len(self.slots), np.int64)
        for p, partition in enumerate(self.partitions):
            lengths[p::PARTITIONS] = partition.groups[group].lengths[: len(lengths[p::PARTITIONS])]
        pieces = np.cumsum(lengths) // _PIECE_EVENTS
        ends = [*(np.flatnonzero(np.diff(pieces)) + 1).tolist(), len(lengths)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            slots, events = self._events(group, begin, end)
            identities = flip_identities(events[:, IDENTITY])
            columns: dict[str, Any] = {"slot": slots, "time_us": events[:, TIME], "identity": identities}
            for lane, track in enumerate(self.stage.groups[group].numbers):
                interner, values = self.interners[track], events[:, VALUE + lane]
                known = values != HOLE
                if interner is None:
                    columns[f"value.{track}"] = pa.array(values, mask=None if known.all() else ~known)
                else:
                    columns[f"value.{track}"] = pa.array(interner.decode(values, known), pa.string(), mask=~known)
            yield pa.table(columns)

    def _events(self, group: int, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Retained events of a group in some slots, sorted by slot: slots, and rows of (time, identity, values)."""
        held = []
        for p, partition in enumerate(self.partitions):
            local, events = partition.groups[group].held(-(-(begin - p) // PARTITIONS), -(-(end - p) // PARTITIONS))
            held.append((local * PARTITIONS + p, events))
        slots = np.concatenate([slots for slots, _ in held])
        order = np.argsort(slots, kind="stable")
        return slots[order], np.ascontiguousarray(np.concatenate([events for _, events in held])[order])

    @classmethod
    def load(cls, stage: Stage, source: Any) -> StageState:
        """A state that `save` or `write` wrote, in this version or an earlier one.

        Args:
            stage: what the state is of.
            source: bytes, or a file that is read from where it stands.

        Raises:
            HistoryError: it is damaged, of another version, or of a stage with other tracks.
        """
        is_bytes = isinstance(source, bytes | memoryview | pa.Buffer)
        source = pa.BufferReader(source) if is_bytes else pa.PythonFile(source, mode="r")
        try:
            return cls._loaded(stage, source)
        except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
            raise HistoryError(f"state of stage {stage.name!r} cannot be read ({error}): restore another one") from None

    @classmethod
    def _loaded(cls, stage: Stage, source: Any) -> StageState:
        with pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        header = json.loads((table.schema.metadata or {})[b"sameriver.state"])
        expected = [track.name for track in stage.tracks]
        if header["encoding_version"] not in READABLE_VERSIONS or header["tracks"] != expected:
            raise HistoryError(
                f"state of stage {stage.name!r} has version {header['encoding_version']} and tracks "
                f"{header['tracks']}, wanted version {ENCODING_VERSION} and {expected}: rebuild it from the archive"
            )
        state = cls(stage, epoch=header["epoch"], shard=header["shard"])
        state.position, state.missing = header["position"], header.get("missing", 0)
        state.slots_of(table["key"].combine_chunks())
        newest = table["newest_us"].to_numpy()
        held = state._by_group(source) if header["encoding_version"] > 2 else state._by_track(source)
        restored = []
        for group, pieces in enumerate(held):
            dealt = state._dealt(pieces)
            restored += [partial(one.groups[group].restore, dealt[p]) for p, one in enumerate(state.partitions)]
        for p, partition in enumerate(state.partitions):
            own = newest[p::PARTITIONS]
            partition.newest[: len(own)] = own
        side_by_side(restored, True)
        return state

    def _by_group(self, source: Any) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """The saved events of each group, in pieces: slots, and rows of (time, identity, values)."""
        for group in self.stage.groups:
            with pa.ipc.open_stream(source) as reader:
                yield (self._decoded(group.numbers, batch) for batch in reader)

    def _by_track(self, source: Any) -> Iterator[Iterator[tuple[np.ndarray, np.ndarray]]]:
        """The same of versions 1 and 2, which had a stream for each track, with a column ``value``."""
        tracks = []
        for track in range(len(self.stage.tracks)):
            with pa.ipc.open_stream(source) as reader:
                columns = [column.combine_chunks() for column in reader.read_all().columns]
            names = ["slot", "time_us", "identity", f"value.{track}"]
            tracks.append(self._decoded([track], pa.RecordBatch.from_arrays(columns, names)))
        for group in self.stage.groups:
            yield iter([_together([tracks[track] for track in group.numbers])])

    def _dealt(self, pieces: Iterator[tuple[np.ndarray, np.ndarray]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Saved events of a group by partition: pieces of slots within it, and rows of (time, identity, values)."""
        dealt: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in self.partitions]
        for slots, events in pieces:
            for own, which in zip(dealt, deal(slots), strict=True):
                own.append((slots[which] // PARTITIONS, events[which]))
        return dealt

    def _decoded(self, tracks: Sequence[int], held: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Slots, and rows of (time, identity, values), of saved events."""
        columns = [held["time_us"].to_numpy(), flip_identities(held["identity"].to_numpy())]
        for track in tracks:
            interner, values = self.interners[track], held[f"value.{track}"]
            known = np.asarray(values.is_valid())
            codes = values.fill_null(HOLE).to_numpy() if interner is None else interner.encode(values, known)
            columns.append(np.where(known, codes, HOLE))
        return np.array(held["slot"]), np.column_stack(columns)


def _together(tracks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Slots and events of single tracks as those of the group that they form."""
    events = np.concatenate([np.column_stack([slots, events[:, :VALUE]]) for slots, events in tracks])
    distinct, where = np.unique(events, axis=0, return_inverse=True)
    together = np.full((len(distinct), VALUE + len(tracks)), HOLE, np.int64)
    together[:, :VALUE] = distinct[:, 1:]
    begin = 0
    for lane, (_, own) in enumerate(tracks):
        together[where[begin : begin + len(own)], VALUE + lane] = own[:, VALUE]
        begin += len(own)
    return distinct[:, 0].copy(), together


def _write(sink: Any, pieces: Iterator[pa.Table]) -> None:
    first = next(pieces)
    with pa.ipc.new_stream(sink, first.schema) as writer:
        for piece in chain([first], pieces):
            writer.write_table(piece)
