"""Lists of a fixed length, made of as many expressions."""

from __future__ import annotations

from collections.abc import Sequence

from shared_features.errors import DefinitionError
from shared_features.expressions import Expression


class Listed(Expression):
    """The values of several expressions of one dtype as one list of that length; its elements may be null."""

    def __init__(self, items: Sequence[Expression]) -> None:
        self.items = tuple(items)
        self.definition = ["list", *(item.definition for item in items)]
        if not items or len({item.dtype for item in items}) > 1:
            raise DefinitionError(f"list of {[item.dtype for item in items]}, wanted one or more values of one type")
        self.item_dtype = items[0].dtype
        self.dtype = "list"

    def parts(self) -> tuple[Expression, ...]:
        """The elements, first to last."""
        return self.items
