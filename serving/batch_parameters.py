"""Parameters of dynamic batching: BatchingParameters in text format, with the real names, defaults and checks.

Source: tensorflow_serving/servables/tensorflow/session_bundle_config.proto and shared_batch_scheduler.h.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import wire
from serving.config import read_text
from serving.status import invalid

THREADS_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class BatchingParameters:
    """How requests are put together.

    Attributes:
        max_batch_size: rows of the largest request, and of a batch unless large ones are split.
        batch_timeout_micros: that a batch which is not full waits for more, in microseconds.
        max_enqueued_batches: of one queue; beyond it UNAVAILABLE.
        num_batch_threads: batches run at once.
        thread_pool_name: in metrics and names of threads.
        enable_large_batch_splitting: a request may be cut into several batches.
        max_execution_batch_size: rows of a batch where large ones are split; 0 stands for `max_batch_size`.
        allowed_batch_sizes: a batch is filled up to the next of these; the last one is the largest.
        pad_variable_length_inputs: tensors of different inner shapes are filled up to the largest.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    thread_pool_name: str = "model_server_batch_threads"
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def __post_init__(self) -> None:
        """RefusalError (INVALID_ARGUMENT) with the real server's words if a value cannot work."""
        if not 1 <= self.num_batch_threads <= THREADS_LIMIT:
            raise invalid(f"num_batch_threads must be positive; was {self.num_batch_threads}")
        if self.max_batch_size < 1:
            raise invalid(f"input_batch_size_limit must be positive; was {self.max_batch_size}")
        if self.batch_timeout_micros < 0:
            raise invalid(f"batch_timeout_micros must be non-negative; was {self.batch_timeout_micros}")
        if self.max_enqueued_batches < 1:
            raise invalid(f"max_enqueued_batches must be positive; was {self.max_enqueued_batches}")
        if self.enable_large_batch_splitting and self.max_batch_size < self.execution_size:
            raise invalid(
                "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
                "max_execution_batch_size."
            )
        sizes = self.allowed_batch_sizes
        if any(size < 1 or size <= before for before, size in zip((0, *sizes), sizes, strict=False)):
            raise invalid("allowed_batch_sizes entries must be monotonically increasing")
        if sizes and sizes[-1] != self.execution_size:
            name = "max_execution_batch_size" if self.enable_large_batch_splitting else "max_batch_size"
            verb = "be equal to" if self.enable_large_batch_splitting else "match"
            raise invalid(
                f"Last entry in allowed_batch_sizes must {verb} {name}; last entry was {sizes[-1]}; expected "
                f"{self.execution_size}"
            )

    @property
    def execution_size(self) -> int:
        """Rows of the largest batch."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def rounded(self, rows: int) -> int:
        """Rows that a batch of `rows` is filled up to."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def read_batching(path: Path, base: BatchingParameters | None = None) -> BatchingParameters:
    """Parameters from a file; what it does not say is the default.

    Args:
        path: of the file.
        base: gives the threads, as for a model's own file; None takes them from the file, too.

    Raises RefusalError with the real server's words, OSError if the file cannot be read.
    """
    message = read_text(path, wire.BatchingParameters())
    given: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name == "allowed_batch_sizes":
            given[field.name] = tuple(value)
        elif field.name == "pad_variable_length_inputs":
            given[field.name] = value
        elif field.name in BatchingParameters.__slots__:
            given[field.name] = value.value
    given.setdefault("thread_pool_name", "batch_threads")
    if base is not None:
        given.update(num_batch_threads=base.num_batch_threads, thread_pool_name=base.thread_pool_name)
    return BatchingParameters(**given)
