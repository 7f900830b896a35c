"""States of several shards of a stage as one: the re-shard between a batch job and a live one (contract C1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.plan import Stage
from shared_features.state import ENCODING_VERSION, StageState


def merged(stage: Stage, states: Sequence[StageState], epoch: int) -> StageState:
    """One state with the keys of all, at the first position of a new epoch.

    Args:
        stage: of all states.
        states: of different shards: no key is in two of them.
        epoch: of what will be folded onto it; greater than that of anything folded before.

    What a key's events give depends on no other key, so the merged state gives what the states gave; see docs/state.md
    for the encoding that is put together here.
    """
    parts = [_Part(state, len(stage.tracks)) for state in states]
    header = {
        "encoding_version": ENCODING_VERSION,
        "stage": stage.name,
        "epoch": epoch,
        "shard": 0,
        "position": 0,
        "missing": sum(state.missing for state in states),
        "tracks": [track.name for track in stage.tracks],
    }
    keys = pa.concat_tables([part.keys for part in parts]).replace_schema_metadata(
        {"sameriver.state": json.dumps(header, sort_keys=True)}
    )
    sink = pa.BufferOutputStream()
    _write(sink, keys)
    offsets = np.cumsum([0, *(part.keys.num_rows for part in parts)]).tolist()
    for track in range(len(stage.tracks)):
        moved = [
            part.tracks[track].set_column(0, "slot", pa.array(part.tracks[track]["slot"].to_numpy() + offset))
            for part, offset in zip(parts, offsets[:-1], strict=True)
        ]
        _write(sink, pa.concat_tables(moved))
    return StageState.load(stage, sink.getvalue())


class _Part:
    """A saved state as its tables."""

    def __init__(self, state: StageState, tracks: int) -> None:
        source = pa.BufferReader(state.save())
        self.keys = _read(source).replace_schema_metadata(None)
        self.tracks = [_read(source) for _ in range(tracks)]


def _read(source: Any) -> pa.Table:
    with pa.ipc.open_stream(source) as reader:
        return reader.read_all()


def _write(sink: pa.BufferOutputStream, table: pa.Table) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100_000)
