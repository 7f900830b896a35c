"""What `sameriver tune` may try: for each option of a model a list of values, or a range of numbers.

No part of the fingerprint: a model's features are the same, whatever its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shared_features.errors import DefinitionError


class Between:
    """A range of numbers that an option may be taken from: whole ones if both ends are.

    Args:
        low, high: ends of the range, both within it.
        log: try as many values between 0.001 and 0.01 as between 0.01 and 0.1; for numbers above 0.

    Raises:
        DefinitionError: ends that are no numbers or in the wrong order, or ``log`` from 0 or less.

    >>> Between(1e-4, 1e-2, log=True).definition
    {'low': 0.0001, 'high': 0.01, 'log': True}
    """

    def __init__(self, low: float, high: float, *, log: bool = False) -> None:
        numbers = all(type(end) in (int, float) for end in (low, high))
        if not numbers or not low < high or (log and low <= 0):
            raise DefinitionError(
                f"Between got {low!r}, {high!r}{', log=True' if log else ''}, wanted two numbers, the smaller one first"
                f"{' and above 0' if log else ''}"
            )
        self.low, self.high, self.log = low, high, log

    @property
    def definition(self) -> dict[str, Any]:
        """All that it says, as plain JSON values."""
        return {"low": self.low, "high": self.high, "log": self.log}


Space = Mapping[str, Between | Sequence[Any]]
"""Option to what may be tried."""


def space_definition(model: str, space: Space) -> dict[str, Any]:
    """The space as plain JSON values: a list of values or what `Between` says, by option.

    Raises:
        DefinitionError: an option has neither a range nor at least two values.

    >>> space_definition("deep", {"units": [[32], [64, 64]], "dropout": Between(0.0, 0.5)})
    {'units': [[32], [64, 64]], 'dropout': {'low': 0.0, 'high': 0.5, 'log': False}}
    """
    found: dict[str, Any] = {}
    for option, tried in space.items():
        if isinstance(tried, Between):
            found[option] = tried.definition
        elif isinstance(tried, list | tuple) and len(tried) > 1:
            found[option] = [list(one) if isinstance(one, tuple) else one for one in tried]
        else:
            raise DefinitionError(
                f"the space of model {model!r} got {tried!r} for {option!r}, wanted a list of two or more values, or "
                "Between(low, high)"
            )
    return found
