"""What `sameriver bench backfill` measures, each in a process of its own, so that its peak memory is its own.

python -P -m benchmarks.backfill_tasks '{"task": "plain", "source": …}'     prints one JSON object

`plain` is what the job is measured by: the same rows read by pyarrow, folded by the kernel, and written by pyarrow,
with nothing in between: in order as they are, in one state, by one loop.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contenders import Clock, peak_rss_mb
from benchmarks.positions import ROWS, Positions, blocks, case

BLOCK_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does.

    Attributes:
        task: name of one of `TASKS`.
        source: Parquet file of positions.
        out: where rows go.
        rows: of a day; where ``days`` is more, so many of each.
        days: to be generated.
    """

    task: str
    source: str
    out: str = ""
    rows: int = ROWS
    days: int = 1


def generate(task: Task) -> dict[str, Any]:
    """Write a history of positions, published as they happen."""
    table = Positions(task.rows, more=task.rows * (task.days - 1)).generate()
    writer: pq.ParquetWriter | None = None
    for block in blocks(iter(table.to_batches(max_chunksize=BLOCK_ROWS))):
        columns = block.drop_columns(["message_id"])
        place = columns.schema.get_field_index("publish_time")
        columns = columns.set_column(place, "publish_time", columns.column("event_time"))
        writer = writer or pq.ParquetWriter(task.source, columns.schema, compression="zstd")
        writer.write_batch(columns)
    assert writer is not None
    writer.close()
    return {"bytes": Path(task.source).stat().st_size}


def plain(task: Task) -> dict[str, Any]:
    """Read, fold and write, one block after the other; each is timed by itself."""
    from batch.backfill_rows import ROW_GROUP_ROWS, archive_schema, conformed_to, writer_of
    from benchmarks.live import features
    from shared_features.compute import warm_up
    from shared_features.plan import make_plan
    from shared_features.state import StageState
    from streaming.results import with_results

    plan = make_plan(case())
    warm_up(plan)
    for batch in pq.ParquetFile(task.source).iter_batches(1_000):  # the first block of a process costs more
        features(plan, StageState(plan.stages[0]), batch)
        break
    state, schema = StageState(plan.stages[0]), archive_schema(plan, predicted=False)
    reading, folding, writing = Clock(), Clock(), Clock()
    rows = 0
    Path(task.out).parent.mkdir(parents=True)
    with pq.ParquetFile(task.source) as file, writer_of(Path(task.out), schema) as writer:
        batches = file.iter_batches(BLOCK_ROWS)
        while True:
            with reading:
                block = next(batches, None)
            if block is None:
                break
            with folding:
                block = features(plan, state, block)
            block = conformed_to(with_results(plan.app, block, None, []), schema)
            with writing:
                writer.write_table(pa.Table.from_batches([block]), row_group_size=ROW_GROUP_ROWS)
            rows += block.num_rows
        with writing:
            writer.close()
    return {
        "rows": rows,
        "read": reading.figures(),
        "kernel": folding.figures(),
        "write": writing.figures(),
        "peak_rss_mb": peak_rss_mb(),
        "checksum": checksum(Path(task.out).parent),
    }


def backfill(task: Task) -> dict[str, Any]:
    """The job, and then again; what Python imports and the kernel compiles is not timed, as with `plain`."""
    from batch.backfill import backfill as job
    from shared_features.compute import warm_up
    from shared_features.plan import make_plan

    app = case()
    warm_up(make_plan(app))
    with (clock := Clock()):
        summary = job(app, task.source, task.out)
    memory = peak_rss_mb()
    begin = time.perf_counter()
    again = job(app, task.source, task.out)
    return {
        **clock.figures(),
        "rows": summary.rows_added,
        "rows_added_again": again.rows_added,
        "seconds_again": time.perf_counter() - begin,
        "peak_rss_mb": memory,
        "bytes": summary.bytes,
        "checksum": checksum(Path(task.out)),
    }


def verify(task: Task) -> dict[str, Any]:
    """Archive the first rows as the stream does, in commits of 10,000, and verify them."""
    from batch.verify import verify as job
    from benchmarks.live import features
    from shared_features.plan import make_plan
    from shared_features.state import StageState
    from streaming.archive import Archive
    from streaming.results import count_outcomes, with_results

    app = case()
    plan = make_plan(app)
    archive = Archive(Path(task.out), {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
    state, rows = StageState(plan.stages[0]), 0
    with pq.ParquetFile(task.source) as file:
        for batch in file.iter_batches(10_000):
            batch = batch.append_column("message_id", pa.nulls(batch.num_rows, pa.string()))
            block = with_results(app, features(plan, state, batch.slice(0, task.rows - rows)), None, [])
            counts = {"received": block.num_rows, "duplicates": 0, "dead_letters": {}}
            sequence = archive.append(block, {**counts, "outcomes": count_outcomes(block)})
            rows += block.num_rows
            if rows == task.rows:
                break
    archive.mark_published(sequence)
    archive.close()
    begin = time.perf_counter()
    report = job(app, Path(task.out))
    seconds = time.perf_counter() - begin
    return {"rows": rows, "seconds": seconds, "mismatches": report.mismatches, "peak_rss_mb": peak_rss_mb()}


def checksum(folder: Path) -> str:
    """A sum over all rows of a hash of each row's identity and features: equal for the same rows in any order."""
    names = [f"feature.{name}" for name in case().features]
    total = 0
    for path in sorted(folder.rglob("*.parquet")):
        for block in pq.ParquetFile(path).iter_batches(BLOCK_ROWS, columns=["event_id", *names]):
            total += int(_hashes(block, names).sum(dtype=np.uint64))
    return f"{total % 2**64:016x}"


def _hashes(block: pa.RecordBatch, names: list[str]) -> np.ndarray:
    from shared_features.hashing import hash_column

    mixed = hash_column(block.column("event_id"))
    for name in names:
        column = block.column(name)
        bits = column.fill_null(np.nan).to_numpy().view(np.uint64)
        mixed = (mixed ^ bits) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


TASKS = {task.__name__: task for task in (generate, plain, backfill, verify)}


def command(task: Task) -> list[str]:
    """The command line that does ``task``."""
    return [sys.executable, "-P", "-m", "benchmarks.backfill_tasks", json.dumps(asdict(task))]


def main() -> None:
    """Do the task of the command line."""
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(TASKS[task.task](task)))


if __name__ == "__main__":
    main()
