"""What a batch job counts: totals come back through small files, on any runner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from batch import runner


class WriteCount(beam.DoFn):
    """A total → a small file named after it, from which the job reads it back on any runner."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, element: tuple[str, int]) -> None:
        Path(self._folder, element[0]).write_text(str(element[1]), encoding="utf-8")


def counted(folder: Path, options: Sequence[str], steps: Callable[[beam.Pipeline], Any]) -> dict[str, int]:
    """Run a pipeline and sum what it counts.

    Args:
        folder: for the totals; all workers must see it.
        options: Beam's; see `runner.run`.
        steps: adds the steps to a pipeline; they give (what, how often).
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def build(pipeline: beam.Pipeline) -> None:
        counts = steps(pipeline)
        _ = counts | "sum counts" >> beam.CombinePerKey(sum) | "write counts" >> beam.ParDo(WriteCount(str(folder)))

    runner.run(build, options)
    return {path.name: int(path.read_text()) for path in sorted(folder.iterdir())}
