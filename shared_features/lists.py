"""Lists of a fixed length: ``last_values(value, n, …)`` as one feature of n values.

A list is never null itself, each of its places may be. In a block and in Parquet it is a fixed-size list; a model
takes it as one input of shape [rows, n]; where only single values can go (messages, a trainer's columns) it is
spread over n columns ``name[0]`` (the first) to ``name[n-1]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from shared_features.columns import ARROW_TYPES, Column, Evaluator, ListValues, all_valid
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression


class Listed(Expression):
    """The values of several expressions of one dtype as one list of that length; its elements may be null.

    Nothing but a feature can be a list: no operator and no aggregate takes one.
    """

    dtype = "list"

    def __init__(self, items: Sequence[Expression]) -> None:
        self.items = tuple(items)
        self.definition = ["list", *(item.definition for item in items)]
        if not items or len({item.dtype for item in items}) > 1 or items[0].dtype == "list":
            raise DefinitionError(f"list of {[item.dtype for item in items]}, wanted one or more values of one type")
        self.item_dtype = items[0].dtype

    @property
    def arrow_type(self) -> pa.DataType:
        """A fixed-size list."""
        return pa.list_(ARROW_TYPES[self.item_dtype], len(self.items))

    def parts(self) -> tuple[Expression, ...]:
        """The elements, first to last."""
        return self.items

    def evaluate(self, of: Evaluator) -> Column:
        """The elements' columns, side by side."""
        return Column(ListValues(self.item_dtype, tuple(of.column(item) for item in self.items)), all_valid(of.rows))


def place_names(name: str, kind: pa.DataType) -> list[str]:
    """The columns that a list ``name`` is spread over.

    >>> place_names("amounts", pa.list_(pa.float64(), 2))
    ['amounts[0]', 'amounts[1]']
    """
    return [f"{name}[{place}]" for place in range(kind.list_size)]


def places(array: pa.Array | pa.ChunkedArray) -> list[pa.Array | pa.ChunkedArray]:
    """The values at each place of a fixed-size list, shape [rows] each; null where the list is."""
    return [pc.list_element(array, place) for place in range(array.type.list_size)]


def spread(columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
    """Columns with each fixed-size list replaced by one column for each of its places."""
    found: dict[str, pa.Array] = {}
    for name, array in columns.items():
        if pa.types.is_fixed_size_list(array.type):
            found |= zip(place_names(name, array.type), places(array), strict=True)
        else:
            found[name] = array
    return found
