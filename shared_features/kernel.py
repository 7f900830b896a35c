"""The kernel: `step` folds a block into the state of one keyed stage and appends what each event could see.

Batch calls it with big blocks, streaming with small ones; the result is the same bits, because everything in it
depends on the order of the rows only (contract C1 to C4). It knows nothing of Beam, gRPC or TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.blocks import append_columns
from shared_features.columns import Column, Evaluator, to_arrow_where
from shared_features.interning import Interner
from shared_features.keys import Key
from shared_features.partitions import PARTITIONS, by_output, later
from shared_features.plan import Output, Plan, Stage, Track
from shared_features.retained import Answers, Rows
from shared_features.state import StageState, flip_identities

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
    stage, rows = state.stage, evaluator.rows
    identities = later(evaluator.identities, rows)
    state.release_strings()
    slots = state.slots_of(key_column(stage.key, evaluator))
    keyed = slots >= 0
    taking_part = int(np.count_nonzero(keyed))
    if taking_part < rows:
        state.missing += _missing(stage.key, evaluator, keyed)
    asked = keyed & evaluator.is_type(stage.predict_on)
    folded = np.empty((len(stage.tracks), rows), np.bool_)
    values = np.empty((len(stage.tracks), rows), np.int64)
    for i, track in enumerate(stage.tracks):
        _fill(track, state.interners[i], evaluator, keyed, folded[i], values[i])
    integers = np.empty((rows, len(stage.outputs)), np.int64)
    answers = Answers(np.zeros(rows, np.bool_), integers, integers.view(np.float64), np.zeros(integers.shape, np.bool_))
    # Copies of our own: the pass is compiled anew for arrays that are read-only or not aligned.
    times = evaluator.block_column("event_time", "timestamp").values.copy()
    flipped = flip_identities(identities())
    state.run(slots, Rows(slots // PARTITIONS, times, flipped, folded, asked, values), answers)
    answers = by_output(answers)
    for i, (track, interner, output) in enumerate(state.outputs):
        evaluator.learn(output.aggregate, _answers(track, interner, output, answers, i))
    return _stage_columns(state, keyed, taking_part, answers.late)


def _stage_columns(state: StageState, keyed: np.ndarray, taking_part: int, late: np.ndarray) -> dict[str, pa.Array]:
    rows = len(keyed)
    position, state.position = state.position, state.position + taking_part
    if rows == 1 and taking_part:
        epoch, shard = _single(state.epoch), _single(state.shard)
        positions, lates = pa.array([position], pa.int64()), _LATE[bool(late[0])]
    else:
        mask = None if taking_part == rows else ~keyed
        epoch, shard = (pa.array(np.full(rows, one, np.int32), mask=mask) for one in (state.epoch, state.shard))
        counted = np.arange(rows) if mask is None else np.cumsum(keyed) - 1
        positions, lates = pa.array(position + counted, mask=mask), pa.array(late, mask=mask)
    name = f"stage.{state.stage.name}."
    return {name + "epoch": epoch, name + "shard": shard, name + "position": positions, name + "late": lates}


_LATE = (pa.array([False]), pa.array([True]))


@lru_cache(maxsize=1024)
def _single(number: int) -> pa.Array:
    """A column of one row, int32; blocks of one row share it."""
    return pa.array([number], pa.int32())


def _missing(key: Key, evaluator: Evaluator, keyed: np.ndarray) -> int:
    """Number of rows of the key's event types whose key is null."""
    of_types = np.zeros(len(keyed), np.bool_)
    for event_type in key.fields:
        of_types |= evaluator.is_type(event_type)
    return int(np.count_nonzero(of_types & ~keyed))


def _fill(
    track: Track,
    interner: Interner | None,
    evaluator: Evaluator,
    keyed: np.ndarray,
    folded: np.ndarray,
    values: np.ndarray,
) -> None:
    """Write which rows enter a track, and their encoded values."""
    column = evaluator.column(track.value)
    np.logical_and(keyed, column.valid, out=folded)
    folded &= evaluator.is_type(track.event_type)
    if track.where is not None:
        condition = evaluator.column(track.where)
        folded &= condition.valid & condition.values
    if interner is not None:
        values[:] = interner.encode(column.values, folded)
    else:
        values[:] = encode(track, column)[0]


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
    features = plan.app.features.values()
    columns = zip(evaluator.columns(features), (feature.dtype for feature in features), strict=True)
    return dict(zip(plan.feature_columns, to_arrow_where(list(columns), asked), strict=True))


def key_column(key: Key, evaluator: Evaluator) -> pa.Array:
    """The key of each row, null where the row takes no part in the key's stage; string or int64."""
    first, *others = (evaluator.array(field) for field in key.fields.values())
    return pc.coalesce(first, *others) if others else first


def out_of_range(plan: Plan, block: pa.RecordBatch) -> dict[int, str]:
    """Rows that must not be folded, because a value at its scale does not fit the sums: row to one sentence.

    A value must stay below 2^62 times its scale in magnitude. Callers send such rows to the dead letters
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
    fits: np.ndarray = np.abs(column.values.astype(np.float64, copy=False)) < VALUE_LIMIT / track.scale_inverse
    return fits


def encode(track: Track, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Values of a track as int64, and which of them are valid.

    Encodings: ``integer`` as is; ``scaled`` round-half-even(value / scale); ``ordered`` the bits of a double,
    mapped so that integers compare as the doubles do (-0.0 is taken as 0.0); ``presence`` zero. Strings that are
    asked back (``interned``) are encoded by the state's `Interner` instead.

    Raises:
        OverflowError: a value does not fit; see `out_of_range`.
    """
    if track.encoding == "presence":
        return np.zeros(len(column.valid), np.int64), column.valid
    if track.encoding == "ordered":
        return _reorder((column.values + 0.0).view(np.int64)), column.valid
    fits = _fits(track, column)
    all_fit = bool(fits.all())
    if not (all_fit or (fits | ~column.valid).all()):
        raise OverflowError(f"{track.value.key} exceeds the range of its aggregates: check rows with out_of_range()")
    if track.encoding == "integer":
        return column.values.astype(np.int64), column.valid
    values = column.values if all_fit else np.where(fits, column.values, 0.0)
    return np.rint(values * float(track.scale_inverse)).astype(np.int64), column.valid


def _reorder(bits: np.ndarray) -> np.ndarray:
    """Between the bits of doubles and integers of the same order; its own inverse."""
    flipped: np.ndarray = bits ^ ((bits >> 63) & np.int64(0x7FFFFFFFFFFFFFFF))
    return flipped


def _answers(track: Track, interner: Interner | None, output: Output, answers: Answers, index: int) -> Column:
    """One output as a column of its aggregate's dtype."""
    valid = answers.valid[index]
    integers = answers.integers[index]
    if not output.is_integer:
        return Column(answers.floats[index], valid)
    if not output.is_value:
        return Column(integers, valid)
    if interner is not None:
        return Column(interner.decode(integers, valid), valid)
    if track.encoding == "ordered":
        return Column(_reorder(integers).view(np.float64), valid)
    if output.aggregate.dtype == "float64":  # min, max, … never share a track of scaled floats
        raise AssertionError(f"{output.aggregate.key} reads encoding {track.encoding}")
    return Column(integers != 0 if output.aggregate.dtype == "bool" else integers, valid)
