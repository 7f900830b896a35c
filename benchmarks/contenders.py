"""Those who compute the case, each in a process of its own, so that its peak memory is its own.

python -P -m benchmarks.contenders '{"task": "polars", "file": …}'     prints one JSON object

Each reads the same file first, which is not timed, then hands over every feature of every row as columns in
memory, which is: Sameriver in blocks as its jobs do, Polars and DuckDB in one table. All have two threads, on two
CPUs. Every so many rows the features are kept, in the row order of the file, so that the results can be compared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

THREADS = 2


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does.

    Attributes:
        task: name of one of `TASKS`.
        file: rows, written by `positions.write`.
        rows: as many from its beginning.
        sample: where to write the features of every `every`-th row: float64 [rows kept, features], NaN for null.
        every: see ``sample``.
        live: whether to go on with the rest of the file in blocks of 1 and of 1,000 (Sameriver only).
        small: how many times to measure, after all else, what is in `smaller` (Sameriver only).
    """

    task: str
    file: str
    rows: int = 0
    sample: str = ""
    every: int = 1
    live: bool = False
    small: int = 0


def peak_rss_mb() -> float:
    """The most memory that this process had at a time, in MB (10^6 bytes), shared libraries included."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        # In kilobytes, but on macOS in bytes; it may include what the parent had when it started this process.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Clock:
    """Adds up what its ``with`` blocks take: seconds, and seconds of CPU in all threads of the process.

    Where others use the machine, the second says more than the first.
    """

    def __init__(self) -> None:
        self._seconds = self._cpu_seconds = 0.0

    def __enter__(self) -> Clock:
        self._seconds -= time.perf_counter()
        self._cpu_seconds -= time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter()
        self._cpu_seconds += time.process_time()

    def figures(self) -> dict[str, float]:
        """Both, by name."""
        return {"seconds": self._seconds, "cpu_seconds": self._cpu_seconds}


def _rows(task: Task) -> Iterator[pa.RecordBatch]:
    from benchmarks.positions import read

    return read(Path(task.file), rows=task.rows)


def sameriver(task: Task) -> dict[str, Any]:
    """What the streaming job calls, over blocks of 100,000 rows; making the blocks is not timed."""
    from benchmarks import live, smaller
    from benchmarks.positions import blocks, case
    from shared_features.plan import make_plan
    from shared_features.state import StageState

    plan = make_plan(case())
    live.warm(plan, Path(task.file))
    state = StageState(plan.stages[0])
    kept, clock, done = [], Clock(), 0
    for block in blocks(_rows(task)):
        with clock:
            result = live.features(plan, state, block)
        rows = np.arange(-done % task.every, block.num_rows, task.every)
        columns = [result.column(f"feature.{name}").to_numpy(zero_copy_only=False)[rows] for name in plan.app.features]
        kept.append(np.stack(columns, axis=1))
        done += block.num_rows
    measured: dict[str, Any] = {**clock.figures(), "rows": done, "peak_rss_mb": peak_rss_mb()}
    if task.sample:
        np.save(task.sample, np.concatenate(kept))
    if task.live:
        measured |= live.measure(plan, state, Path(task.file), task.rows)
    if task.small:
        del state
        measured["small"] = smaller.measure(Path(task.file).parent, max(2_000, task.rows // 10), task.small)
    return measured


def polars(task: Task) -> dict[str, Any]:
    """``rolling_mean_by`` and ``rolling_std_by`` over each window, ``over`` the vessel, all in one ``select``."""
    os.environ["POLARS_MAX_THREADS"] = str(THREADS)
    import polars as pl
    import pyarrow as pa

    from benchmarks.positions import COLUMNS, WINDOWS_S

    assert pl.thread_pool_size() == THREADS
    table = pl.from_arrow(pa.Table.from_batches(_rows(task), COLUMNS))
    assert isinstance(table, pl.DataFrame)
    table = table.select(pl.from_epoch("time_us", time_unit="us").alias("time"), "vessel", "speed").rechunk()
    features = []
    for window_s in WINDOWS_S:
        speed, window = pl.col("speed"), f"{window_s}s"
        means = speed.rolling_mean_by("time", window, closed="both")
        deviations = speed.rolling_std_by("time", window, closed="both", ddof=0)
        features += [means.over("vessel").alias(f"mean_{window_s}"), deviations.over("vessel").alias(f"std_{window_s}")]
    with (clock := Clock()):
        result = table.select(features)
    measured = {**clock.figures(), "rows": result.height, "peak_rss_mb": peak_rss_mb()}
    if task.sample:
        np.save(task.sample, result.gather_every(task.every).to_numpy())
    return measured


def duckdb(task: Task) -> dict[str, Any]:
    """One query with a ``RANGE`` frame per window, from a table in memory into an Arrow table."""
    import duckdb as db
    import pyarrow as pa

    from benchmarks.positions import COLUMNS, WINDOWS_S

    frames, features = [], ["row"]
    for window_s in WINDOWS_S:
        frame = f"RANGE BETWEEN INTERVAL {window_s} SECONDS PRECEDING AND CURRENT ROW"
        frames.append(f"w{window_s} AS (PARTITION BY vessel ORDER BY time {frame})")
        features += [f"avg(speed) OVER w{window_s} AS mean_{window_s}"]
        features += [f"stddev_pop(speed) OVER w{window_s} AS std_{window_s}"]
    with db.connect(config={"threads": THREADS}) as connection:
        given = pa.Table.from_batches(_rows(task), COLUMNS)
        given = given.append_column("row", pa.array(np.arange(given.num_rows)))
        connection.register("given", given)
        connection.execute(
            "CREATE TABLE positions AS SELECT row, make_timestamp(time_us) AS time, vessel, speed FROM given"
        )
        connection.unregister("given")
        del given
        query = f"SELECT {', '.join(features)} FROM positions WINDOW {', '.join(frames)}"  # noqa: S608  own names only
        with (clock := Clock()):
            result = connection.sql(query).to_arrow_table()
    measured = {**clock.figures(), "rows": result.num_rows, "peak_rss_mb": peak_rss_mb()}
    if task.sample:
        row = result["row"].to_numpy()
        kept = np.flatnonzero(row % task.every == 0)
        kept = kept[np.argsort(row[kept])]
        columns = [result[name].to_numpy()[kept] for name in result.column_names[1:]]
        np.save(task.sample, np.stack(columns, axis=1))
    return measured


def generate(task: Task) -> dict[str, Any]:
    """Write the day of ``rows`` positions, and what follows it, into ``file``."""
    from benchmarks.positions import Positions, write

    write(Positions(task.rows, more=rest_of(task.rows)).generate(), Path(task.file))
    return {}


def rest_of(rows: int) -> int:
    """How many positions follow the day of ``rows``, for what is measured on warm state."""
    return min(max(rows // 10, 2_000), 520_000)


TASKS: dict[str, Callable[[Task], dict[str, Any]]] = {
    task.__name__: task for task in (sameriver, polars, duckdb, generate)
}


def command(task: Task) -> list[str]:
    """The command line that does ``task``."""
    return [sys.executable, "-P", "-m", "benchmarks.contenders", json.dumps(asdict(task))]


def main() -> None:
    """Do the task of the command line, on two CPUs."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(TASKS[task.task](task)))


if __name__ == "__main__":
    main()
