"""Small training rows for tests: made from a known rule, with missing values, written as the batch job does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FINGERPRINT = "f1" * 16
DEFINITIONS = '{"app":"shop","features":{"amount":["float64"]}}'
ROWS = {"train": 6_000, "validate": 1_500, "test": 2_000}
FEATURES = ("delay", "hour", "busy", "shop", "carrier")
START = np.datetime64("2013-01-01T00:00:00", "us")


def table(rows: int, seed: int) -> pa.Table:
    """Rows of a known rule: late if delay, the hour, whether it is busy and one pair of texts say so.

    ``delay`` float64 with nulls, ``hour`` int64, ``busy`` bool with nulls, ``shop`` and ``carrier`` string;
    ``carrier`` has nulls and one rare value.
    """
    random = np.random.default_rng(seed)
    delay = np.round(random.gamma(1.5, 12, rows) - 10, 1)
    hour = random.integers(0, 24, rows)
    busy = random.random(rows) < 0.3
    shops = np.array(["north", "south", "west"])[random.integers(0, 3, rows)]
    carriers = np.array(["AA", "BB", "CC", "DD"])[random.integers(0, 4, rows)]
    logit = 0.12 * delay + np.where(hour >= 17, 1.0, -0.5) + busy - 2.0
    logit += np.where((shops == "west") & (carriers == "CC"), 2.5, 0.0)
    label = random.random(rows) < 1 / (1 + np.exp(-logit))
    carriers[: min(3, rows)] = "RARE"
    times = START + (np.arange(rows) * 60_000_000 + seed * 10**12).astype("timedelta64[us]")
    return pa.table(
        {
            "event_id": [f"{seed}-{row:06d}" for row in range(rows)],
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "publish_time": pa.array(times, pa.timestamp("us", "UTC")),
            "delay": pa.array(delay, mask=random.random(rows) < 0.05),
            "hour": pa.array(hour),
            "busy": pa.array(busy, mask=random.random(rows) < 0.05),
            "shop": pa.array(shops.tolist()),
            "carrier": pa.array(carriers.tolist(), mask=random.random(rows) < 0.05),
            "label": pa.array(label),
        }
    )


def with_origin(rows: pa.Table, fingerprint: str = FINGERPRINT, definitions: str = DEFINITIONS) -> pa.Table:
    """The same rows, telling what made them."""
    json.loads(definitions)
    told = {"sameriver.app": "shop", "sameriver.fingerprint": fingerprint, "sameriver.definitions": definitions}
    return rows.replace_schema_metadata(told)


def write(
    folder: Path,
    splits: Mapping[str, pa.Table] | None = None,
    *,
    shards: int = 1,
    fingerprint: str = FINGERPRINT,
) -> Path:
    """Write splits (all three, of ``ROWS`` rows, where None) as ``shards`` files each; returns the folder."""
    if splits is None:
        splits = {split: table(rows, seed) for seed, (split, rows) in enumerate(ROWS.items(), 1)}
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        edges = np.linspace(0, len(rows), shards + 1).astype(int)
        for shard in range(shards):
            part = rows.slice(edges[shard], edges[shard + 1] - edges[shard])
            pq.write_table(with_origin(part, fingerprint), folder / split / f"part-{shard}.parquet")
    return folder


def write_often(folder: Path, rows: pa.Table, *, times: int) -> Path:
    """Write rows to train on as one shard that is there ``times`` times, and few others; returns the folder."""
    few = rows.slice(0, 1_000)
    write(folder, {"train": rows, "validate": few, "test": few})
    for shard in range(1, times):
        (folder / "train" / f"part-{shard}.parquet").hardlink_to(folder / "train" / "part-0.parquet")
    return folder
