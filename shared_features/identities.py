"""Identities of events, remembered exactly, by tile of event time: what deduplication asks (contract C5).

The texts of all identities stand one after the other in one array of bytes. An open-addressing hash table says which
of them has a given hash, and the texts themselves are compared: two identities are never taken for one another. The
hash is SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) under a key drawn by each
process, so that nobody can choose identities that all meet in one place of the table.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from shared_features.exact import compiled, prefetch
from shared_features.hashing import string_buffers
from shared_features.machine_code import kept

_FIRST_ROWS, _FIRST_CELLS = 1024, 2048
_FREE = -1
_TAG_SHIFT = 32
_ROW_MASK = 0xFFFFFFFF
_WORD_BYTES = 8
_LEAST_FORGOTTEN = 1024
_PIECE_ROWS = 1 << 18
_HASHED_ROWS = 4096
_AHEAD = 12
"""How many rows ahead a cell is asked for: the table is larger than the processor's caches."""
_WORDS = "Array(uint64, 1, 'C')"
_BYTES = "Array(uint8, 1, 'C')"
_GIVEN_BYTES = "Array(uint8, 1, 'C', readonly=True)"

SAVED = pa.schema([("tile", pa.int64()), ("event_type", pa.int32()), ("event_id", pa.string())])


class Identities:
    """A set of (event type, event id), each with the tile in which it was seen; not thread-safe.

    Memory: 20 bytes and the id's text, with up to a quarter more room, and 11 to 22 bytes of the table for each one.
    """

    def __init__(self) -> None:
        self._key = np.frombuffer(secrets.token_bytes(16), np.uint64).copy()
        self._codes: dict[str, int] = {}
        self._clear()

    def _clear(self) -> None:
        self._rows, self._forgotten = 0, 0
        self._types = np.zeros(_FIRST_ROWS, np.int32)
        self._tiles = np.zeros(_FIRST_ROWS, np.int64)
        self._ends = np.zeros(_FIRST_ROWS + 1, np.int64)
        self._text = np.zeros(_FIRST_ROWS, np.uint8)
        self._cells = np.full(_FIRST_CELLS, _FREE, np.int64)

    def __len__(self) -> int:
        return self._rows - self._forgotten

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def accept(self, block: pa.RecordBatch, newest: np.ndarray, horizon: int, tile: int) -> np.ndarray:
        """Decide row by row, in order, and remember what is accepted.

        A row that was seen in a tile not older than the one of (newest time - horizon) is a duplicate; one that was
        not, and is older than the newest time by more than the horizon, lies beyond it; any other is accepted.

        Args:
            block: with ``event_type``, ``event_id`` and ``event_time`` (µs), none of them null.
            newest: int64 [1], greatest event time accepted so far, µs; kept up to date.
            horizon, tile: microseconds.

        Returns:
            uint8 [rows]: `ACCEPTED`, `DUPLICATE` or `BEYOND`.
        """
        offsets, data = _texts(block.column("event_id"))
        types = self._codes_of(block.column("event_type"))
        times = block.column("event_time").cast(pa.int64()).to_numpy()
        self._reserve(block.num_rows, int(offsets[-1] - offsets[0]))
        decided, hashes = np.zeros(block.num_rows, np.uint8), np.empty(block.num_rows, np.uint64)
        self._rows = _accept(
            types, offsets, data, times.copy(), newest, horizon, tile, self._key, hashes, self._rows,
            self._types, self._tiles, self._ends, self._text, self._cells, decided,
        )  # fmt: skip
        return decided

    def forget(self, oldest: int) -> None:
        """Forget what was seen in tiles before ``oldest``; memory is given back when a quarter can be."""
        self._forgotten = int(np.count_nonzero(self._tiles[: self._rows] < oldest))
        if self._forgotten < _LEAST_FORGOTTEN or self._forgotten * 4 < self._rows:
            return
        self._rows = _keep(oldest, self._rows, self._types, self._tiles, self._ends, self._text)
        self._forgotten = 0
        rows = self._rows + (self._rows >> 2) + _FIRST_ROWS
        self._resize(rows, int(self._ends[self._rows]) + rows)
        self._index()

    def save(self, sink: Any) -> None:
        """Write what is remembered as one Arrow IPC stream of `SAVED`, some 100,000 rows at a time."""
        names = sorted(self._codes, key=self._codes.__getitem__)
        with pa.ipc.new_stream(sink, SAVED.with_metadata({"event_types": "\0".join(names)})) as writer:
            for batch in self._pieces():
                writer.write_batch(batch)

    def _pieces(self) -> Iterator[pa.RecordBatch]:
        for begin in range(0, self._rows, _PIECE_ROWS):
            end = min(begin + _PIECE_ROWS, self._rows)
            first, last = int(self._ends[begin]), int(self._ends[end])
            offsets = (self._ends[begin : end + 1] - first).astype(np.int32)
            text = pa.py_buffer(self._text[first:last])
            ids = pa.StringArray.from_buffers(end - begin, pa.py_buffer(offsets), text)
            columns = [pa.array(self._tiles[begin:end]), pa.array(self._types[begin:end]), ids]
            yield pa.RecordBatch.from_arrays(columns, schema=SAVED)

    def load(self, source: Any, oldest: int) -> None:
        """Remember what another one saved, in place of all else; nothing of tiles before ``oldest``."""
        self._clear()
        with pa.ipc.open_stream(source) as reader:
            names = (reader.schema.metadata or {}).get(b"event_types", b"").decode().split("\0")
            self._codes = {name: code for code, name in enumerate(names) if name}
            for batch in reader:
                self._append(batch)
        self._index()
        self.forget(oldest)

    def _append(self, batch: pa.RecordBatch) -> None:
        tiles, types, ids = batch.columns
        offsets, data = _texts(ids)
        size = int(offsets[-1] - offsets[0])
        begin, end = self._rows, self._rows + batch.num_rows
        self._reserve_rows(batch.num_rows, size)
        at = int(self._ends[begin])
        self._tiles[begin:end], self._types[begin:end] = tiles.to_numpy(), types.to_numpy()
        self._ends[begin + 1 : end + 1] = offsets[1:] - offsets[0] + at
        self._text[at : at + size] = data[offsets[0] : offsets[-1]]
        self._rows = end

    def _codes_of(self, types: pa.Array) -> np.ndarray:
        """A number for each event type, new ones made; int32 [rows]."""
        codes = self._codes
        if len(types) == 1:
            return np.array([codes.setdefault(types[0].as_py(), len(codes))], np.int32)
        encoded = types.dictionary_encode()
        of = np.array([codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist()], np.int32)
        found: np.ndarray = of[encoded.indices.to_numpy()] if len(of) else np.zeros(0, np.int32)
        return found

    def _reserve(self, rows: int, size: int) -> None:
        """Room for so many more identities and bytes of text, so that compiled code need not make any."""
        self._reserve_rows(rows, size)
        if _cells_for(self._rows + rows) > len(self._cells):
            self._index(rows)

    def _reserve_rows(self, rows: int, size: int) -> None:
        room, text = len(self._tiles), len(self._text)
        wanted, wanted_text = self._rows + rows, int(self._ends[self._rows]) + size
        if wanted > room or wanted_text > text:
            self._resize(
                wanted + (wanted >> 2) if wanted > room else room,
                wanted_text + (wanted_text >> 2) if wanted_text > text else text,
            )

    def _resize(self, rows: int, text: int) -> None:
        # In place where the system can move pages: a copy would double the memory for its time.
        self._types.resize(rows, refcheck=False)
        self._tiles.resize(rows, refcheck=False)
        self._ends.resize(rows + 1, refcheck=False)
        self._text.resize(text, refcheck=False)

    def _index(self, more: int = 0) -> None:
        """The table anew, with room for so many more."""
        self._cells = np.full(_cells_for(self._rows + more), _FREE, np.int64)
        hashes = np.empty(_HASHED_ROWS, np.uint64)
        _index(self._key, hashes, self._rows, self._types, self._ends, self._text, self._cells)


