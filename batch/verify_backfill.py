"""Verify the reactions of a backfill: its own predictions, in the order of its positions, give them again.

Reactions that remember need all that came before: a run that began with the history's beginning has it, and positions
without gaps show it. Of a range, or where rows were left out because they were there, what was remembered before is not
in the folder: those are counted as unchecked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch.backfill_out import predicted_files
from batch.output_rows import with_sized_lists
from batch.verify import same_bits
from shared_features.app import App
from shared_features.compute import BLOCK_ROWS
from shared_features.reactions import ReactionStage, reaction_stages
from streaming import results


@dataclass(slots=True)
class BackfillReport:
    """What was compared.

    Attributes:
        rows: predicted on, of this fingerprint.
        reactions: values compared. reactions_unchecked: those that need what was remembered before.
        reaction_mismatches: values that differ. first_mismatch: the first of them in full, or None.
    """

    rows: int = 0
    reactions: int = 0
    reactions_unchecked: int = 0
    reaction_mismatches: int = 0
    first_mismatch: str | None = None

    @property
    def mismatches(self) -> int:
        """Differences that must not be."""
        return self.reaction_mismatches

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {**asdict(self), "mismatches": self.mismatches}


def verify_backfill(app: App, folder: Path) -> BackfillReport:
    """Compare the reactions of a backfill's folder with what its predictions and features give.

    Memory is what one shard of one run holds, of the columns that reactions read.

    Raises:
        ConfigurationError: no rows of the app as it is are there, with predictions.
    """
    report, runs = BackfillReport(), dict[str, list[Path]]()
    for path in predicted_files(app, folder):
        report.rows += pq.read_metadata(path).num_rows
        runs.setdefault(path.name.partition("-")[0], []).append(path)
    for paths in runs.values():
        for stage in reaction_stages(app):
            if stage.key is None:
                for rows in _rows(app, paths, None):
                    _compare(app, stage, rows, report)
                continue
            name = f"stage.{stage.name}.shard"
            shards = pa.concat_tables([pq.read_table(path, columns=[name], partitioning=None) for path in paths])
            for shard in pc.unique(shards.column(name)).to_pylist():
                _compare_shard(app, stage, shard, list(_rows(app, paths, (name, shard))), report)
    return report


def _rows(app: App, paths: Sequence[Path], only: tuple[str, int | None] | None) -> Iterator[pa.RecordBatch]:
    """The rows of some files, or those with one value in a column, with the columns that reactions read."""
    read = ("event_", "outcome", "prediction.", "reaction.", "started.", "feature.", f"{app.predict_on.name}.")
    stages = [stage for stage in reaction_stages(app) if stage.key is not None]
    keys = {column for stage in stages if stage.key is not None for column in stage.key.columns}
    keys |= {f"stage.{stage.name}.{name}" for stage in stages for name in ("shard", "position")}
    for path in paths:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.startswith(read) or name in keys]
            for block in file.iter_batches(BLOCK_ROWS, columns=names):
                if only is not None:
                    name, value = only
                    column = block.column(name)
                    block = block.filter(
                        column.is_null() if value is None else pc.equal(column, value).fill_null(False)
                    )
                if block.num_rows:
                    yield with_sized_lists(app, block)


def _compare_shard(
    app: App, stage: ReactionStage, shard: int | None, blocks: Sequence[pa.RecordBatch], report: BackfillReport
) -> None:
    again = ReactionStage(app, stage.key, shard=shard or 0)
    table = pa.Table.from_batches(blocks)
    if shard is not None:
        position = f"stage.{stage.name}.position"
        table = table.sort_by(position)
        if not np.array_equal(table[position].to_numpy(), np.arange(table.num_rows)):
            report.reactions_unchecked += table.num_rows * len(stage.reactions)
            return
    for block in table.combine_chunks().to_batches(BLOCK_ROWS):
        _compare(app, again, block, report)


def _compare(app: App, stage: ReactionStage, rows: pa.RecordBatch, report: BackfillReport) -> None:
    for name, ours in results.reactions(app, [stage], rows, results.ended_columns(rows)).items():
        if not name.startswith(("reaction.", "started.")):
            continue
        theirs = rows.column(name)
        report.reactions += len(theirs)
        differs = np.flatnonzero(~same_bits(theirs, ours))
        report.reaction_mismatches += len(differs)
        if len(differs) and report.first_mismatch is None:
            row = int(differs[0])
            event = f"{rows.column('event_id')[row]} at {rows.column('event_time')[row]}"
            report.first_mismatch = f"{name} of event {event}: written {theirs[row]}, replay gives {ours[row]}"
