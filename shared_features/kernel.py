"""The kernel: `step` folds a block into the state of one keyed stage and appends what each event could see.

Batch calls it with big blocks, streaming with small ones; the result is the same bits, because everything in it
depends on the order of the rows only (contract C1 to C4). It knows nothing of Beam, gRPC or TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features import windows
from shared_features.blocks import append_columns
from shared_features.columns import Column, Evaluator, to_arrow
from shared_features.keys import Key
from shared_features.plan import Output, Plan, Stage, Track
from shared_features.state import StageState, TrackState

_FEW_ROWS = 64
"""Up to here a dictionary of the block's keys costs more than it saves."""

VALUE_LIMIT = 2.0**62
"""A value divided by its scale must stay below this in magnitude; see `out_of_range`."""


def step(state: StageState, block: pa.RecordBatch) -> pa.RecordBatch:
    """Fold ``block`` in row order and append the stage's columns.

    Args:
        state: state of the stage; changed in place. If this raises, the state must be thrown away.
        block: rows with the envelope and the fields that the stage reads.

    Returns:
        The block with the columns of `fold`, and one ``aggregate.<S>.<n>`` column per aggregate, null for rows
        that are not predicted on.
    """
    evaluator = Evaluator(block)
    columns = fold(state, evaluator)
    return append_columns(block, columns | aggregate_columns([state.stage], evaluator))


def aggregate_columns(stages: Sequence[Stage], evaluator: Evaluator) -> dict[str, pa.Array]:
    """The aggregates of ``stages`` that the evaluator has learned, as ``aggregate.<S>.<n>`` columns."""
    outputs = [output for stage in stages for output in stage.outputs if output.aggregate in evaluator]
    return {output.column: evaluator.array(output.aggregate) for output in outputs}


def fold(state: StageState, evaluator: Evaluator) -> dict[str, pa.Array]:
    """Fold the evaluator's block in row order; the evaluator learns what each row's aggregates are.

    Returns:
        ``stage.<S>.epoch`` (int32), ``.shard`` (int32), ``.position`` (int64) and ``.late`` (bool), null for rows
        without the key.
    """
    stage = state.stage
    keyed, slots = _slots(state, evaluator)
    rows = evaluator.rows
    # A copy of our own: the pass is compiled anew for arrays that are read-only or not aligned.
    times = evaluator.block_column("event_time", "timestamp").values.copy()
    reaches = np.zeros(rows, np.int64)
    late = np.zeros(rows, np.bool_)
    windows.advance_newest(slots, times, state.newest, stage.lateness_us, stage.longest_us, reaches, late)
    positions = state.position + np.cumsum(keyed) - 1
    state.position += int(keyed.sum())
    columns: dict[str, pa.Array] = {
        "epoch": pa.array(np.full(rows, state.epoch, np.int32), mask=~keyed),
        "shard": pa.array(np.full(rows, state.shard, np.int32), mask=~keyed),
        "position": pa.array(positions.astype(np.int64), mask=~keyed),
        "late": pa.array(late, mask=~keyed),
    }
    columns = {f"stage.{stage.name}.{name}": array for name, array in columns.items()}
    asked = keyed & evaluator.is_type(stage.predict_on)
    for track, track_state in zip(stage.tracks, state.tracks, strict=True):
        _run_track(track, track_state, evaluator, keyed, asked, slots, times, reaches)
    return columns


def finish(plan: Plan, block: pa.RecordBatch) -> pa.RecordBatch:
    """Turn aggregates into features: after the last stage, append ``feature.<name>`` and drop ``aggregate.*``.

    Features are null on rows that are not predicted on. Non-finite results are null (C4).
    """
    kept = [name for name in block.schema.names if not name.startswith("aggregate.")]
    return append_columns(block.select(kept), feature_columns(plan, Evaluator(block)))


def feature_columns(plan: Plan, evaluator: Evaluator) -> dict[str, pa.Array]:
    """``feature.<name>`` of each row, from aggregates that the evaluator has learned or that its block holds."""
    for stage in plan.stages:
        for output in stage.outputs:
            if output.aggregate not in evaluator:
                evaluator.learn(output.aggregate, evaluator.block_column(output.column, output.aggregate.dtype))
    asked = evaluator.is_type(plan.app.predict_on.name)
    features = {}
    for name, value in plan.app.features.items():
        column = evaluator.column(value)
        features[f"feature.{name}"] = to_arrow(Column(column.values, column.valid & asked), value.dtype)
    return features


def key_column(key: Key, evaluator: Evaluator) -> pa.Array:
    """The key of each row, null where the row takes no part in the key's stage; string or int64."""
    first, *others = (evaluator.array(field) for field in key.fields.values())
    return pc.coalesce(first, *others) if others else first


def _slots(state: StageState, evaluator: Evaluator) -> tuple[np.ndarray, np.ndarray]:
    """Which rows take part (bool) and their key's slot (int64; -1 for the others)."""
    keys = key_column(state.stage.key, evaluator)
    if len(keys) <= _FEW_ROWS:
        slots = np.array(state.slots_of(keys.to_pylist()), np.int64)
        return slots >= 0, slots
    encoded = keys.dictionary_encode()
    slot_of = np.array(state.slots_of(encoded.dictionary.to_pylist()), np.int64)
    keyed = np.ones(len(keys), bool) if keys.null_count == 0 else keys.is_valid().to_numpy(zero_copy_only=False)
    if len(slot_of) == 0:
        return keyed, np.full(len(keys), -1, np.int64)
    indices = pc.fill_null(encoded.indices, 0).to_numpy(zero_copy_only=False)
    return keyed, np.where(keyed, slot_of[indices], -1)


