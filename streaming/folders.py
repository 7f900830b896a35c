"""What the steps of a job on a cluster remember, shard by shard: identities, the kernel's state, reactions' memory."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa

from shared_features.app import App
from shared_features.blocks import append_columns, block_schema, from_ipc, to_ipc
from shared_features.columns import Evaluator
from shared_features.hashing import hash_column
from shared_features.kernel import aggregate_columns, fold, key_column
from shared_features.keys import Key
from shared_features.plan import Stage
from shared_features.reactions import ReactionStage
from shared_features.state import StageState
from streaming import results
from streaming.deduplication import Deduplicator
from streaming.outgoing import row_letter
from streaming.pieces import Piece

IDENTITY = ("event_type", "event_id", "event_time")


class Deduplication:
    """Drops what comes again, among the identities of one shard (contract C5)."""

    def __init__(self, app: App, horizon_s: int) -> None:
        self._app, self._horizon_s = app, horizon_s
        schema = block_schema(app.event_types)
        self._journal = pa.schema([schema.field(name) for name in IDENTITY])
        self._identities = Deduplicator(horizon_s * 1_000_000)

    def fold(self, piece: Piece) -> Piece:
        """The new rows; the others are counted."""
        block = piece.block
        assert block is not None
        duplicate, beyond = self._identities.accept(block)
        dropped = duplicate | beyond
        if not dropped.any():
            return piece
        detail = f"event time is more than the deduplication horizon of {self._horizon_s} s behind the newest event"
        for row in np.flatnonzero(beyond).tolist():
            piece.refuse("beyond_horizon", row_letter(self._app, block, row, "beyond_horizon", detail))
        piece.duplicates += int(duplicate.sum())
        return piece.with_block(block.filter(pa.array(~dropped)))

    def entry(self, block: pa.RecordBatch) -> bytes:
        return _entry(block, self._journal)

    def again(self, entry: bytes) -> None:
        self._identities.accept(_rows(entry, self._journal))

    def save(self) -> bytes:
        sink = io.BytesIO()
        sink.write(self._identities.newest_us.to_bytes(8, "big", signed=True))
        self._identities.save(sink)
        return sink.getvalue()

    def load(self, saved: bytes) -> None:
        self._identities.load(pa.BufferReader(saved[8:]), int.from_bytes(saved[:8], "big", signed=True))


class Keyed:
    """One shard of a keyed stage."""

    def __init__(self, app: App, stage: Stage, shard: int) -> None:
        schema = block_schema(app.event_types)
        read = {*IDENTITY, *stage.columns}
        self._journal = pa.schema([field for field in schema if field.name in read])
        self._stage, self._state = stage, StageState(stage, shard=shard)

    def fold(self, piece: Piece) -> Piece:
        """The rows with the stage's columns, aggregates among them."""
        assert piece.block is not None
        evaluator = Evaluator(piece.block)
        added = fold(self._state, evaluator)
        return piece.with_block(append_columns(piece.block, added | aggregate_columns([self._stage], evaluator)))

    def entry(self, block: pa.RecordBatch) -> bytes:
        return _entry(block, self._journal)

    def again(self, entry: bytes) -> None:
        fold(self._state, Evaluator(_rows(entry, self._journal)))

    def save(self) -> bytes:
        return self._state.save()

    def load(self, saved: bytes) -> None:
        self._state = StageState.load(self._stage, saved)


class Reacting:
    """One shard of the reactions that remember by one key."""

    def __init__(self, app: App, key: Key, shard: int) -> None:
        self._app, self._stage = app, ReactionStage(app, key, shard=shard)

    def fold(self, piece: Piece) -> Piece:
        """The rows with what fires."""
        assert piece.block is not None
        return piece.with_block(append_columns(piece.block, self._react(piece.block)))

    def entry(self, block: pa.RecordBatch) -> bytes:
        return to_ipc(block)

    def again(self, entry: bytes) -> None:
        self._react(from_ipc(entry))

    def save(self) -> bytes:
        parts = self._stage.save()
        return to_ipc(pa.RecordBatch.from_pydict({"reaction": pa.array(parts, pa.large_binary())}))

    def load(self, saved: bytes) -> None:
        self._stage.load(from_ipc(saved).column("reaction").to_pylist())

    def _react(self, block: pa.RecordBatch) -> dict[str, pa.Array]:
        return results.reactions(self._app, [self._stage], block, results.ended_columns(block))


def hashes_of(key: Key, block: pa.RecordBatch) -> np.ndarray:
    """By which rows go to the shards of a key; uint64, shape [rows]. Rows without the key go anywhere."""
    evaluator = Evaluator(block)
    keys = key_column(key, evaluator)
    hashes = hash_column(keys)
    return np.where(np.asarray(keys.is_valid()), hashes, evaluator.identities()) if keys.null_count else hashes


def _entry(block: pa.RecordBatch, schema: pa.Schema) -> bytes:
    """Rows without their schema, which would be most of it: these are the columns of the app's events."""
    return bytes(block.select(schema.names).serialize())


def _rows(entry: bytes, schema: pa.Schema) -> pa.RecordBatch:
    return pa.ipc.read_record_batch(pa.py_buffer(entry), schema)
