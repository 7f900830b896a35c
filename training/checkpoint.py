"""The state of a training after an epoch, as one file of plain arrays: what a run that was killed goes on from.

It holds the weights, the optimizer's moments and the states of the random generators, so that the epochs that follow
are those that would have followed.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_features.errors import ConfigurationError
from training.export import staged_name

HEADER, VARIABLE, BEST = "header", "variable", "best"
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises where a file of arrays is not what was written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training stands, beside its variables.

    Attributes:
        epoch: the last one that was finished, from 1.
        done: batches so far.
        worse: epochs since the best one.
        measured: after each epoch.
        best: validation log loss and weights of the best epoch.
    """

    epoch: int
    done: int
    worse: int
    measured: list[dict[str, float]]
    best: tuple[float, list[npt.NDArray[Any]]]


def write_checkpoint(path: Path, variables: Sequence[Any], state: Checkpoint) -> None:
    """Write everything; the file is there whole or not at all.

    Args:
        path: of the file.
        variables: Keras variables, of the model and of the optimizer.
        state: the rest.
    """
    header = {"epoch": state.epoch, "done": state.done, "worse": state.worse, "measured": state.measured}
    text = json.dumps({**header, "best": state.best[0], "weights": len(state.best[1])})
    arrays = {f"{VARIABLE}{number}": np.asarray(one) for number, one in enumerate(variables)}
    arrays |= {f"{BEST}{number}": one for number, one in enumerate(state.best[1])}
    packed = io.BytesIO()
    np.savez(packed, **{HEADER: np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
    beside = path.with_name(staged_name("checkpoint"))  # of two trainings of one recipe each has its own
    try:
        with beside.open("wb") as file:
            file.write(packed.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_checkpoint(path: Path, variables: Sequence[Any]) -> Checkpoint | None:
    """Set the variables to what the file holds; None, and nothing set, where there is none that fits.

    Raises:
        ConfigurationError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as held:
            header = json.loads(bytes(held[HEADER]))
            values = [held[f"{VARIABLE}{number}"] for number in range(len(variables)) if f"{VARIABLE}{number}" in held]
            if [one.shape for one in values] != [tuple(one.shape) for one in variables]:
                return None
            best = [held[f"{BEST}{number}"] for number in range(header["weights"])]
    except DAMAGED as error:
        raise ConfigurationError(
            f"Checkpoint {path} is damaged ({error}): remove it, and the training begins anew."
        ) from error
    for one, value in zip(variables, values, strict=True):
        one.assign(value)
    return Checkpoint(header["epoch"], header["done"], header["worse"], header["measured"], (header["best"], best))
