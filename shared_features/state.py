"""The state of one shard of a keyed stage, and its encoding on disk (version 1, see docs/state.md).

What is saved is the set of retained events per key and track, the greatest event time per key and the next
position. Edges and sums of windows are derived and rebuilt, so that the encoding does not know of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features import windows
from shared_features.errors import HistoryError
from shared_features.plan import Stage, Track

ENCODING_VERSION = 1
NEVER_US = -(2**62)
_FIRST_SLOTS = 16
_FIRST_ARENA = 256
_EXACT_ROWS = 256


class TrackState:
    """Retained events of one track: a range of the arena per slot, edges and sums per slot and window."""

    def __init__(self, track: Track) -> None:
        self.track = track
        count = len(track.windows)
        self.base, self.capacity = _int64(0), _int64(0)
        self.first, self.end, self.advanced = _int64(0), _int64(0), _int64(0)
        self.left, self.uppers, self.lowers = (np.zeros((0, count), np.int64) for _ in range(3))
        self.squares_high, self.squares_low = (np.zeros((0, count), np.uint64) for _ in range(2))
        self.times, self.values = _int64(_FIRST_ARENA), _int64(_FIRST_ARENA)
        self.identities = np.zeros(_FIRST_ARENA, np.uint64)
        self.used = _int64(1)
        self.exact = np.zeros((_EXACT_ROWS * len(track.outputs), 7), np.int64)
        self.exact_count = _int64(1)

    def grow_slots(self, slots: int) -> None:
        """Make arrays for ``slots`` slots; new ones are empty."""
        more = slots - len(self.base)
        for name in ("base", "capacity", "first", "end"):
            setattr(self, name, np.concatenate([getattr(self, name), _int64(more)]))
        self.advanced = np.concatenate([self.advanced, np.full(more, NEVER_US, np.int64)])
        for name in ("left", "uppers", "lowers", "squares_high", "squares_low"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((more, old.shape[1]), old.dtype)]))

    def make_room(self) -> None:
        """A bigger, or tidied, arena, after the pass stopped because it was full."""
        live = int((self.end - self.first).sum())
        room = live + (live >> 1) + 2 * len(self.base)
        size = max(_FIRST_ARENA, room + (room >> 1))
        target = (np.empty(size, np.int64), np.empty(size, np.uint64), np.empty(size, np.int64))
        source = (self.times, self.identities, self.values)
        self.used[0] = windows.move_arena(
            self.base, self.capacity, self.first, self.end, self.left, source, target
        )  # fmt: skip
        self.times, self.identities, self.values = target

    def restore(self, held: pa.Table) -> None:
        """Take over retained events (slot, time_us, identity, value), sorted by slot and then in order."""
        slots = held["slot"].to_numpy()
        lengths = np.bincount(slots, minlength=len(self.base)).astype(np.int64)
        self.times = held["time_us"].to_numpy().copy()
        self.identities = held["identity"].to_numpy().copy()
        self.values = held["value"].to_numpy().copy()
        self.base = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self.capacity, self.end = lengths.copy(), lengths.copy()
        self.used[0] = len(slots)
        windows.sum_all(
            self.end, self.base, self.track.arrays["w_sums"], self.values,
            self.uppers, self.lowers, self.squares_high, self.squares_low,
        )  # fmt: skip

    @property
    def retained(self) -> int:
        """Events held, over all keys."""
        return int((self.end - self.first).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the arena and the arrays per slot."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))


class StageState:
    """State of one shard of a stage. Not thread-safe; `kernel.step` changes it in place.

    Args:
        stage: what the stage computes.
        epoch, shard: part of the position of every row folded here (contract C1).
    """

    def __init__(self, stage: Stage, *, epoch: int = 0, shard: int = 0) -> None:
        self.stage, self.epoch, self.shard = stage, epoch, shard
        self.position = 0
        self.newest = np.full(0, NEVER_US, np.int64)
        self.tracks = [TrackState(track) for track in stage.tracks]
        self._slots: dict[Any, int] = {}
        self._grow(_FIRST_SLOTS)

    def slots_of(self, keys: Sequence[Any]) -> list[int]:
        """The slot of each key, new ones made; ``keys`` without repeats, a null gets -1."""
        slots = self._slots
        found = [-1 if key is None else slots.setdefault(key, len(slots)) for key in keys]
        if len(slots) > len(self.newest):
            self._grow(len(slots) + (len(slots) >> 1))
        return found

    def _grow(self, slots: int) -> None:
        self.newest = np.concatenate([self.newest, np.full(slots - len(self.newest), NEVER_US, np.int64)])
        for track in self.tracks:
            track.grow_slots(slots)

    @property
    def keys(self) -> int:
        """Number of keys seen."""
        return len(self._slots)

    @property
    def retained(self) -> int:
        """Events held, over all keys and tracks."""
        return sum(track.retained for track in self.tracks)

    @property
    def nbytes(self) -> int:
        """Bytes held, without the Python dictionary of keys."""
        return self.newest.nbytes + sum(track.nbytes for track in self.tracks)

    def save(self) -> bytes:
        """The state as an Arrow IPC stream of two or more tables (see docs/state.md); never pickle."""
        keys = list(self._slots)
        key_type = pa.string() if self.stage.key.dtype == "string" else pa.int64()
        header = {
            "encoding_version": ENCODING_VERSION,
            "stage": self.stage.name,
            "epoch": self.epoch,
            "shard": self.shard,
            "position": self.position,
            "tracks": [track.track.name for track in self.tracks],
        }
        sink = pa.BufferOutputStream()
        table = pa.table({"key": pa.array(keys, key_type), "newest_us": self.newest[: len(keys)]})
        table = table.replace_schema_metadata({"sameriver.state": json.dumps(header, sort_keys=True)})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        for track in self.tracks:
            lengths = (track.end - track.first)[: len(keys)]
            starts = (track.base + track.first)[: len(keys)]
            index = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths) if keys else _int64(0)
            index = index + np.arange(len(index))
            events = pa.table(
                {
                    "slot": np.repeat(np.arange(len(keys)), lengths),
                    "time_us": track.times[index],
                    "identity": track.identities[index],
                    "value": track.values[index],
                }
            )
            with pa.ipc.new_stream(sink, events.schema) as writer:
                writer.write_table(events)
        return bytes(sink.getvalue())

    @classmethod
    def load(cls, stage: Stage, data: bytes) -> StageState:
        """A state that `save` wrote.

        Raises:
            HistoryError: it is damaged, of another version, or of a stage with other tracks.
        """
        source = pa.BufferReader(data)
        try:
            with pa.ipc.open_stream(source) as reader:
                table = reader.read_all()
            header = json.loads((table.schema.metadata or {})[b"sameriver.state"])
            events = []
            for _ in header["tracks"]:
                with pa.ipc.open_stream(source) as reader:
                    events.append(reader.read_all())
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise HistoryError(f"state of stage {stage.name!r} cannot be read ({error}): restore another one") from None
        expected = [track.name for track in stage.tracks]
        if header["encoding_version"] != ENCODING_VERSION or header["tracks"] != expected:
            raise HistoryError(
                f"state of stage {stage.name!r} has version {header['encoding_version']} and tracks "
                f"{header['tracks']}, wanted version {ENCODING_VERSION} and {expected}: rebuild it from the archive"
            )
        state = cls(stage, epoch=header["epoch"], shard=header["shard"])
        state.position = header["position"]
        state.slots_of(table["key"].to_pylist())
        state.newest[: len(table)] = table["newest_us"].to_numpy()
        for track, held in zip(state.tracks, events, strict=True):
            track.restore(held)
        return state


def _int64(length: int) -> np.ndarray:
    return np.zeros(length, np.int64)