ACCEPTED, DUPLICATE, BEYOND = range(3)


def _cells_for(rows: int) -> int:
    """Cells so that at most three quarters of them are taken: a power of two."""
    cells = _FIRST_CELLS
    while rows * 4 > cells * 3:
        cells *= 2
    return cells


def _texts(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    offsets, data = string_buffers(ids)
    data = data.view()
    data.flags.writeable = False
    return offsets, data


@compiled(forceinline=True)
def _rotated(word, bits):  # type: ignore[no-untyped-def]
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@compiled(forceinline=True)
def _round(v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    v0 += v1
    v1 = _rotated(v1, 13) ^ v0
    v0 = _rotated(v0, 32)
    v2 += v3
    v3 = _rotated(v3, 16) ^ v2
    v0 += v3
    v3 = _rotated(v3, 21) ^ v0
    v2 += v1
    v1 = _rotated(v1, 17) ^ v2
    return v0, v1, _rotated(v2, 32), v3


@compiled(forceinline=True)
def _word(text, begin, count):  # type: ignore[no-untyped-def]
    """Some bytes, at most eight, as a number; little endian."""
    word = np.uint64(0)
    for i in range(count):
        word |= np.uint64(text[begin + i]) << np.uint64(8 * i)
    return word


@compiled()
def siphash13(key, lead, text, begin, end):  # type: ignore[no-untyped-def]
    """SipHash-1-3 of the eight bytes of ``lead`` followed by ``text[begin:end]``; uint64."""
    v0, v1 = key[0] ^ np.uint64(0x736F6D6570736575), key[1] ^ np.uint64(0x646F72616E646F6D)
    v2, v3 = key[0] ^ np.uint64(0x6C7967656E657261), key[1] ^ np.uint64(0x7465646279746573)
    v3 ^= lead
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= lead
    whole = begin + (end - begin) // _WORD_BYTES * _WORD_BYTES
    for at in range(begin, whole, _WORD_BYTES):
        word = _word(text, at, _WORD_BYTES)
        v3 ^= word
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
        v0 ^= word
    last = (np.uint64(end - begin + _WORD_BYTES) << np.uint64(56)) | _word(text, whole, end - whole)
    v3 ^= last
    v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    v0 ^= last
    v2 ^= np.uint64(0xFF)
    for _ in range(3):
        v0, v1, v2, v3 = _round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@compiled(forceinline=True)
def _cell_of(row, hashed):  # type: ignore[no-untyped-def]
    """What stands in a cell: half of the hash, so that a text is seldom compared in vain, and the row."""
    return np.int64((hashed >> np.uint64(1)) & ~np.uint64(_ROW_MASK)) | row


@compiled(forceinline=True)
def _is_same(row, code, given, begin, end, types, ends, text):  # type: ignore[no-untyped-def]
    start = ends[row]
    if types[row] != code or ends[row + 1] - start != end - begin:
        return False
    for i in range(end - begin):  # noqa: SIM110
        if text[start + i] != given[begin + i]:
            return False
    return True


@kept(
    f"int64(int32[::1], int64[::1], {_GIVEN_BYTES}, int64[::1], int64[::1], int64, int64, {_WORDS}, {_WORDS}, int64, "
    f"int32[::1], int64[::1], int64[::1], {_BYTES}, int64[::1], {_BYTES})"
)
def _accept(  # type: ignore[no-untyped-def]
    codes, offsets, given, times, newest, horizon, tile, key, hashes, rows, types, tiles, ends, text, cells, decided
):  # fmt: skip
    """See `Identities.accept`; room was made. Returns how many rows are taken."""
    mask = len(cells) - 1
    for i in range(len(codes)):
        hashes[i] = siphash13(key, np.uint64(codes[i]), given, offsets[i], offsets[i + 1])
    for i in range(len(codes)):
        if i + _AHEAD < len(codes):
            prefetch(cells.ctypes.data + (np.int64(hashes[i + _AHEAD]) & mask) * 8)
        begin, end, hashed = offsets[i], offsets[i + 1], hashes[i]
        wanted = _cell_of(0, hashed)
        cell = np.int64(hashed) & mask
        row = np.int64(_FREE)
        while cells[cell] >= 0:
            at = cells[cell] & _ROW_MASK
            if cells[cell] - at == wanted and _is_same(at, codes[i], given, begin, end, types, ends, text):
                row = at
                break
            cell = (cell + 1) & mask
        limit = newest[0] - horizon
        if row >= 0 and tiles[row] >= limit // tile:
            decided[i] = 1
        elif times[i] < limit:
            decided[i] = 2
        else:
            if row < 0:
                row = rows
                rows += 1
                types[row] = codes[i]
                start = ends[row]
                for j in range(end - begin):
                    text[start + j] = given[begin + j]
                ends[row + 1] = start + end - begin
                cells[cell] = wanted | row
            tiles[row] = times[i] // tile
            newest[0] = max(newest[0], times[i])
    return rows


@kept(f"void({_WORDS}, {_WORDS}, int64, int32[::1], int64[::1], {_BYTES}, int64[::1])")
def _index(key, hashes, rows, types, ends, text, cells):  # type: ignore[no-untyped-def]
    """Put all rows, which are all different, into free cells."""
    mask = len(cells) - 1
    for first in range(0, rows, len(hashes)):
        count = min(len(hashes), rows - first)
        for i in range(count):
            row = first + i
            hashes[i] = siphash13(key, np.uint64(types[row]), text, ends[row], ends[row + 1])
        for i in range(count):
            if i + _AHEAD < count:
                prefetch(cells.ctypes.data + (np.int64(hashes[i + _AHEAD]) & mask) * 8)
            cell = np.int64(hashes[i]) & mask
            while cells[cell] >= 0:
                cell = (cell + 1) & mask
            cells[cell] = _cell_of(first + i, hashes[i])


@kept(f"int64(int64, int64, int32[::1], int64[::1], int64[::1], {_BYTES})")
def _keep(oldest, rows, types, tiles, ends, text):  # type: ignore[no-untyped-def]
    """Move the rows of tiles from ``oldest`` on to the front, in order; returns how many there are."""
    left, at = np.int64(0), np.int64(0)
    for row in range(rows):
        begin, end = ends[row], ends[row + 1]
        if tiles[row] >= oldest:
            for i in range(end - begin):
                text[at + i] = text[begin + i]
            types[left], tiles[left] = types[row], tiles[row]
            at += end - begin
            left += 1
            ends[left] = at
    return left
