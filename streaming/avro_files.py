"""Avro object container files, read within limits: header, schema and blocks are checked before anything is decoded.

fastavro reads whole containers, but decompresses a block without a bound and trusts a block's count.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import Any, Final

from fastavro import schemaless_reader

from shared_features.validate import shown
from streaming.compression import CompressionError, TooLargeError, decompress
from streaming.resolution import MAX_SCHEMA_BYTES, Resolutions, WriterSchema, WriterSchemaError

_MAGIC: Final = b"Obj\x01"
_CODECS: Final = ("null", "deflate", "zstandard")
_MAX_METADATA: Final = 64


class AvroFileError(ValueError):
    """The bytes are no Avro object container file."""


class AvroLimitError(ValueError):
    """The file holds more than is allowed."""


@dataclass(frozen=True, slots=True)
class AvroFile:
    """What a container file holds: the schema that it was written with, and its records as plain values."""

    schema: WriterSchema
    records: list[dict[str, Any]]


def read_avro_file(data: bytes, *, max_events: int, max_bytes: int, resolutions: Resolutions) -> AvroFile:
    """The records of an Avro object container file.

    Args:
        data: the whole file; codecs null, deflate and zstandard.
        max_events: records of all blocks together.
        max_bytes: bytes of all blocks together, when decompressed.
        resolutions: reads the writer's schema, or knows it.

    Raises:
        AvroFileError: no such file, damaged, or a schema that is not safe to read with.
        AvroLimitError: more than the limits allow.
    """
    source = io.BytesIO(data)
    schema, codec, sync = _header(source, len(data), resolutions)
    records: list[dict[str, Any]] = []
    room = max_bytes
    while source.tell() < len(data):
        count, size = _long(source), _long(source)
        if count < 0 or size < 0 or source.tell() + size + 16 > len(data):
            raise AvroFileError("a block is cut off")
        if len(records) + count > max_events:
            raise AvroLimitError(f"a block may have {max_events} events, got {len(records) + count} or more")
        block = _decompressed(source.read(size), codec, room)
        room -= len(block)
        if source.read(16) != sync:
            raise AvroFileError("a block does not end with the file's sync marker")
        records += _records(block, count, schema)
    return AvroFile(schema, records)


def _header(source: io.BytesIO, length: int, resolutions: Resolutions) -> tuple[WriterSchema, str, bytes]:
    if source.read(4) != _MAGIC:
        raise AvroFileError("it does not begin with Obj and 1")
    metadata: dict[bytes, bytes] = {}
    while count := _long(source):
        if count < 0:
            count = -count
            _long(source)
        if len(metadata) + count > _MAX_METADATA:
            raise AvroFileError(f"its header may have {_MAX_METADATA} entries")
        for _ in range(count):
            key = _bytes(source, length)
            metadata[key] = _bytes(source, length)
    sync = source.read(16)
    text, codec = metadata.get(b"avro.schema", b""), metadata.get(b"avro.codec", b"null").decode("ascii", "replace")
    if len(sync) != 16 or not text or len(text) > MAX_SCHEMA_BYTES:
        raise AvroFileError("its header is cut off, or has no schema")
    if codec not in _CODECS:
        raise AvroFileError(f"its codec is {shown(codec)}, wanted one of {', '.join(_CODECS)}")
    try:
        return resolutions.schema(text.decode("utf-8")), codec, sync
    except (WriterSchemaError, UnicodeDecodeError) as error:
        raise AvroFileError(str(error)) from error


def _decompressed(data: bytes, codec: str, room: int) -> bytes:
    try:
        if codec == "deflate":
            inflate = zlib.decompressobj(-15)
            block = inflate.decompress(data, room + 1)
            # fastavro leaves most of zlib's checksum behind the stream.
            if len(block) <= room and (not inflate.eof or len(inflate.unused_data) > 4):
                raise AvroFileError("a block is no whole deflate stream")
        elif codec == "zstandard":
            block = decompress(data, "zstd", room)
        else:
            block = data
    except (zlib.error, CompressionError) as error:
        raise AvroFileError(f"a block cannot be decompressed ({shown(str(error))})") from error
    except TooLargeError as error:
        raise AvroLimitError(str(error).rstrip(".")) from error
    if len(block) > room:
        raise AvroLimitError("it may not have so many bytes when decompressed")
    return block


def _records(block: bytes, count: int, schema: WriterSchema) -> list[dict[str, Any]]:
    source = io.BytesIO(block)
    try:
        records: list[Any] = [schemaless_reader(source, schema.wire, None) for _ in range(count)]
    except Exception as error:  # fastavro raises whatever foreign bytes lead it to
        raise AvroFileError(f"a record cannot be read ({shown(str(error) or type(error).__name__)})") from error
    if source.tell() != len(block):
        raise AvroFileError(f"a block has {len(block) - source.tell()} bytes behind its records")
    return records


def _long(source: io.BytesIO) -> int:
    """Avro's variable-length zig-zag integer."""
    value = shift = 0
    while True:
        byte = source.read(1)
        if not byte or shift > 63:
            raise AvroFileError("it is cut off, or a number is too long")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return (value >> 1) ^ -(value & 1)
        shift += 7


def _bytes(source: io.BytesIO, length: int) -> bytes:
    size = _long(source)
    if size < 0 or source.tell() + size > length:
        raise AvroFileError("its header is cut off")
    return source.read(size)