def out_of_range(plan: Plan, block: pa.RecordBatch) -> dict[int, str]:
    """Rows that must not be folded, because a value at its scale does not fit the sums: row to one sentence.

    A value divided by its scale must stay below 2^62 in magnitude. Callers send such rows to the dead letters
    (or count and leave them out of history) before any stage; `step` raises if one comes through.
    """
    evaluator = Evaluator(block)
    found: dict[int, str] = {}
    for stage in plan.stages:
        for track in stage.tracks:
            if track.encoding not in ("integer", "scaled"):
                continue
            column = evaluator.column(track.value)
            for row in np.flatnonzero(column.valid & ~_fits(track, column)).tolist():
                found.setdefault(
                    row,
                    f"{track.value.key} is {column.values[row]}, wanted less than 2^62 / {track.scale_inverse} "
                    "in magnitude, the range of its aggregates",
                )
    return found


def _fits(track: Track, column: Column) -> np.ndarray:
    fits: np.ndarray = np.abs(column.values.astype(np.float64)) * float(track.scale_inverse) < VALUE_LIMIT
    return fits


def encode(track: Track, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Values of a track as int64, and which of them are valid.

    Encodings: ``integer`` as is; ``scaled`` round-half-even(value / scale); ``ordered`` the bits of a double,
    mapped so that integers compare as the doubles do (-0.0 is taken as 0.0); ``presence`` zero.

    Raises:
        OverflowError: a value does not fit; see `out_of_range`.
    """
    if track.encoding == "presence":
        return np.zeros(len(column.valid), np.int64), column.valid
    if track.encoding == "ordered":
        return _reorder((column.values + 0.0).view(np.int64)), column.valid
    fits = _fits(track, column)
    if not bool((fits | ~column.valid).all()):
        raise OverflowError(f"{track.value.key} exceeds the range of its aggregates: check rows with out_of_range()")
    if track.encoding == "integer":
        return column.values.astype(np.int64), column.valid
    return np.rint(np.where(fits, column.values, 0.0) * float(track.scale_inverse)).astype(np.int64), column.valid


def _reorder(bits: np.ndarray) -> np.ndarray:
    """Between the bits of doubles and integers of the same order; its own inverse."""
    flipped: np.ndarray = bits ^ ((bits >> 63) & np.int64(0x7FFFFFFFFFFFFFFF))
    return flipped


def _run_track(
    track: Track,
    state: TrackState,
    evaluator: Evaluator,
    keyed: np.ndarray,
    asked: np.ndarray,
    slots: np.ndarray,
    times: np.ndarray,
    reaches: np.ndarray,
) -> None:
    """Fold one track; the evaluator learns its aggregates."""
    rows = len(slots)
    values, valid = encode(track, evaluator.column(track.value))
    folded = keyed & valid & evaluator.is_type(track.event_type)
    if track.where is not None:
        condition = evaluator.column(track.where)
        folded &= condition.valid & condition.values
    actions = folded * np.uint8(windows.FOLD) | asked * np.uint8(windows.QUERY)
    outputs = len(track.outputs)
    integers = np.zeros((outputs, rows), np.int64)
    floats = np.zeros((outputs, rows), np.float64)
    states = np.zeros((outputs, rows), np.uint8)
    layout = track.arrays
    start = 0
    while start < rows:
        start = windows.fold_and_query(
            start, slots, times, evaluator.identities(), actions, values, reaches,
            layout["w_span"], layout["w_self"], layout["w_sums"], layout["w_from"], layout["w_to"],
            layout["operations"], layout["ks"], track.scale_inverse,
            state.base, state.capacity, state.first, state.end, state.advanced,
            state.left, state.uppers, state.lowers, state.squares_high, state.squares_low,
            state.times, state.identities, state.values, state.used,
            integers, floats, states, state.exact, state.exact_count,
        )  # fmt: skip
        if start < rows and int(state.exact_count[0]) + outputs <= len(state.exact):
            state.make_room()
        _divide_exactly(track, state, integers, floats, states)
    for i, output in enumerate(track.outputs):
        evaluator.learn(output.aggregate, _answers(output, integers[i], floats[i], states[i]))


def _divide_exactly(
    track: Track, state: TrackState, integers: np.ndarray, floats: np.ndarray, states: np.ndarray
) -> None:
    """Finish the answers whose integers are too wide for doubles: Python's int / int rounds exactly once."""
    inverse = track.scale_inverse
    for f, row, n, upper, lower, high, low in state.exact[: int(state.exact_count[0])].tolist():
        total = (upper << 32) + lower
        operation = track.outputs[f].operation
        states[f, row] = windows.DONE
        if operation == windows.SUM_INTEGER:
            if -(2**63) <= total < 2**63:
                integers[f, row] = total
            else:
                states[f, row] = windows.NULL
        elif operation == windows.SUM_FLOAT:
            floats[f, row] = total / inverse
        elif operation == windows.MEAN:
            floats[f, row] = total / (n * inverse)
        else:
            squares = ((high % 2**64) << 64) + low % 2**64
            sample = operation in (windows.VARIANCE_SAMPLE, windows.STD_SAMPLE)
            result = (n * squares - total * total) / (n * (n - sample) * inverse * inverse)
            floats[f, row] = np.sqrt(result) if operation in (windows.STD, windows.STD_SAMPLE) else result
    state.exact_count[0] = 0


def _answers(output: Output, integers: np.ndarray, floats: np.ndarray, states: np.ndarray) -> Column:
    dtype = output.aggregate.dtype
    values: Any = floats
    if output.is_integer:
        values = integers
        if dtype == "float64":
            values = _reorder(integers).view(np.float64)
        elif dtype == "bool":
            values = integers != 0
    return Column(values, states == windows.DONE)
