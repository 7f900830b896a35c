"""What commands print: results for people or as one JSON object on standard output, progress on standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import click

Progress: TypeAlias = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and the step at work."""

PROGRESS_AS_JSON = "SAMERIVER_PROGRESS_AS_JSON"
"""Set for a child process: progress goes to standard output as ``{"progress": {"done": 0.5, "detail": …}}``."""

LINE_EVERY_S = 5.0
"""Where there is no terminal, a line of progress comes at most this often."""


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own; NaN and infinity are defects."""
    click.echo(json.dumps(result, allow_nan=False, default=str))


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Tell how far a command is: a bar on a terminal, now and then a line elsewhere."""
    if os.environ.get(PROGRESS_AS_JSON):
        yield _as_json
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[step]}"),
        )
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=1.0, step="")
            yield lambda done, step: bar.update(task, completed=done, step=step)
    else:
        yield _Lines(title)


def _as_json(done: float, step: str) -> None:
    print_json({"progress": {"done": round(done, 4), "detail": step}})


class _Lines:
    """Progress as lines, for logs: the first after `LINE_EVERY_S`, so that short commands print none."""

    def __init__(self, title: str) -> None:
        self._title, self._said_s = title, time.monotonic()

    def __call__(self, done: float, step: str) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s >= LINE_EVERY_S:
            self._said_s = now_s
            click.echo(f"{self._title}: {done:.0%} {step}", err=True)


def print_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Aligned columns; the first and those without a heading are text, the others are right-aligned."""
    rows = [headings, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(headings))]
    for row in rows:
        cells = [
            cell.rjust(width) if place and headings[place] else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())
