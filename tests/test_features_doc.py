"""The guides have every feature that can be written: a row in a table, and an example that runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import shared_features
from shared_features.expressions import Expression
from tests import repository

GUIDES = (Path("docs/features.md"), Path("docs/places.md"))
NOT_FEATURES = {"App", "Clean", "EventType", "Gate", "Key", "Label", "Model", "Prediction", "Reaction", "Rule"}
NOT_FEATURES |= {"Alarm", "Areas", "Between", "External", "Kpi", "compute", "load_app"}
OF_RULES = {"outcome", "prediction"}  # what a model gave and what came of it: no features
OF_THE_ENGINE = {"arrow_type", "evaluate", "key", "parts", "walk"}

FUNCTIONS = sorted(set(shared_features.__all__) - NOT_FEATURES - OF_RULES)
METHODS = sorted(name for name in vars(Expression) if not name.startswith("_") and name not in OF_THE_ENGINE)
METHODS = [name for name in METHODS if inspect.isfunction(getattr(Expression, name))]


def _table_cells() -> str:
    """The first cell of every row of a table: what is said about it stands in the others."""
    rows = re.findall(r"^\| (`.*?`) \|", "\n".join(map(repository.text, GUIDES)), re.MULTILINE)
    return "\n".join(rows)


def _examples() -> str:
    return "\n".join(block.code for block in repository.code_blocks("python") if block.path in GUIDES)


def test_the_lists_are_what_they_seem() -> None:
    assert {"mean", "decayed_mean", "where", "grid_cell"} <= set(FUNCTIONS)
    assert {"abs", "fill", "hour", "isin"} <= set(METHODS)


@pytest.mark.parametrize("name", [*FUNCTIONS, *(f".{method}" for method in METHODS)])
def test_every_feature_has_a_row_and_an_example(name: str) -> None:
    call = re.compile(rf"(?<!\w){re.escape(name)}\(" if name in FUNCTIONS else rf"{re.escape(name)}\(")
    assert call.search(_table_cells()), f"{name}: no table of the guides says what it takes and gives"
    assert call.search(_examples()), f"{name}: no example of the guides uses it"


def test_the_guide_names_nothing_that_is_not_there() -> None:
    said = set(re.findall(r"(?<![\w.`])`?([a-z][a-z0-9_]*)\(", _table_cells()))
    assert said - {*FUNCTIONS, "abs"} == set()  # abs(a) is Python's own
