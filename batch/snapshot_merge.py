"""States of several shards of a stage as one: the re-shard between a batch job and a live one (contract C1).

And the state of a stage as that of the same key in the next version of an app.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.plan import Stage, Track
from shared_features.state import ENCODING_VERSION, StageState

_BY_TRACK = 2
"""The version of the encoding that knows of no groups of tracks."""


def merged(stage: Stage, states: Sequence[StageState], epoch: int) -> StageState:
    """One state with the keys of all, at the first position of a new epoch.

    Args:
        stage: of all states.
        states: of different shards: no key is in two of them.
        epoch: of what will be folded onto it; greater than that of anything folded before.

    What a key's events give depends on no other key, so the merged state gives what the states gave; see docs/state.md
    for the encoding that is put together here.
    """
    parts = [_Part(state, len(stage.groups)) for state in states]
    sink = pa.BufferOutputStream()
    header = _header(stage, epoch, sum(state.missing for state in states), ENCODING_VERSION)
    _write(sink, pa.concat_tables([part.keys for part in parts]).replace_schema_metadata(header))
    offsets = np.cumsum([0, *(part.keys.num_rows for part in parts)]).tolist()
    for group in range(len(stage.groups)):
        moved = [
            part.groups[group].set_column(0, "slot", pa.array(part.groups[group]["slot"].to_numpy() + offset))
            for part, offset in zip(parts, offsets[:-1], strict=True)
        ]
        _write(sink, pa.concat_tables(moved))
    return StageState.load(stage, sink.getvalue())


def covers(held: Stage, wanted: Stage) -> bool:
    """Whether what a state of ``held`` retains is all that ``wanted`` needs, where events are the same.

    That is so if it has each track, by its values, condition and encoding, and reaches as far back: what a state
    retains beyond its windows' reach is in none of them (contract C2).
    """
    tracks = {track.name: track for track in held.tracks}
    return (
        held.key.definition == wanted.key.definition
        and held.lateness_us == wanted.lateness_us
        and held.longest_us >= wanted.longest_us
        and all(track.name in tracks and _events(tracks[track.name]) >= _events(track) for track in wanted.tracks)
    )


def succeeded(stage: Stage, state: StageState, epoch: int) -> StageState:
    """A state of another version of a stage as this one's, at the first position of a new epoch; see `covers`."""
    held = state.stage
    if [track.name for track in held.tracks] == [track.name for track in stage.tracks] and _alike(held, stage):
        return merged(stage, [state], epoch)
    part = _Part(state, len(held.groups))
    tracks: dict[str, pa.Table] = {}
    for group, events in zip(held.groups, part.groups, strict=True):
        for number in group.numbers:
            own = events.select(["slot", "time_us", "identity", f"value.{number}"])
            own = own.filter(own[f"value.{number}"].is_valid()).rename_columns([*own.column_names[:3], "value"])
            tracks[held.tracks[number].name] = own
    sink = pa.BufferOutputStream()
    _write(sink, part.keys.replace_schema_metadata(_header(stage, epoch, state.missing, _BY_TRACK)))
    for track in stage.tracks:
        _write(sink, tracks[track.name])
    return StageState.load(stage, sink.getvalue())


def _alike(held: Stage, wanted: Stage) -> bool:
    """Whether tracks of the same order lie together in the same groups."""
    return [group.numbers for group in held.groups] == [group.numbers for group in wanted.groups]


def _header(stage: Stage, epoch: int, missing: int, version: int) -> dict[str, str]:
    header = {
        "encoding_version": version,
        "stage": stage.name,
        "epoch": epoch,
        "shard": 0,
        "position": 0,
        "missing": missing,
        "tracks": [track.name for track in stage.tracks],
    }
    return {"sameriver.state": json.dumps(header, sort_keys=True)}


def _events(track: Track) -> int:
    """Of the track's widest window of the last n events."""
    return max(window.events for window in track.windows)


class _Part:
    """A saved state as its tables."""

    def __init__(self, state: StageState, groups: int) -> None:
        source = pa.BufferReader(state.save())
        self.keys = _read(source).replace_schema_metadata(None)
        self.groups = [_read(source) for _ in range(groups)]


def _read(source: Any) -> pa.Table:
    with pa.ipc.open_stream(source) as reader:
        return reader.read_all()


def _write(sink: pa.BufferOutputStream, table: pa.Table) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100_000)
