"""What a call to a model comes to, and what is known of one on its way."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.request import RequestEncoder

if TYPE_CHECKING:
    import pyarrow as pa


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
    request: tuple[int, int, RequestEncoder, bytes] | None = None
