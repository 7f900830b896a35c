"""What one event costs, and a block of 1,000, with the state of a whole day in memory.

Measured, here and in the other files, are the calls that the streaming job makes for a block between decoding and the
model: the fold of its keyed stage, the features, and the block put together with both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.positions import blocks, read
from shared_features.blocks import append_columns
from shared_features.columns import Evaluator
from shared_features.compute import warm_up
from shared_features.kernel import feature_columns, fold
from shared_features.plan import Plan
from shared_features.state import StageState

EVENTS = 20_000
BLOCK = 1_000


def warm(plan: Plan, file: Path) -> None:
    """Fold some rows and forget them: what the first block of a process costs more, a job of weeks does not see."""
    warm_up(plan)
    for block in blocks(read(file, rows=BLOCK)):
        features(plan, StageState(plan.stages[0]), block)


def features(plan: Plan, state: StageState, block: pa.RecordBatch) -> pa.RecordBatch:
    """The block with its features: what the streaming job calls for it."""
    evaluator = Evaluator(block)
    added = fold(state, evaluator)
    return append_columns(block, added | feature_columns(plan, evaluator))


def measure(plan: Plan, state: StageState, file: Path, skip: int) -> dict[str, Any]:
    """Go on after the first ``skip`` rows of ``file``: up to 20,000 blocks of 1, then blocks of 1,000.

    A block of one is a block of its own, as it comes from the decoder, not a view of a bigger one.
    """
    rest = pa.Table.from_batches(read(file, skip)).combine_chunks().to_batches()
    (block,) = blocks(iter(rest), first=skip)
    singles = min(EVENTS, block.num_rows // 2)
    microseconds = np.zeros(singles)
    for i in range(singles):
        one = block.take(pa.array([i]))
        begin = time.perf_counter()
        features(plan, state, one)
        microseconds[i] = (time.perf_counter() - begin) * 1e6
    rates = []
    for start in range(singles, block.num_rows - BLOCK + 1, BLOCK):
        part = block.take(pa.array(np.arange(start, start + BLOCK)))
        begin = time.perf_counter()
        features(plan, state, part)
        rates.append(BLOCK / (time.perf_counter() - begin))
    return {
        "us_per_event_live": float(np.median(microseconds)),
        "us_per_event_live_p99": float(np.percentile(microseconds, 99)),
        "events_live": singles,
        "rows_per_s_blocks_of_1000": float(np.median(rates)),
        "keys_live": state.keys,
    }
