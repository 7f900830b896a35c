"""What a call to a model comes to, and what is known of one on its way."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving import wire
from serving.request import RequestEncoder
from serving.tensors import TensorError, numbers, strings

if TYPE_CHECKING:
    import pyarrow as pa

    from serving.backends import Backend


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer to one block.

    Attributes:
        outputs: output name to float64 of the block's rows ([rows], or [rows, k] for a model that gives k
            numbers a row); NaN on refused rows.
        refused: row index to the reason, a sentence; such a row has no prediction (``prediction_failed``).
        model_version: version that answered, for all rows the same; 0 if no row was ever asked about.
    """

    outputs: dict[str, npt.NDArray[np.float64]]
    refused: dict[int, str]
    model_version: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a Sameriver model says about itself: fingerprint of its features and their definitions (C8)."""

    fingerprint: str
    definitions: Any
    model_version: int = 0

    @classmethod
    def from_answer(cls, data: bytes) -> Description:
        """From the bytes of a PredictResponse of the signature ``describe``; ValueError if it is no such answer."""
        answer = wire.PredictResponse.FromString(data)
        try:
            fingerprint = strings(answer.outputs["fingerprint"])[0][0].decode()
            definitions = json.loads(strings(answer.outputs["definitions"])[0][0])
        except (TensorError, IndexError) as error:
            raise ValueError(str(error)) from error
        return cls(fingerprint, definitions, answer.model_spec.version.value)


@dataclass(slots=True, eq=False)
class Job:
    """One block on its way: pieces still to ask about, and what is known so far."""

    block: pa.RecordBatch
    rows: npt.NDArray[np.int64]  # row of the caller's block, for each row of `block`
    total: int
    future: Future[Prediction] = field(default_factory=Future)
    pieces: list[tuple[int, int]] = field(default_factory=list)
    unusable: dict[int, str] = field(default_factory=dict)  # rows that cannot be asked about at all
    refused: dict[int, str] = field(default_factory=dict)
    answers: list[tuple[int, int, dict[str, npt.NDArray[np.float64]]]] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    attempts: int = 0
    restarts: int = 0
    checked_signature: bool = False
    backend: Backend | None = None  # that all pieces of it are asked of, while it answers
    request: tuple[int, int, RequestEncoder, bytes] | None = None


def read_outputs(answer: bytes, rows: int, names: list[str]) -> tuple[dict[str, npt.NDArray[np.float64]], int]:
    """The bytes of a PredictResponse as columns, float64 [rows] or [rows, k], and the version that answered.

    Raises ValueError, with the end of a sentence about the model, if an output does not have a value a row.
    """
    response = wire.PredictResponse.FromString(answer)
    outputs = {}
    for name in names:
        column = numbers(response.outputs[name])
        if column.shape[:1] != (rows,) or column.ndim > 2:
            raise ValueError(
                f"answers output {name!r} of shape {list(column.shape)} to {rows} rows, where one value a row was "
                f"wanted: export it with outputs of shape [rows]."
            )
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        outputs[name] = column.astype(np.float64)
    return outputs, response.model_spec.version.value
