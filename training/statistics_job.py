"""One Beam pass over the training split for its statistics: shards are counted where the runner likes, and join.

    shards ─> count each ─> a file for each ─> join, in the order of the shards ─> <rows>/_statistics.npz

What is counted leaves its process as plain arrays, never pickled, and is joined one shard after the other: the result
depends on the shards only, never on the runner or its workers, and memory holds two of them at a time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import apache_beam as beam

from batch import runner
from training.counted import FILE, held_counts, read_counted, shards_of, write_counted
from training.rows import TrainingRows, open_rows
from training.statistics import SplitAccumulator


def count_by_beam(rows: TrainingRows, runner_options: Sequence[str] = ()) -> None:
    """Count the training split by a Beam pipeline, once: `training.statistics.compute_statistics` goes by it.

    Args:
        rows: in a folder that the runner's workers see and may write to.
        runner_options: Beam's; see `batch.runner.run`.

    Raises:
        ConfigurationError: options of Beam's that cannot be.
    """
    if held_counts(rows) is not None:
        return
    with tempfile.TemporaryDirectory(prefix=".statistics-", dir=rows.folder) as folder:
        shards = list(range(len(rows.shards["train"])))
        runner.run(
            lambda pipeline: (
                pipeline
                | "shards" >> beam.Create(shards).with_output_types(int)
                | "apart" >> beam.Reshuffle()
                | "count" >> beam.ParDo(CountShard(str(rows.folder), folder))
            ),
            runner_options,
        )
        total = SplitAccumulator.of(rows)
        for shard in shards:
            total.merge(read_counted(Path(folder, f"{shard}.npz")))
    write_counted(rows.folder / FILE, total, shards_of(rows))


class CountShard(beam.DoFn):
    """Place of a shard among the training split's → what is counted of it, as a file."""

    def __init__(self, rows_folder: str, folder: str) -> None:
        self._rows_folder, self._folder = rows_folder, folder

    def process(self, element: int) -> None:
        rows = open_rows(self._rows_folder)
        counted = SplitAccumulator.of(rows)
        for block in rows.blocks("train", shards=[rows.shards["train"][element]]):
            counted.add(block)
        write_counted(Path(self._folder, f"{element}.npz"), counted, [])
