"""Random histories of the shop as Parquet on disk, and the features that one call of `compute` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apps.flights.history import SPLITS, history_is_complete, write_history
from batch.splits import Splits
from shared_features import compute
from shared_features.app import App
from shared_features.blocks import block_schema, nest
from tests import processes
from tests.shop.app import app as shop

SPLITS_2013 = Splits(**SPLITS)
"""As `sameriver traindata` splits the flights."""

SECOND = 1_000_000
START_US = 1_700_000_000 * SECOND

EVENT = st.fixed_dictionaries(
    {
        "event_type": st.sampled_from(["sale", "sale", "visit"]),
        "at": st.one_of(st.integers(0, 30), st.integers(0, 60), st.sampled_from([0, 5, 10, 15, 20, 25, 45])),
        "late": st.sampled_from([0, 0, 0, 1, 12, 40]),
        "edge": st.sampled_from([0, 0, 0, -1, 1]),
        "shop": st.sampled_from(["a", "a", "b", "c", None]),
        "till": st.sampled_from([1, 2, 3, None]),
        "amount": st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1e8, 1e8 + 1, 0.1, 1e-7]), st.floats(-1e6, 1e6)),
        "units": st.one_of(st.none(), st.integers(-5, 5), st.just(2**61)),
        "paid": st.sampled_from([True, False, None]),
        "length": st.one_of(st.none(), st.floats(0, 5)),
    }
)
"""One event: ``at`` and ``late`` in seconds, ``edge`` in microseconds; what its type lacks is not used."""

FIELDS = {"sale": ("shop", "till", "amount", "units", "paid", "kind"), "visit": ("shop", "length")}


def event(event_type: str, at: float, **values: Any) -> dict[str, Any]:
    """One event of the shop, published as it happens; fields that are not given are null."""
    return {"event_type": event_type, "at": at, "late": 0, "edge": 0, **values}


def block_of(events: list[dict[str, Any]], *, published: bool = True) -> pa.RecordBatch:
    """Events as a block; ``event_id`` numbers them in a scattered order unless they bring one."""
    rows = []
    for i, given in enumerate(events):
        time_us = START_US + round(given["at"] * SECOND) + given.get("edge", 0)
        row: dict[str, Any] = {
            "event_type": given["event_type"],
            "event_id": given.get("event_id", f"e{i * 7919 % 1009}-{i}"),
            "event_time": time_us,
            "publish_time": time_us + round(given.get("late", 0) * SECOND) if published else None,
        }
        row |= {f"{given['event_type']}.{name}": given.get(name) for name in FIELDS.get(given["event_type"], ())}
        rows.append(row)
    return pa.RecordBatch.from_pylist(rows, schema=block_schema(shop.event_types))


def write(folder: Path, block: pa.RecordBatch, *, files: int = 1, row_group_rows: int = 7, seed: int = 0) -> Path:
    """The block as a history: its rows shuffled over some files of many small row groups; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(seed).permutation(block.num_rows)
    for number, rows in enumerate(np.array_split(order, files)):
        table = nest(pa.Table.from_batches([block.take(pa.array(rows))])).drop_columns(["message_id"])
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=row_group_rows)
    return folder


def computed(app: App, block: pa.RecordBatch) -> pa.Table:
    """What one call of `compute` gives, in the order of training rows."""
    features = compute(app, pa.Table.from_batches([block]))
    return in_order(features)


def in_order(rows: pa.Table) -> pa.Table:
    """Rows by (event_time, event_id), in one piece, without the schema's metadata."""
    order = pc.sort_indices(rows, sort_keys=[("event_time", "ascending"), ("event_id", "ascending")])
    return rows.take(order).combine_chunks().replace_schema_metadata(None)


def flights() -> Path:
    """The real flights of 2013: as made by `sameriver data flights`, else made once a run (6 s)."""
    made = processes.REPOSITORY / "var" / "history" / "flights"
    if history_is_complete(made):
        return made
    return processes.once_a_run("flights", write_history)
