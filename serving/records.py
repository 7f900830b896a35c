"""TFRecord files: length, checksum, data, checksum.

Source: tensorflow/core/lib/io/record_writer.h. Checksums are CRC-32C, rotated and shifted ("masked").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from serving.status import Code, RefusalError

_HEAD = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_RECORD_LIMIT_BYTES = 256 * 2**20
# Beyond this the data's checksum is left unread: 0.15 s a megabyte in Python. Lengths are always checked.
_CHECKED_BYTES = 2**20


def _table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """The checksum that stands in a TFRecord file.

    >>> hex(masked_crc32c(b"123456789"))
    '0xc7d89f26'
    """
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """One record as it stands in a file."""
    length = struct.pack("<Q", len(data))
    head = length + _CHECKSUM.pack(masked_crc32c(length))
    return head + data + _CHECKSUM.pack(masked_crc32c(data))


def records(path: Path) -> Iterator[bytes]:
    """The records of a file. RefusalError (DATA_LOSS) where it is cut short or damaged."""
    size = path.stat().st_size
    at = 0
    with path.open("rb") as file:
        while head := file.read(_HEAD.size):
            if len(head) < _HEAD.size:
                raise RefusalError(Code.DATA_LOSS, f"truncated record at {at}")
            length, checksum = _HEAD.unpack(head)
            if masked_crc32c(head[:8]) != checksum or length > min(_RECORD_LIMIT_BYTES, size):
                raise RefusalError(Code.DATA_LOSS, f"corrupted record at {at}")
            data = file.read(length)
            tail = file.read(_CHECKSUM.size)
            if len(data) < length or len(tail) < _CHECKSUM.size:
                raise RefusalError(Code.DATA_LOSS, f"truncated record at {at}")
            if length <= _CHECKED_BYTES and masked_crc32c(data) != _CHECKSUM.unpack(tail)[0]:
                raise RefusalError(Code.DATA_LOSS, f"corrupted record at {at}")
            yield data
            at += _HEAD.size + length + _CHECKSUM.size
