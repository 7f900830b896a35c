"""Compressed data of messages, undone within limits: how large it may become is known before any of it is."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

CODECS: Final = ("gzip", "lz4", "zstd")
"""Values of the attribute ``compression``: gzip (RFC 1952), LZ4 frames, Zstandard frames."""

_CHUNK_BYTES: Final = 1 << 18


class CompressionError(ValueError):
    """The data is not what the attribute ``compression`` says."""


class TooLargeError(ValueError):
    """The data is larger than allowed, before or after decompression."""


def decompress(data: bytes, codec: str, max_bytes: int) -> bytes:
    """The data without its compression.

    Args:
        data: what came.
        codec: one of `CODECS`.
        max_bytes: more than this is never held, however small the data is.

    Raises:
        CompressionError: the data is damaged, cut off, or of another codec.
        TooLargeError: it would become larger than ``max_bytes``.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise TooLargeError(f"The data may have {max_bytes} bytes when decompressed, got more.")
                chunks.append(chunk)
    except (pa.ArrowException, OSError, EOFError) as error:
        why = str(error).partition("\n")[0]
        raise CompressionError(f"The data is no {codec}: {why}.") from error
    return b"".join(chunks)


def compress(data: bytes, codec: str) -> bytes:
    """The data compressed for the attribute ``compression``; for publishers."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return bytes(sink.getvalue())
