"""Systems under test, and how an adapter becomes one: a function from a case to the values that it gives.

To put your own platform to the test, write such a function and add a `System` to `SYSTEMS`; see
benchmarks/skew/README.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.skew.cases import Case, Value

Adapter: TypeAlias = Callable[[Case], list[Value]]
"""From a case to one value per event, in the case's order; `NO_ANSWER` where the system gives none."""

Answers: TypeAlias = dict[str, "list[Value] | Exception"]
"""By the name of the case: the values, or what went wrong."""


@dataclass(frozen=True, slots=True)
class System:
    """One system under test; functions are named ``module:function`` and imported when they are run.

    Attributes:
        name: as tables show it.
        packages: Python packages whose versions belong to the result.
        batch, stream: an `Adapter`; ``stream`` is None for a system that computes over a finished table only.
        whole: the functions take all cases at once and return `Answers`, because a run is expensive.
        restarts: whether it has something that can be restarted and re-sharded.
    """

    name: str
    packages: tuple[str, ...]
    batch: str
    stream: str | None = None
    whole: bool = False
    restarts: bool = False

    def answers(self, function: str, cases: Sequence[Case]) -> Answers:
        """What ``batch`` or ``stream`` gives for each case; an adapter that raises has given no values."""
        module, _, name = function.partition(":")
        run = getattr(importlib.import_module(module), name)
        if self.whole:
            found: Answers = run(cases)
            return found
        return {case.name: _one(run, case) for case in cases}

    def applies(self, case: Case) -> bool:
        """Whether the system has a notion of what the case does."""
        return self.restarts or not case.actions


def _one(run: Adapter, case: Case) -> list[Value] | Exception:
    try:
        return run(case)
    except Exception as error:
        return error


_HERE = "benchmarks.skew"

SYSTEMS = (
    System(
        "Sameriver",
        ("sameriver", "apache-beam"),
        batch=f"{_HERE}.ours:batch",
        stream=f"{_HERE}.ours_stream:stream",
        whole=True,
        restarts=True,
    ),
    System("pandas", ("pandas",), batch=f"{_HERE}.adapters.with_pandas:rolling"),
    System("Polars", ("polars",), batch=f"{_HERE}.adapters.with_polars:rolling"),
    System("DuckDB", ("duckdb",), batch=f"{_HERE}.adapters.with_duckdb:window"),
    System("DuckDB, self-join", ("duckdb",), batch=f"{_HERE}.adapters.with_duckdb:self_join"),
    System(
        "Beam, sliding windows",
        ("apache-beam",),
        batch=f"{_HERE}.adapters.with_beam:batch",
        stream=f"{_HERE}.adapters.with_beam:stream",
        whole=True,
    ),
)
