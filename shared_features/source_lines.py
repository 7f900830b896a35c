"""Where in an app's file something was defined: the line that an error names.

Only the frames of the interpreter's stack are looked at, so that a definition costs a microsecond more and nothing
is read. `repeated_names` alone reads the file: a name that a dictionary holds twice leaves no other trace.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LIBRARY = frozenset({"shared_features", "functools"})
"""Frames that are nobody's definition: the library's, and those of its cached properties."""
_JOBS = frozenset({"batch", "benchmarks", "cli", "commands", "serving", "streaming", "training"})


class SourceLine(NamedTuple):
    """A line of a file, as in ``apps/flights/app.py:38``."""

    file: str
    line: int

    def __str__(self) -> str:
        path = Path(self.file)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        return f"{path}:{self.line}"


def caller() -> SourceLine | None:
    """The innermost line outside the feature library; None where that is no app's file but a job's, or none at all."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARY:
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None or frame.f_globals.get("__name__", "").partition(".")[0] in _JOBS:
        return None
    file = frame.f_code.co_filename
    return None if file.startswith("<") else SourceLine(file, frame.f_lineno)


def repeated_names(at: SourceLine | None, argument: str) -> Iterator[tuple[str, SourceLine]]:
    """Names that the dictionary given as ``argument`` to the call at a line holds a second time, and where.

    The dictionary stands in the call itself, or in the file under the name that the call gives. Python would keep
    the last value without a word. What cannot be read or is put together otherwise is not looked at.
    """
    tree = None if at is None else _parsed("".join(linecache.getlines(at.file)))
    if at is None or tree is None:
        return
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.lineno <= at.line <= (node.end_lineno or node.lineno)
    ]
    for call in calls:
        for keyword in call.keywords:
            if keyword.arg == argument:
                for given in _dictionaries(tree, keyword.value):
                    yield from _repeated(given, at.file)


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _dictionaries(tree: ast.Module, value: ast.expr) -> list[ast.Dict]:
    if isinstance(value, ast.Dict):
        return [value]
    if not isinstance(value, ast.Name):
        return []
    assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict))
    return [
        node.value
        for node in assigned
        if isinstance(node.value, ast.Dict)
        and any(isinstance(target, ast.Name) and target.id == value.id for target in node.targets)
    ]


def _repeated(given: ast.Dict, file: str) -> Iterator[tuple[str, SourceLine]]:
    seen = set()
    for key in given.keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            if key.value in seen:
                yield key.value, SourceLine(file, key.lineno)
            seen.add(key.value)
