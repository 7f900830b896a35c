"""What a batch job does with rows that have passed all stages, and what it remembers of them from bucket to bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from batch.partitions import Place


class Ended(Protocol):
    """What is done with rows that have passed all stages."""

    def memory(self, shard: int) -> Memory | None:
        """What rows of a shard change as they end, one bucket after the other; None if nothing."""
        ...

    def open(self, name: str, memory: Any) -> Ending:
        """Begin a bucket; ``name`` is the bucket's, and the same each time the job runs."""
        ...

    def close(self) -> None:
        """No bucket follows."""
        ...


class Memory(Protocol):
    """What is remembered from bucket to bucket, and in what a run that was cut off finds."""

    def save(self) -> list[bytes]:
        """All of it."""
        ...

    def load(self, saved: Sequence[bytes]) -> None:
        """Take over what `save` gave."""
        ...


class Ending(Protocol):
    """One bucket of ended rows."""

    def write(self, block: pa.RecordBatch) -> Iterable[tuple[Place, pa.RecordBatch]]:
        """Take rows in fold order, with ``stage.*`` and ``feature.*``; what of them goes on to steps behind the end."""
        ...

    def close(self) -> Mapping[str, int]:
        """Make durable what was taken, under the bucket's name; what is to be counted."""
        ...
