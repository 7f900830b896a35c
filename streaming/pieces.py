"""What travels between the steps of a job on a cluster: rows on their way to the shard that owns their key.

Rows are cut by a stable hash of their key. What a bundle sends to one shard is put together at the bundle's end, since
a piece costs about as much whatever its size.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from shared_features.blocks import concat_blocks, from_ipc, to_ipc
from shared_features.hashing import shard_of
from streaming.results import with_same_columns
from streaming.topics import OutgoingMessage

MAX_PIECE_ROWS = 20_000


@dataclass(slots=True)
class Piece:
    """Some rows, and what is to be counted with them.

    Attributes:
        block: the rows, with all columns that the steps so far have added; None for none.
        received: events that the messages brought, counted where they were pulled.
        duplicates: of them, dropped as such.
        dead_letters: of them, by reason, refused before they were folded.
        letters: messages for the dead-letter topic.
    """

    block: pa.RecordBatch | None = None
    received: int = 0
    duplicates: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    letters: list[OutgoingMessage] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return 0 if self.block is None else int(self.block.num_rows)

    @property
    def is_empty(self) -> bool:
        """Whether it only shows that its sender lives."""
        return not (self.rows or self.received or self.duplicates or self.dead_letters or self.letters)

    def with_block(self, block: pa.RecordBatch | None) -> Piece:
        """The same counts with other rows."""
        return Piece(block, self.received, self.duplicates, self.dead_letters, self.letters)

    def refuse(self, reason: str, letters: list[OutgoingMessage]) -> None:
        """Count one more dead letter, which may be several messages."""
        self.dead_letters[reason] = self.dead_letters.get(reason, 0) + 1
        self.letters += letters


def together(pieces: Iterable[Piece]) -> Piece:
    """Several pieces as one, rows in their order."""
    whole = Piece()
    blocks = []
    for piece in pieces:
        if piece.block is not None and piece.block.num_rows:
            blocks.append(piece.block)
        whole.received += piece.received
        whole.duplicates += piece.duplicates
        whole.letters += piece.letters
        for reason, number in piece.dead_letters.items():
            whole.dead_letters[reason] = whole.dead_letters.get(reason, 0) + number
    if blocks:
        whole.block = concat_blocks(with_same_columns(blocks))
    return whole


class Outbox:
    """What a bundle sends on, by shard, until it ends."""

    def __init__(self) -> None:
        self._held: dict[int, list[Piece]] = {}

    def put(self, piece: Piece, hashes: np.ndarray | None = None, shards: int = 1) -> None:
        """Take a piece; its counts go with shard 0, its rows to the shards of ``hashes`` (uint64, shape [rows])."""
        if hashes is None or shards == 1 or piece.block is None:
            self._held.setdefault(0, []).append(piece)
            return
        self._held.setdefault(0, []).append(piece.with_block(None))
        of = shard_of(hashes, shards)
        order = np.argsort(of.astype(np.uint16), kind="stable")
        taken, start = piece.block.take(pa.array(order)), 0
        for shard, count in enumerate(np.bincount(of, minlength=shards).tolist()):
            if count:
                self._held.setdefault(shard, []).append(Piece(taken.slice(start, count)))
            start += count

    def empty(self) -> Iterator[tuple[int, Piece]]:
        """All that is held, by shard; afterwards nothing is."""
        held, self._held = self._held, {}
        for shard, pieces in sorted(held.items()):
            part: list[Piece] = []
            for piece in pieces:
                if part and sum(one.rows for one in part) + piece.rows > MAX_PIECE_ROWS:
                    yield shard, together(part)
                    part = []
                part.append(piece)
            yield shard, together(part)


def encode_piece(piece: Piece) -> bytes:
    """JSON header with its length before it, then the rows as an Arrow IPC stream."""
    header: dict[str, Any] = {}
    if piece.received or piece.duplicates:
        header |= {"received": piece.received, "duplicates": piece.duplicates}
    if piece.dead_letters:
        header["dead_letters"] = piece.dead_letters
    if piece.letters:
        header["letters"] = [
            [base64.b64encode(one.data).decode("ascii"), dict(one.attributes), one.ordering_key]
            for one in piece.letters
        ]
    text = json.dumps(header).encode("utf-8")
    return len(text).to_bytes(4, "big") + text + (b"" if piece.block is None else to_ipc(piece.block))


def decode_piece(data: bytes) -> Piece:
    """What `encode_piece` was given."""
    length = int.from_bytes(data[:4], "big")
    header, rest = json.loads(data[4 : 4 + length]), data[4 + length :]
    return Piece(
        from_ipc(rest) if rest else None,
        header.get("received", 0),
        header.get("duplicates", 0),
        header.get("dead_letters", {}),
        [
            OutgoingMessage(base64.b64decode(data), attributes, key)
            for data, attributes, key in header.get("letters", ())
        ],
    )


class PieceCoder(beam.coders.Coder):
    """`encode_piece`, for Beam."""

    def encode(self, value: Piece) -> bytes:
        return encode_piece(value)

    def decode(self, encoded: bytes) -> Piece:
        return decode_piece(encoded)

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[Piece]:
        return Piece


beam.coders.registry.register_coder(Piece, PieceCoder)
