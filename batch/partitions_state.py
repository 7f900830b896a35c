"""The state of a shard between two buckets, on disk: what a run that was cut off goes on from."""

from __future__ import annotations

import secrets
from pathlib import Path

from shared_features.plan import Stage
from shared_features.state import StageState

_LENGTH = 8


def save_checkpoint(path: Path, bucket: int, state: StageState) -> None:
    """Write the state after ``bucket``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(bucket.to_bytes(_LENGTH, "big", signed=True))
            file.write(state.save())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, stage: Stage) -> tuple[int, StageState] | None:
    """The bucket after which a state was saved, and the state; None if there is none.

    Raises:
        HistoryError: it is damaged, or of a stage with other tracks.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return int.from_bytes(data[:_LENGTH], "big", signed=True), StageState.load(stage, data[_LENGTH:])
