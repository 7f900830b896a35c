"""The case that `sameriver bench kernel` measures: a day of AIS positions, mean and deviation over six windows.

60,000 vessels report every 10 s to 6 min, 22,000,000 positions a day, 367 a vessel. Features are the mean and the
population standard deviation of the speed over 30 min to 24 h, by vessel. Smaller runs have fewer vessels over the
same day, so that the windows hold as many events as in the big one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features import App, EventType, Key, mean, std
from shared_features.blocks import block_schema
from shared_features.expressions import Expression

ROWS, VESSELS = 22_000_000, 60_000
DAY_US = 86_400_000_000
DAY_BEGIN_US = 1_718_409_600_000_000  # 2024-06-15
WINDOWS_S = (1800, 3600, 10800, 21600, 43200, 86400)
BLOCK_ROWS = 100_000

# Seconds between the reports of a vessel, and the share of vessels that report so: the mean is 367 reports a day.
INTERVALS_S = (10, 30, 60, 180, 360)
SHARES = (0.004, 0.010, 0.021, 0.165, 0.800)

COLUMNS = pa.schema([("time_us", pa.int64()), ("vessel", pa.int64()), ("speed", pa.float64())])

position = EventType("position", "position.avsc", time="at")
by_vessel = Key("vessel", position.vessel)


def app_of(features: dict[str, Expression], name: str = "positions") -> App:
    """An app that computes ``features`` for every position."""
    return App(name, predict_on=position, event_types=[position], features=features)


def case(value: Expression = position.speed, scale: float = 1e-3) -> App:
    """Mean and population standard deviation of ``value`` over each window, both ends in it."""
    features: dict[str, Expression] = {}
    for window_s in WINDOWS_S:
        options: dict[str, Any] = {"by": by_vessel, "over": f"{window_s}s", "closed": "both", "scale": scale}
        features[f"mean_{window_s}"] = mean(value, **options)
        features[f"std_{window_s}"] = std(value, **options)
    return app_of(features)


@dataclass(frozen=True, slots=True)
class Positions:
    """What to generate.

    Attributes:
        rows: number of positions in the day.
        more: positions after the day, from the same vessels at the same rates.
        vessels: ``mixed``: intervals of 10 s to 6 min; ``uniform``: all alike; ``hot``: one vessel has a tenth of
            all positions, the others are alike.
        late_share: share of positions that arrive late, by up to an hour; rows are in the order of arrival.
        seed: of the random generator.
    """

    rows: int = ROWS
    more: int = 0
    vessels: str = "mixed"
    late_share: float = 0.0
    seed: int = 20240615

    def counts(self, random: np.random.Generator) -> np.ndarray:
        """Positions of each vessel; int64, shape [vessels]."""
        vessels = max(2, round(VESSELS * self.rows / ROWS))
        total = self.rows + self.more
        if self.vessels == "mixed":
            weights = 1.0 / random.permutation(
                np.repeat(INTERVALS_S, np.diff(np.rint(np.cumsum((0.0, *SHARES)) * vessels).astype(np.int64)))
            )
        else:
            weights = np.ones(vessels)
            if self.vessels == "hot":
                weights[0] = (vessels - 1) / 9
        edges = np.rint(np.cumsum(weights) / weights.sum() * total).astype(np.int64)
        return np.diff(edges, prepend=0)

    def generate(self) -> pa.Table:
        """The positions in the order of arrival: ``time_us``, ``vessel``, ``speed`` (see `COLUMNS`).

        A vessel reports at its interval, moved by up to a fifth of it, never twice in a microsecond; its speed
        wanders around its own cruising speed, in tenths of a knot, and is 0 while it lies still.
        """
        random = np.random.default_rng(self.seed)
        counts = self.counts(random)
        rows = self.rows + self.more
        vessel = np.repeat(np.arange(len(counts)), counts)
        number = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        interval_us = DAY_US * rows / self.rows / np.maximum(counts, 1)
        offset = random.random(len(counts))
        place = number + 0.2 + 0.6 * offset[vessel] + random.uniform(-0.1, 0.1, rows)
        time_us = (place * interval_us[vessel]).astype(np.int64)
        del place, number
        arrival_us = time_us
        if self.late_share:
            late = random.random(rows) < self.late_share
            arrival_us = time_us + late * random.integers(0, 3_600_000_000, rows)
        order = np.argsort(arrival_us, kind="stable")
        vessel, time_us = vessel[order], time_us[order]
        del order, arrival_us
        cruising = random.uniform(20, 160, len(counts))
        tenths = cruising[vessel] + random.normal(0, 12, rows)
        tenths[(vessel + time_us // 7_200_000_000) % 4 == 0] = 0
        speed = np.maximum(np.rint(tenths), 0) / 10
        columns = [pa.array(DAY_BEGIN_US + time_us), pa.array(200_000_000 + vessel), pa.array(speed)]
        return pa.Table.from_arrays(columns, schema=COLUMNS)


def write(table: pa.Table, path: Path) -> None:
    """As an Arrow IPC file of blocks of `BLOCK_ROWS`, not compressed."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=BLOCK_ROWS)


def read(path: Path, skip: int = 0, rows: int | None = None) -> Iterator[pa.RecordBatch]:
    """The file's batches, one at a time, each in memory of its own: ``rows`` rows (None: all) after ``skip``."""
    end = None if rows is None else skip + rows
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
        for i in range(skip // BLOCK_ROWS, reader.num_record_batches):
            begin = i * BLOCK_ROWS
            if end is not None and begin >= end:
                return
            batch = reader.get_batch(i)
            yield batch.slice(max(0, skip - begin), None if end is None else end - max(begin, skip))


def blocks(batches: Iterator[pa.RecordBatch], first: int = 0) -> Iterator[pa.RecordBatch]:
    """Batches as the blocks that jobs make of history: an envelope, and the fields of a position.

    Identities are numbers from ``first`` on.
    """
    schema = block_schema([position])
    done = first
    for batch in batches:
        rows = batch.num_rows
        time_us, vessel, speed = batch.columns
        columns = {
            "event_type": pa.repeat("position", rows),
            "event_id": pc.cast(pa.array(np.arange(done, done + rows)), pa.string()),
            "event_time": pc.cast(time_us, pa.timestamp("us", tz="UTC")),
            "position.vessel": vessel,
            "position.speed": speed,
        }
        done += rows
        filled = [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema]
        yield pa.RecordBatch.from_arrays(filled, schema=schema)
