"""Features of a whole history at once: for notebooks, and for the jobs, which make the very same call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.app import App
from shared_features.blocks import block_schema, concat_blocks, empty_block, flatten
from shared_features.clean import clean_block
from shared_features.errors import HistoryError
from shared_features.external import require_answered
from shared_features.kernel import finish, step
from shared_features.plan import Plan, Stage, make_plan
from shared_features.state import StageState

if TYPE_CHECKING:
    import pandas as pd

BLOCK_ROWS = 100_000


def fold_order(block: pa.RecordBatch, stage: Stage) -> np.ndarray:
    """Indices that put rows into the order in which ``stage`` folds them (contract C1); int64, shape [rows].

    Archived rows have the stage's positions: (epoch, position), rows without a key last. History without
    positions goes by (publish time, identity); without publish times, by (event time, identity).

    Raises:
        HistoryError: some rows have a publish time and others have none.
    """
    if f"stage.{stage.name}.position" in block.schema.names:
        return stage_order(block, stage.name)
    return history_order(block)


def stage_order(block: pa.RecordBatch, stage: str) -> np.ndarray:
    """Indices that put archived rows into the order in which a stage folded them; int64, shape [rows]."""
    return _sorted(block, [f"stage.{stage}.epoch", f"stage.{stage}.position"])


def history_order(block: pa.RecordBatch) -> np.ndarray:
    """Indices that put history without positions into fold order, see `fold_order`; int64, shape [rows].

    Raises:
        HistoryError: some rows have a publish time and others have none.
    """
    identity = ["event_type", "event_id"]
    if block.column("publish_time").null_count == 0:
        return _sorted(block, ["publish_time", *identity])
    if block.column("publish_time").null_count == block.num_rows:
        return _sorted(block, ["event_time", *identity])
    raise HistoryError(
        f"history has {block.column('publish_time').null_count} of {block.num_rows} rows without a publish_time: "
        "wanted it on all rows or on none; fill it in or drop the column"
    )


def _sorted(block: pa.RecordBatch, names: list[str]) -> np.ndarray:
    table = pa.Table.from_batches([block.select(names)])
    order: np.ndarray = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in names]).to_numpy()
    return order.astype(np.int64)


def run_stage(state: StageState, block: pa.RecordBatch, block_rows: int = BLOCK_ROWS) -> pa.RecordBatch:
    """One keyed stage over rows in any order: sorted by `fold_order`, then `step` by blocks.

    Positions from an archive are replaced by the ones counted here, which are the same where the archive is whole.
    """
    order = fold_order(block, state.stage)
    ordered = block if np.array_equal(order, np.arange(len(order))) else block.take(pa.array(order))
    prefix = f"stage.{state.stage.name}."
    ordered = ordered.select([name for name in ordered.schema.names if not name.startswith(prefix)])
    done = [step(state, ordered.slice(start, block_rows)) for start in range(0, max(1, ordered.num_rows), block_rows)]
    return concat_blocks(done)


def to_block(app: App, events: pa.Table | pa.RecordBatch | pd.DataFrame) -> pa.RecordBatch:
    """Events as one block with all columns of the app, in its order; columns that are absent become null.

    Clean rules are applied; external models are not asked, their answers must be there. Rows are not checked:
    events that a job would refuse are the caller's to leave out (see
    `shared_features.validate.validate_block`).

    Args:
        events: the envelope (``event_type``, ``event_id``, ``event_time``, optionally ``publish_time``) and
            fields as ``<type>.<field>`` columns or one struct column per type.

    Raises:
        HistoryError: the event type, id or time is absent or null, a column has another type, or a text lacks what
            an external model says about it.
    """
    if not isinstance(events, pa.Table | pa.RecordBatch):
        events = pa.Table.from_pandas(events, preserve_index=False)
    table = flatten(events if isinstance(events, pa.Table) else pa.Table.from_batches([events]))
    schema = block_schema(app.event_types)
    stages = [name for name in table.schema.names if name.startswith("stage.")]
    columns = []
    for field in schema:
        if field.name not in table.schema.names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name].combine_chunks()
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise HistoryError(
                f"column {field.name!r} is {column.type}, wanted {field.type}: {str(error).splitlines()[0]}"
            ) from None
        columns.append(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    block = pa.RecordBatch.from_arrays(
        columns + [table[name].combine_chunks() for name in stages], names=[*schema.names, *stages]
    )
    for name in ("event_type", "event_id", "event_time"):
        if block.column(name).null_count:
            raise HistoryError(f"column {name!r} is missing or null in some rows, wanted a value in each of them")
    if block.num_rows == 0:
        return empty_block(block.schema)
    return require_answered(clean_block(block, app.event_types.values()), app.event_types, app.spec)


def compute_block(plan: Plan, block: pa.RecordBatch) -> pa.RecordBatch:
    """All stages and features over one block of history, in one shard; rows come back in fold order."""
    for stage in plan.stages:
        block = run_stage(StageState(stage), block)
    return finish(plan, block)


def warm_up(plan: Plan) -> None:
    """Compile what the kernel compiles (seconds, once per process), by folding no rows."""
    for stage in plan.stages:
        StageState(stage).warm_up()
    nothing = {"event_type": [plan.app.predict_on.name], "event_id": [""], "event_time": pa.array([0])}
    compute_block(plan, to_block(plan.app, pa.table(nothing)))


def compute(app: App, events: Any) -> Any:
    """The features of every event that ``app`` predicts on, from history in any order.

    Args:
        app: the app.
        events: pandas DataFrame, ``pa.Table`` or ``pa.RecordBatch``, see `to_block`.

    Returns:
        The same kind: ``event_id``, ``event_time`` and one column per feature, one row per event predicted on,
        in fold order. A missing value is null (pandas: NaN or None).
    """
    block = compute_block(make_plan(app), to_block(app, events))
    block = block.filter(pc.equal(block.column("event_type"), app.predict_on.name))
    names = ["event_id", "event_time", *(f"feature.{name}" for name in app.features)]
    result = pa.Table.from_batches([block.select(names)]).rename_columns(["event_id", "event_time", *app.features])
    if isinstance(events, pa.Table):
        return result
    return result.combine_chunks().to_batches()[0] if isinstance(events, pa.RecordBatch) else result.to_pandas()
