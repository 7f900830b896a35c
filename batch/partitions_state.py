"""The state of a shard between two buckets, on disk: what a run that was cut off goes on from.

A file is the bucket, 8 bytes; how many pieces are remembered beside the state, 8 bytes; of each its length, 8 bytes,
and the piece; the state.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from shared_features.plan import Stage
from shared_features.state import StageState

_FOLDER, _LENGTH = "state", 8


def checkpoints(work: str | Path, step: int) -> list[Path]:
    """Where what is known of each shard of a step is."""
    return sorted(Path(work, _FOLDER).glob(f"{step}_*.state"))


def checkpoint_path(work: str | Path, step: int, shard: int, span: int | None = None) -> Path:
    """Where what is known of a shard, or of a span of it, goes."""
    return Path(work, _FOLDER, f"{step}_{shard}{'' if span is None else f'_{span}'}.state")


class Checkpoint(NamedTuple):
    """What is known after a bucket.

    Attributes:
        bucket: the bucket.
        state: of the stage.
        remembered: by what takes the ended rows, see `batch.partitions_ended`.
    """

    bucket: int
    state: StageState
    remembered: list[bytes]


def save_checkpoint(path: Path, bucket: int, state: StageState, remembered: Sequence[bytes] = ()) -> None:
    """Write what is known after ``bucket``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.write(_number(bucket) + _number(len(remembered)))
            for piece in remembered:
                file.write(_number(len(piece)) + piece)
            file.write(state.save())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_checkpoint(path: Path, stage: Stage) -> Checkpoint | None:
    """What was saved; None if there is nothing.

    Raises:
        HistoryError: it is damaged, or of a stage with other tracks.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        bucket, remembered = _read_number(file), _read_pieces(file)
        return Checkpoint(bucket, StageState.load(stage, file.read()), remembered)


def load_remembered(path: Path) -> list[bytes]:
    """Of what was saved only what is remembered beside the state."""
    with path.open("rb") as file:
        _read_number(file)
        return _read_pieces(file)


def _number(value: int) -> bytes:
    return value.to_bytes(_LENGTH, "big", signed=True)


def _read_number(file: IO[bytes]) -> int:
    return int.from_bytes(file.read(_LENGTH), "big", signed=True)


def _read_pieces(file: IO[bytes]) -> list[bytes]:
    return [file.read(_read_number(file)) for _ in range(_read_number(file))]
