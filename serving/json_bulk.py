"""Many values of a JSON request at once: what is plainly right is taken over without a look at each.

What is not, is looked at value by value in `serving.rest_json`, which knows what to say of it. Both give the same.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from serving.wire import DataType

_INT32 = range(-(2**31), 2**31)
INTEGERS = {
    DataType.DT_INT32: _INT32, DataType.DT_INT16: _INT32, DataType.DT_INT8: _INT32, DataType.DT_UINT8: _INT32,
    DataType.DT_INT64: range(-(2**63), 2**63), DataType.DT_UINT32: range(2**32), DataType.DT_UINT64: range(2**64),
}  # fmt: skip
# Whole numbers above these and values beyond the range would lose precision.
DECIMALS = {
    DataType.DT_FLOAT: ("float", 2**24 - 1, float(np.finfo(np.float32).max)),
    DataType.DT_DOUBLE: ("double", 2**53 - 1, float(np.finfo(np.float64).max)),
}
_STRING, _BOOL = int(DataType.DT_STRING), int(DataType.DT_BOOL)
Elements = tuple[tuple[int, ...], list[Any]]


def elements(value: Any, dtype: int) -> Elements | None:
    """Shape and elements, row by row, of a list of lists; None if it has to be looked at."""
    if type(value) is not list:
        return None
    shape = [len(value)]
    flat = value
    while set(map(type, flat)) == {list}:
        sizes = set(map(len, flat))
        if len(sizes) != 1:
            return None
        shape += sizes
        flat = list(itertools.chain.from_iterable(flat))
    checked = _checked(flat, dtype)
    return None if checked is None else (tuple(shape), checked)


def columns(rows: list[Any], dtypes: dict[str, int]) -> dict[str, Elements] | None:
    """The same by name, of rows that are objects with these names or, for one name, plain values."""
    if type(rows[0]) is not dict:
        given = {next(iter(dtypes)): rows} if len(dtypes) == 1 else {}
    else:
        if "b64" in dtypes or not all(type(row) is dict and row.keys() == dtypes.keys() for row in rows):
            return None
        given = {name: [row[name] for row in rows] for name in dtypes}
    found = {name: elements(column, dtypes[name]) for name, column in given.items()}
    return {name: one for name, one in found.items() if one is not None} if found and all(found.values()) else None


def _checked(flat: list[Any], dtype: int) -> list[Any] | None:
    kinds = set(map(type, flat))
    if not kinds:
        return None
    if dtype in DECIMALS and kinds <= {float, int}:
        _, whole, largest = DECIMALS[dtype]
        if int in kinds and not all(-whole <= one <= whole for one in flat if type(one) is int):
            return None
        magnitudes = np.abs(np.array(flat, np.float64))
        return flat if bool(((magnitudes <= largest) | ~np.isfinite(magnitudes)).all()) else None
    if dtype in INTEGERS and kinds == {int}:
        return flat if min(flat) in INTEGERS[dtype] and max(flat) in INTEGERS[dtype] else None
    if dtype == _BOOL and kinds == {bool}:
        return flat
    if dtype == _STRING and kinds == {str}:
        return [one.encode("utf-8", "surrogatepass") for one in flat]
    return None
