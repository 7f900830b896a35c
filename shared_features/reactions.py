"""Which reactions fire: conditions of one event, and keyed stages for those that remember what came before.

A reaction that remembers is folded like any other keyed stage, behind the predictions: rows that were predicted on
and have the key are numbered in the order in which they come, and what a row gives depends on the rows before it in
that order only. Batch replays it in the same order and gets the same (contract C1, C3). The definitions of the
options are in `shared_features.outcomes.Reaction`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
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

BYTES_PER_KEY = 400
"""About what one reaction remembers of one value of its key; the times of a rate limit add 32 bytes each."""

_NOTHING = object()


@dataclass(slots=True)
class _Memory:
    """What one reaction remembers of one value of its key.

    Attributes:
        newest_us: event time of the newest event that took part.
        on: of a hysteresis.
        value: of ``changes``, as it was last; `_NOTHING` before the first.
        fired_us: event times at which it fired and which a later event can still count.
    """

    newest_us: int
    on: bool = False
    value: Any = _NOTHING
    fired_us: deque[int] = field(default_factory=deque)


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
        self._memories: dict[str, dict[Any, _Memory]] = {one.name: {} for one in self.reactions}

    @property
    def name(self) -> str:
        """``<key>.reactions``: its columns are ``stage.<key>.reactions.epoch``, ``.shard`` and ``.position``."""
        return "" if self.key is None else f"{self.key.name}.reactions"

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return BYTES_PER_KEY * sum(map(len, self._memories.values()))

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
        values = keys.take(pa.array(rows)).to_pylist()
        times = evaluator.block_column("event_time", "timestamp").values[rows].tolist()
        for one in self.reactions:
            fires, started = np.zeros(evaluator.rows, np.bool_), np.zeros(evaluator.rows, np.bool_)
            fires[rows], started[rows] = self._fold_one(one, evaluator, rows, values, times)
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

    def _fold_one(
        self, one: Reaction, evaluator: Evaluator, rows: np.ndarray, keys: Sequence[Any], times: Sequence[int]
    ) -> tuple[list[bool], list[bool]]:
        """For each of the rows whether the reaction fires, and whether it is on afterwards."""
        memories = self._memories[one.name]
        when = _true(evaluator, one.when)[rows].tolist()
        until = None if one.until is None else _true(evaluator, one.until)[rows].tolist()
        changes = None if one.changes is None else evaluator.array(one.changes).take(pa.array(rows)).to_pylist()
        fires, started = [], []
        for row, (key, time_us) in enumerate(zip(keys, times, strict=True)):
            memory = memories.get(key)
            if memory is None:
                memory = memories[key] = _Memory(time_us)
            fired = False
            if time_us >= memory.newest_us:
                memory.newest_us = time_us
                fired = when[row] if until is None else _switch(memory, one.announce, when[row], until[row])
                fired = fired and (changes is None or _changed(memory, changes[row]))
                fired = fired and (one.at_most is None or _allowed(memory, time_us, one.at_most, one.every_us or 0))
            fires.append(fired)
            started.append(memory.on)
        return fires, started

    def save(self) -> list[bytes]:
        """What it remembers, as one Arrow IPC stream for each reaction; none without a key.

        Columns: ``key``; ``newest_us`` (int64), ``on`` (bool), ``value`` (of the type of ``changes``, null for none),
        ``fired_us`` (list of int64). The schema's metadata say whose it is and how many rows were numbered.
        """
        return [] if self.key is None else [self._saved(self.key, one) for one in self.reactions]

    def _saved(self, key: Key, one: Reaction) -> bytes:
        memories = self._memories[one.name]
        kept = list(memories.values())
        values = [None if memory.value is _NOTHING else memory.value for memory in kept]
        columns = {
            "key": pa.array(list(memories), ARROW_TYPES[key.dtype]),
            "newest_us": pa.array([memory.newest_us for memory in kept], pa.int64()),
            "on": pa.array([memory.on for memory in kept], pa.bool_()),
            "value": pa.array(values, pa.null() if one.changes is None else ARROW_TYPES[one.changes.dtype]),
            "fired_us": pa.array([list(memory.fired_us) for memory in kept], pa.list_(pa.int64())),
        }
        block = pa.RecordBatch.from_pydict(columns)
        return to_ipc(block.replace_schema_metadata({"reaction": self._whose(one), "position": str(self.position)}))

    def _whose(self, one: Reaction) -> str:
        """All that decides what is remembered."""
        return canonical([one.name, {**one.definition, "payload": {}}, self.epoch, self.shard])

    def load(self, saved: Sequence[bytes]) -> None:
        """Take over what `save` gave.

        Raises:
            HistoryError: it is of other reactions than these.
        """
        for one, data in zip(self.reactions if self.key is not None else (), saved, strict=True):
            block = from_ipc(data)
            metadata = block.schema.metadata or {}
            if metadata.get(b"reaction", b"").decode() != self._whose(one):
                raise HistoryError(f"what reaction {one.name!r} remembered is of another reaction")
            self.position = int(metadata[b"position"])
            self._memories[one.name] = {
                row["key"]: _Memory(
                    row["newest_us"],
                    row["on"],
                    _NOTHING if row["value"] is None else row["value"],
                    deque(row["fired_us"]),
                )
                for row in block.to_pylist()
            }


def _switch(memory: _Memory, announce: str, when: bool, until: bool) -> bool:
    """Hysteresis: whether this event switches it in a way that is announced."""
    switches = until if memory.on else when
    if not switches:
        return False
    memory.on = not memory.on
    return announce == "both" or announce == ("start" if memory.on else "end")


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


def reaction_stages(app: App) -> list[ReactionStage]:
    """The stages of an app's reactions, with nothing remembered: first the one without a key."""
    stages = [ReactionStage(app, None)]
    known = set()
    for one in app.reactions:
        if one.by is not None and one.by.name not in known:
            known.add(one.by.name)
            stages.append(ReactionStage(app, one.by))
    return stages
