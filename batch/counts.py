"""What a batch job counts: totals come back through small files, on any runner."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from batch import runner
from batch.rows import WriteCount


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
