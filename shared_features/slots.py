"""Which slot of the state belongs to which key: a number per key, in the order in which keys are first seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.exact import compiled
from shared_features.machine_code import kept

_FEW_ROWS = 64
"""Up to here a dictionary of the block's keys costs more than it saves."""
_FIRST_CELLS = 64
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)


class TextSlots:
    """Slots of string keys."""

    def __init__(self) -> None:
        self._slots: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def keys(self) -> pa.Array:
        """The keys, in the order of their slots."""
        return pa.array(list(self._slots), pa.string())

    def of(self, keys: pa.Array) -> np.ndarray:
        """The slot of each key, new ones made, -1 for null; int64, shape [rows]."""
        if len(keys) <= _FEW_ROWS:
            return np.array(self._of(keys.to_pylist()), np.int64)
        encoded = keys.dictionary_encode()
        slot_of = np.array([*self._of(encoded.dictionary.to_pylist()), -1], np.int64)
        found: np.ndarray = slot_of[pc.fill_null(encoded.indices, len(slot_of) - 1).to_numpy()]
        return found

    def _of(self, keys: list[Any]) -> list[int]:
        slots = self._slots
        return [-1 if key is None else slots.setdefault(key, len(slots)) for key in keys]


class IntegerSlots:
    """Slots of int64 keys, in an open-addressing hash table."""

    def __init__(self) -> None:
        self._table = _free_cells(_FIRST_CELLS)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keys(self) -> pa.Array:
        """The keys, in the order of their slots."""
        held = self._table[self._table[:, 1] >= 0]
        keys = np.empty(self._count, np.int64)
        keys[held[:, 1]] = held[:, 0]
        return pa.array(keys)

    def of(self, keys: pa.Array) -> np.ndarray:
        """The slot of each key, new ones made, -1 for null; int64, shape [rows]."""
        valid = np.ones(len(keys), np.bool_) if keys.null_count == 0 else keys.is_valid().to_numpy(zero_copy_only=False)
        values = (keys if keys.null_count == 0 else keys.fill_null(0)).to_numpy().copy()
        slots = np.empty(len(keys), np.int64)
        row = 0
        while True:
            row, self._count = _find_slots(row, values, valid, self._table, self._count, slots)
            if row == len(keys):
                return slots
            table = _free_cells(4 * len(self._table))
            _move_slots(self._table, table)
            self._table = table


def _free_cells(count: int) -> np.ndarray:
    return np.full((count, 2), -1, np.int64)  # key, slot; a slot of -1 is a free cell


@compiled()
def _cell(table, key):  # type: ignore[no-untyped-def]
    mixed = np.uint64(key) * _MULTIPLIER
    mixed = (mixed ^ (mixed >> _SHIFT)) * _MULTIPLIER
    mask = len(table) - 1
    cell = np.int64(mixed >> _SHIFT) & mask
    while table[cell, 1] >= 0 and table[cell, 0] != key:
        cell = (cell + 1) & mask
    return cell


@kept("UniTuple(int64, 2)(int64, int64[::1], bool[::1], int64[:, ::1], int64, int64[::1])")
def _find_slots(start, keys, valid, table, count, slots):  # type: ignore[no-untyped-def]
    """Write the slot of each key from row ``start`` on, making new ones.

    Returns:
        The row at which the table became too full to go on, or the number of rows; and the number of keys.
    """
    for row in range(start, len(keys)):
        if 2 * count > len(table):
            return row, count
        if not valid[row]:
            slots[row] = -1
            continue
        cell = _cell(table, keys[row])
        if table[cell, 1] < 0:
            table[cell, 0], table[cell, 1] = keys[row], count
            count += 1
        slots[row] = table[cell, 1]
    return len(keys), count


@kept("void(int64[:, ::1], int64[:, ::1])")
def _move_slots(table, target):  # type: ignore[no-untyped-def]
    """Copy the cells in use into a greater table."""
    for i in range(len(table)):
        if table[i, 1] >= 0:
            cell = _cell(target, table[i, 0])
            target[cell, 0], target[cell, 1] = table[i, 0], table[i, 1]
