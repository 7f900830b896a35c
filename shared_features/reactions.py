"""Which reactions fire: conditions of one event, and keyed stages for those that remember what came before.

A reaction that remembers is folded like any other keyed stage, behind the predictions: rows that were predicted on
and have the key are numbered in the order in which they come, and what a row gives depends on the rows before it in
that order only. Batch replays it in the same order and gets the same (contract C1, C3). The definitions of the
options are in `shared_features.outcomes.Reaction`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.app import App, Reaction
from shared_features.blocks import from_ipc, to_ipc
from shared_features.columns import ARROW_TYPES, Column, Evaluator
from shared_features.errors import HistoryError
from shared_features.expressions import Expression
from shared_features.fingerprint import canonical
from shared_features.kernel import key_column
from shared_features.keys import Key
from shared_features.order import in_order, switch
from shared_features.slots import IntegerSlots, TextSlots

BYTES_PER_KEY = 100
"""About what a stage remembers of one value of its key, once."""
BYTES_PER_MEMORY = 300
"""About what one reaction remembers of one value of its key, once its condition was true there; the times of a rate
limit add 32 bytes each."""

_NOTHING = object()
_NEVER_US = -(2**63)
_PLACE = ("epoch", "shard", "position")


@dataclass(slots=True)
class _Memory:
    """What one reaction remembers of one value of its key.

    Attributes:
        value: of ``changes``, as it was last; `_NOTHING` before the first.
        fired_us: event times at which it fired and which a later event can still count.
    """

    value: Any = _NOTHING
    fired_us: deque[int] = field(default_factory=deque)

    @property
    def is_of_use(self) -> bool:
        """Whether it says more than a new one."""
        return self.value is not _NOTHING or bool(self.fired_us)


class ReactionStage:
    """The reactions that remember by one key, with their memory; or, without a key, those that remember nothing.

    Args:
        app: its reactions.
        key: the key; None for the reactions that remember nothing.
        epoch, shard: what the rows are numbered under.
    """

    def __init__(self, app: App, key: Key | None, epoch: int = 0, shard: int = 0) -> None:
        name = None if key is None else key.name
        self.key, self.epoch, self.shard, self.position = key, epoch, shard, 0
        self.reactions = [one for one in app.reactions if (None if one.by is None else one.by.name) == name]
        self._slots = TextSlots() if key is None or key.dtype == "string" else IntegerSlots()
        self._newest_us = np.empty(0, np.int64)  # by slot: event time of the newest event that took part
        self._on = {one.name: np.empty(0, np.bool_) for one in self.reactions}  # by slot: where `until` is awaited
        self._memories: dict[str, dict[int, _Memory]] = {one.name: {} for one in self.reactions}  # by slot

    @property
    def name(self) -> str:
        """``<key>.reactions``: its columns are ``stage.<key>.reactions.epoch``, ``.shard`` and ``.position``."""
        return "" if self.key is None else f"{self.key.name}.reactions"

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return BYTES_PER_KEY * len(self._slots) + BYTES_PER_MEMORY * sum(map(len, self._memories.values()))

    @property
    def remembered(self) -> dict[str, int]:
        """For how many values of the key each reaction remembers something; none without a key."""
        if self.key is None:
            return {}
        return {
            name: len(memories.keys() | set(np.flatnonzero(self._on[name]).tolist()))
            for name, memories in self._memories.items()
        }

    def fold(self, evaluator: Evaluator, predicted: np.ndarray) -> dict[str, pa.Array]:
        """Fold a block in row order.

        Args:
            evaluator: of the block, knowing features and predictions.
            predicted: the rows that were predicted on; bool, shape [rows].

        Returns:
            ``reaction.<name>``: whether it fires; bool, never null. ``started.<name>`` for those with ``until``:
            whether it is on after the row; null where the row takes no part. For a key also the columns of its
            stage: int32, int32 and int64, null where the row takes no part.
        """
        if self.key is None:
            return {f"reaction.{one.name}": pa.array(_true(evaluator, one.when) & predicted) for one in self.reactions}
        keys = key_column(self.key, evaluator)
        takes_part = predicted & np.asarray(keys.is_valid())
        rows = np.flatnonzero(takes_part)
        found = self._numbered(takes_part, len(rows))
        slots = self._slots.of(keys.take(pa.array(rows)))
        times = evaluator.block_column("event_time", "timestamp").values[rows]
        ordered = self._in_order(slots, times)
        for one in self.reactions:
            fires, started = np.zeros(evaluator.rows, np.bool_), np.zeros(evaluator.rows, np.bool_)
            fires[rows], started[rows] = self._fold_one(one, evaluator, rows, slots, times, ordered)
            found[f"reaction.{one.name}"] = pa.array(fires)
            if one.until is not None:
                found[f"started.{one.name}"] = pa.array(started, mask=~takes_part)
        return found

    def _numbered(self, takes_part: np.ndarray, rows: int) -> dict[str, pa.Array]:
        first, self.position = self.position, self.position + rows
        mask, prefix = ~takes_part, f"stage.{self.name}."
        return {
            prefix + "epoch": pa.array(np.full(len(mask), self.epoch, np.int32), mask=mask),
            prefix + "shard": pa.array(np.full(len(mask), self.shard, np.int32), mask=mask),
            prefix + "position": pa.array(first + np.cumsum(takes_part) - 1, pa.int64(), mask=mask),
        }

    def _in_order(self, slots: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Which rows are not older than the newest one of their key that took part before them; bool [rows]."""
        more = len(self._slots) - len(self._newest_us)
        if more > 0:
            more += len(self._slots) >> 2
            self._newest_us = np.concatenate([self._newest_us, np.full(more, _NEVER_US, np.int64)])
            self._on = {name: np.concatenate([on, np.zeros(more, np.bool_)]) for name, on in self._on.items()}
        found = np.empty(len(slots), np.bool_)
        in_order(slots, times, self._newest_us, found)
        return found

    def _fold_one(
        self,
        one: Reaction,
        evaluator: Evaluator,
        rows: np.ndarray,
        slots: np.ndarray,
        times: np.ndarray,
        ordered: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each of the rows whether the reaction fires, and, with ``until``, whether it is on afterwards."""
        fires, started = ordered & _true(evaluator, one.when)[rows], np.zeros(len(rows), np.bool_)
        if one.until is not None:
            ends = ordered & _true(evaluator, one.until)[rows]
            switch(slots, fires, ends, self._on[one.name], started)
            if one.announce != "both":
                fires &= started if one.announce == "start" else ~started
        if one.changes is not None or one.at_most is not None:
            told, values = np.flatnonzero(fires), None
            if one.changes is not None:
                values = evaluator.array(one.changes).take(pa.array(rows[told])).to_pylist()
            fires[told] = self._may_fire(one, slots[told], times[told], values)
        return fires, started

    def _may_fire(
        self, one: Reaction, slots: np.ndarray, times: np.ndarray, values: Sequence[Any] | None
    ) -> list[bool]:
        """Which of the rows that would fire may: not the same value again, and no more than the rate allows."""
        memories, found = self._memories[one.name], []
        for place, (slot, time_us) in enumerate(zip(slots.tolist(), times.tolist(), strict=True)):
            memory = memories.pop(slot, None) or _Memory()
            fired = values is None or _changed(memory, values[place])
            found.append(fired and (one.at_most is None or _allowed(memory, time_us, one.at_most, one.every_us or 0)))
            if memory.is_of_use:
                memories[slot] = memory
        return found

    def save(self) -> list[bytes]:
        """What it remembers, as one Arrow IPC stream for each reaction; none without a key.

        Columns: ``key``; ``newest_us`` (int64), ``on`` (bool), ``value`` (of the type of ``changes``, null for none),
        ``fired_us`` (list of int64). The schema's metadata say whose it is and how many rows were numbered.
        """
        return [] if self.key is None else [self._saved(self.key, one) for one in self.reactions]

    def _saved(self, key: Key, one: Reaction) -> bytes:
        memories, nothing, slots = self._memories[one.name], _Memory(), len(self._slots)
        kept = [memories.get(slot, nothing) for slot in range(slots)]
        values = [None if memory.value is _NOTHING else memory.value for memory in kept]
        columns = {
            "key": self._slots.keys().cast(ARROW_TYPES[key.dtype]),
            "newest_us": pa.array(self._newest_us[:slots]),
            "on": pa.array(self._on[one.name][:slots]),
            "value": pa.array(values, pa.null() if one.changes is None else ARROW_TYPES[one.changes.dtype]),
            "fired_us": pa.array([list(memory.fired_us) for memory in kept], pa.list_(pa.int64())),
        }
        place = dict(zip(_PLACE, map(str, (self.epoch, self.shard, self.position)), strict=True))
        block = pa.RecordBatch.from_pydict(columns)
        return to_ipc(block.replace_schema_metadata({"reaction": _whose(one), **place}))

    def load(self, saved: Sequence[bytes]) -> None:
        """Take over what `save` gave, and go on where it was.

        Raises:
            HistoryError: it is of other reactions than these.
        """
        for one, block in zip(self.reactions if self.key is not None else (), map(from_ipc, saved), strict=True):
            metadata = block.schema.metadata or {}
            if metadata.get(b"reaction", b"").decode() != _whose(one):
                raise HistoryError(f"what reaction {one.name!r} remembered is of another reaction")
            self.epoch, self.shard, self.position = (int(metadata[name.encode()]) for name in _PLACE)
            self._remember(one, block)

    def take_over(self, saved: Iterable[bytes]) -> None:
        """Remember, too, what `save` gave of other values of the key, or in another job: positions stay as they are.

        What is of none of these reactions, as they are defined, is left out.
        """
        mine = {_whose(one): one for one in self.reactions if self.key is not None}
        for block in map(from_ipc, saved):
            one = mine.get((block.schema.metadata or {})[b"reaction"].decode())
            if one is not None:
                self._remember(one, block)

    def _remember(self, one: Reaction, block: pa.RecordBatch) -> None:
        slots = self._slots.of(block.column("key"))
        self._in_order(slots, block.column("newest_us").to_numpy().copy())
        self._on[one.name][slots] = block.column("on").to_numpy(zero_copy_only=False)
        remembered = (block.column(name).to_pylist() for name in ("value", "fired_us"))
        self._memories[one.name] |= {
            slot: _Memory(_NOTHING if value is None else value, deque(fired_us))
            for slot, value, fired_us in zip(slots.tolist(), *remembered, strict=True)
            if value is not None or fired_us
        }


def _whose(one: Reaction) -> str:
    """All that decides what is remembered."""
    return canonical([one.name, {**one.definition, "payload": {}}])


def _changed(memory: _Memory, value: Any) -> bool:
    """Whether the value is another than the last one; the first one is."""
    if value is None or (memory.value is not _NOTHING and value == memory.value):
        return False
    memory.value = value
    return True


def _allowed(memory: _Memory, time_us: int, at_most: int, every_us: int) -> bool:
    """Rate limit: whether fewer than ``at_most`` firings lie in (time − every, time]; if so, this is one more."""
    while memory.fired_us and memory.fired_us[0] <= time_us - every_us:
        memory.fired_us.popleft()
    if len(memory.fired_us) >= at_most:
        return False
    memory.fired_us.append(time_us)
    return True


def _true(evaluator: Evaluator, condition: Expression) -> np.ndarray:
    """Where a condition is true and not null; bool, shape [rows]."""
    column: Column = evaluator.column(condition)
    found: np.ndarray = column.values & column.valid
    return found


def reaction_stages(app: App, epoch: int = 0, shard: int = 0) -> list[ReactionStage]:
    """The stages of an app's reactions, with nothing remembered: first the one without a key.

    Args:
        epoch, shard: what rows are numbered under.
    """
    keys = {one.by.name: one.by for one in app.reactions if one.by is not None}
    return [ReactionStage(app, key, epoch, shard) for key in (None, *keys.values())]


def remembers(app: App) -> bool:
    """Whether some reaction asks what came before."""
    return any(one.by is not None for one in app.reactions)
