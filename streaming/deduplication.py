"""Deduplication: each identity is folded once, within a stated horizon (contract C5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

_TILE_US = 3_600_000_000


class Deduplicator:
    """Identities (event type, event id) accepted so far, kept exactly for ``horizon_us`` of event time.

    An event older than the horizon behind the newest accepted one cannot be told from a duplicate that was
    forgotten, so it is refused as ``beyond_horizon`` and never folded twice.

    Memory: the identity's text plus about 100 bytes for each event inside the horizon.
    """

    def __init__(self, horizon_us: int) -> None:
        self.horizon_us = horizon_us
        self.newest_us = -(2**62)
        self._seen: set[str] = set()
        self._tiles: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def accept(self, block: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Decide row by row, in order, and remember what is accepted.

        Returns:
            Which rows are duplicates and which lie beyond the horizon; bool, shape [rows] each. The rows in
            neither are new.
        """
        rows = block.num_rows
        duplicate, beyond = np.zeros(rows, bool), np.zeros(rows, bool)
        types = block.column("event_type").to_pylist()
        ids = block.column("event_id").to_pylist()
        times = block.column("event_time").cast(pa.int64()).to_pylist()
        seen = self._seen
        for row in range(rows):
            identity = f"{types[row]}\0{ids[row]}"
            if identity in seen:
                duplicate[row] = True
            elif times[row] < self.newest_us - self.horizon_us:
                beyond[row] = True
            else:
                seen.add(identity)
                self._tiles.setdefault(times[row] // _TILE_US, []).append(identity)
                self.newest_us = max(self.newest_us, times[row])
        self._forget()
        return duplicate, beyond

    def save(self) -> Iterator[bytes]:
        """What it remembers, an hour of event time at a time, as Arrow IPC streams."""
        for tile, identities in sorted(self._tiles.items()):
            batch = pa.RecordBatch.from_pydict({"identity": pa.array(identities, pa.large_string())})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema.with_metadata({"tile": str(tile)})) as writer:
                writer.write_batch(batch)
            yield bytes(sink.getvalue())

    def load(self, saved: Iterable[bytes | memoryview], newest_us: int) -> None:
        """Remember what another one, which had accepted events up to ``newest_us``, saved; in place of all else."""
        self._seen, self._tiles, self.newest_us = set(), {}, newest_us
        for part in saved:
            with pa.ipc.open_stream(pa.py_buffer(part)) as reader:
                tile = int((reader.schema.metadata or {})[b"tile"])
                self._tiles[tile] = reader.read_all()["identity"].to_pylist()
            self._seen.update(self._tiles[tile])
        self._forget()

    def _forget(self) -> None:
        oldest = (self.newest_us - self.horizon_us) // _TILE_US
        for tile in [tile for tile in self._tiles if tile < oldest]:
            self._seen.difference_update(self._tiles.pop(tile))
