"""The frames of an Arrow IPC stream, checked before Arrow itself reads them.

Arrow allocates what a compressed buffer's first 8 bytes say, so that a message of a hundred bytes could ask for
terabytes. Here every claim of a header (rows, buffers, sizes when decompressed) is held against limits first. The
layout is Arrow's: Format.rst, "IPC Streaming Format", and the FlatBuffers tables of Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_CONTINUATION: Final = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH = 1, 3
_MAX_BUFFERS: Final = 4096


class FrameError(ValueError):
    """The bytes are no Arrow IPC stream of plain record batches."""


class FrameLimitError(ValueError):
    """The stream says that it holds more than is allowed."""


class _Frame(NamedTuple):
    kind: int
    header: _Table
    body: memoryview


def check_frames(data: bytes, *, max_rows: int, max_bytes: int) -> int:
    """Hold an Arrow IPC stream against limits, without allocating what it claims.

    Args:
        data: a whole stream: one schema, then record batches; dictionaries are refused.
        max_rows: rows of all batches together.
        max_bytes: bytes of all buffers together, when decompressed.

    Returns:
        The number of rows.

    Raises:
        FrameError: not such a stream, or a header that contradicts its own message.
        FrameLimitError: more than the limits allow.
    """
    rows = size = 0
    try:
        for number, frame in enumerate(_frames(memoryview(data))):
            if (number == 0) != (frame.kind == _SCHEMA):
                raise FrameError("a stream is one schema and then record batches; dictionaries are not taken")
            if number == 0:
                continue
            if frame.kind != _RECORD_BATCH:
                raise FrameError("only record batches may follow the schema; dictionaries are not taken")
            length = frame.header.int64(0)
            if length < 0:
                raise FrameError("a batch has a negative number of rows")
            rows += length
            if rows > max_rows:
                raise FrameLimitError(f"a block may have {max_rows} events, got {rows} or more")
            size += _decompressed(frame, length, max_bytes)
            if size > max_bytes:
                raise FrameLimitError(f"a block may have {max_bytes} bytes when decompressed, got {size} or more")
    except (struct.error, IndexError) as error:
        raise FrameError("a header is cut off, or points outside itself") from error
    return rows


def _frames(data: memoryview) -> Iterator[_Frame]:
    at = 0
    while at < len(data):
        mark, length = struct.unpack_from("<Ii", data, at)
        if mark != _CONTINUATION:
            raise FrameError("an Arrow IPC stream begins each message with 0xFFFFFFFF; this is none")
        at += 8
        if length == 0:
            if at != len(data):
                raise FrameError(f"{len(data) - at} bytes follow the end of the stream")
            return
        if length < 0 or at + length > len(data):
            raise FrameError("a message's header is cut off")
        message = _Table.root(data[at : at + length])
        at += length
        body = message.int64(3)
        if body < 0 or at + body > len(data):
            raise FrameError("a message's body is cut off")
        yield _Frame(message.uint8(1), message.table(2), data[at : at + body])
        at += body


def _decompressed(frame: _Frame, rows: int, max_bytes: int) -> int:
    """Bytes of a batch's buffers as they will be in memory."""
    for length, nulls in frame.header.pairs(1):
        if length != rows or not 0 <= nulls <= rows:
            raise FrameError("a column has another number of rows than its batch")
    compressed = frame.header.has(3)
    total = 0
    for offset, length in frame.header.pairs(2):
        if offset < 0 or length < 0 or offset + length > len(frame.body):
            raise FrameError("a buffer lies outside its message")
        size = length
        if compressed and length:
            (size,) = struct.unpack_from("<q", frame.body, offset)
            size = length if size == -1 else size
        if size < 0:
            raise FrameError("a compressed buffer has a negative size")
        total += size
        if total > max_bytes:
            break
    return total


class _Table:
    """A FlatBuffers table: fields are found by way of a small table of offsets before it."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data, self._at = data, at
        if at < 0:
            raise FrameError("a header points outside itself")
        (back,) = struct.unpack_from("<i", data, at)
        self._offsets = at - back
        if self._offsets < 0:
            raise FrameError("a header points outside itself")
        (self._size,) = struct.unpack_from("<H", data, self._offsets)

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        (at,) = struct.unpack_from("<I", data, 0)
        return cls(data, at)

    def _place(self, field: int) -> int:
        """Where the field's value is, 0 if it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, self._offsets + entry)
        return self._at + offset if offset else 0

    def has(self, field: int) -> bool:
        return self._place(field) != 0

    def uint8(self, field: int) -> int:
        place = self._place(field)
        return self._data[place] if place else 0

    def int64(self, field: int) -> int:
        place = self._place(field)
        value: int = struct.unpack_from("<q", self._data, place)[0] if place else 0
        return value

    def table(self, field: int) -> _Table:
        place = self._place(field)
        if not place:
            raise FrameError("a message has no header")
        (offset,) = struct.unpack_from("<I", self._data, place)
        return _Table(self._data, place + offset)

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        place = self._place(field)
        if not place:
            return []
        (offset,) = struct.unpack_from("<I", self._data, place)
        (count,) = struct.unpack_from("<I", self._data, place + offset)
        if count > _MAX_BUFFERS:
            raise FrameError(f"a batch may have {_MAX_BUFFERS} buffers, got {count}")
        numbers = struct.unpack_from(f"<{2 * count}q", self._data, place + offset + 4)
        return list(zip(numbers[::2], numbers[1::2], strict=True))
