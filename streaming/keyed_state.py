"""State of a shard in the runner's state: a base, and a journal of what was folded since.

The live state is in the process, under a random token that stands in the runner's state too. Where the two do not
match, because a bundle failed, the runner went back to a checkpoint, or the shard has moved here, the live state is
made anew: the base is loaded and the journal folded again, which gives the same bits. The base is written anew when
the journal has outgrown it, so what is written is a small multiple of what was folded.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

CHUNK_BYTES = 4 << 20
LEAST_JOURNAL_BYTES = 4 << 20


class Folder(Protocol):
    """Something with memory that takes rows in order."""

    def entry(self, block: pa.RecordBatch) -> bytes:
        """What is to be known of some rows to fold them again."""

    def again(self, entry: bytes) -> None:
        """Fold what `entry` gave."""

    def save(self) -> bytes:
        """All that it remembers."""

    def load(self, saved: bytes) -> None:
        """Take over what `save` gave."""


F = TypeVar("F", bound=Folder)


class Cells:
    """A shard's cells in the runner's state, as Beam gives them to a step.

    Args:
        head: one value: token and sizes, as JSON.
        base, journal: bags of bytes.
    """

    def __init__(self, head: Any, base: Any, journal: Any) -> None:
        self.head, self.base, self.journal = head, base, journal

    def read_head(self) -> dict[str, Any]:
        data = self.head.read()
        found: dict[str, Any] = {} if data is None else json.loads(data)
        return found


class LiveStates(Generic[F]):
    """The live states of one step's shards in this process. A shard is with one thread at a time."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[str, F]] = {}
        self._lock = threading.Lock()

    def take(self, shard: int, cells: Cells, fresh: F) -> tuple[F, dict[str, Any]]:
        """The shard's state and its head, out of this cache.

        Args:
            fresh: one with nothing remembered, filled from the cells if none is live.
        """
        head = cells.read_head()
        with self._lock:
            held = self._held.pop(shard, None)
        if held is not None and held[0] == head.get("token"):
            return held[1], head
        if head:
            base = b"".join(_in_order(cells.base.read()))
            if base:
                fresh.load(base)
            for data in _in_order(cells.journal.read()):
                fresh.again(data)
        return fresh, head

    def put(self, shard: int, cells: Cells, head: dict[str, Any], state: F, block: pa.RecordBatch) -> None:
        """Back into the cache, under a fresh token, after ``block`` was folded."""
        head = {"number": 0, "base": 0, "journal": 0} | head
        data = state.entry(block)
        head["number"] += 1
        head["journal"] += len(data)
        if head["journal"] > max(LEAST_JOURNAL_BYTES, head["base"]):
            saved = state.save()
            cells.base.clear()
            cells.journal.clear()
            for number, start in enumerate(range(0, len(saved), CHUNK_BYTES)):
                cells.base.add(_numbered(number, saved[start : start + CHUNK_BYTES]))
            head |= {"base": len(saved), "journal": 0}
        else:
            cells.journal.add(_numbered(head["number"], data))
        head["token"] = secrets.token_hex(16)
        cells.head.write(json.dumps(head).encode("ascii"))
        with self._lock:
            self._held[shard] = head["token"], state


def _numbered(number: int, data: bytes) -> bytes:
    """A bag keeps no order, so what is in it is numbered."""
    return number.to_bytes(8, "big") + data


def _in_order(parts: Iterable[bytes]) -> list[bytes]:
    return [part[8:] for part in sorted(parts, key=lambda part: part[:8])]
