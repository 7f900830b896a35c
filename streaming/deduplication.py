"""Deduplication: each identity is folded once, within a stated horizon (contract C5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.identities import BEYOND, DUPLICATE, Identities

_TILE_US = 3_600_000_000


class Deduplicator:
    """Identities (event type, event id) accepted so far, kept exactly for ``horizon_us`` of event time.

    An event older than the horizon behind the newest accepted one cannot be told from a duplicate that was
    forgotten, so it is refused as ``beyond_horizon`` and never folded twice. Identities are forgotten an hour of event
    time at a time.
    """

    def __init__(self, horizon_us: int) -> None:
        self.horizon_us = horizon_us
        self._newest = np.array([-(2**62)], np.int64)
        self._identities = Identities()
        self._oldest_tile = self._tile()

    def __len__(self) -> int:
        return len(self._identities)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._identities.nbytes

    @property
    def newest_us(self) -> int:
        """Greatest event time accepted so far."""
        return int(self._newest[0])

    def warm_up(self) -> None:
        """Compile what `accept` calls."""
        nothing = {"event_type": pa.array([], pa.string()), "event_id": pa.array([], pa.string())}
        self.accept(pa.RecordBatch.from_pydict({**nothing, "event_time": pa.array([], pa.timestamp("us", tz="UTC"))}))

    def accept(self, block: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Decide row by row, in order, and remember what is accepted.

        Returns:
            Which rows are duplicates and which lie beyond the horizon; bool, shape [rows] each. The rows in
            neither are new.
        """
        decided = self._identities.accept(block, self._newest, self.horizon_us, _TILE_US)
        oldest = self._tile()
        if oldest != self._oldest_tile:
            self._oldest_tile = oldest
            self._identities.forget(oldest)
        return decided == DUPLICATE, decided == BEYOND

    def save(self, sink: Any) -> None:
        """Write what it remembers as an Arrow IPC stream, piece by piece."""
        self._identities.save(sink)

    def load(self, source: Any, newest_us: int) -> None:
        """Remember what another one, which had accepted events up to ``newest_us``, saved; in place of all else."""
        self._newest[0] = newest_us
        self._oldest_tile = self._tile()
        self._identities.load(source, self._oldest_tile)

    def become(self, other: Deduplicator) -> None:
        """Take over what another one remembers, which is of no use afterwards."""
        self._newest, self._identities, self._oldest_tile = other._newest, other._identities, other._oldest_tile

    def _tile(self) -> int:
        return (self.newest_us - self.horizon_us) // _TILE_US
