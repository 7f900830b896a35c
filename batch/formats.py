"""Training rows for other trainers: Parquet as CSV or TFRecord files of so many rows each.

CSV
    A heading, then one line a row. Null is nothing, an empty text is ``""``; numbers are written so that reading them
    gives the same bits; times are UTC.
TFRecord
    One serialised ``tf.train.Example`` a row, framed as TensorFlow reads it: length, masked CRC-32C of it, data, masked
    CRC-32C of it. An Example knows three types only: numbers with fractions become 32-bit floats, *rounded*; whole
    numbers, true and false (1, 0) and times (microseconds since 1970) become 64-bit integers; texts become UTF-8. A
    null has no feature in its Example: give `tf.io.FixedLenFeature` a default, or take `tf.io.VarLenFeature`.

A list is one column for each of its places, ``name[0]`` and so on. The same rows give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal

import google_crc32c
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from serving.wire import Example
from shared_features.errors import ConfigurationError
from shared_features.lists import spread

Format = Literal["parquet", "csv", "tfrecord"]
SUFFIXES: Final[dict[str, str]] = {"parquet": ".parquet", "csv": ".csv", "tfrecord": ".tfrecord"}

ROWS_PER_FILE: Final = 100_000

_BATCH_ROWS: Final = 8_192
_MASK_DELTA: Final = 0xA282EAD8  # https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details


def convert(folder: Path, to: Format, rows_per_file: int = ROWS_PER_FILE) -> None:
    """Replace each Parquet file below ``folder`` by files of another format.

    ``train/2013-01.parquet`` becomes ``train/2013-01-00000-of-00003.csv`` and so on.

    Raises:
        ConfigurationError: ``rows_per_file`` is less than 1.
    """
    if rows_per_file < 1:
        raise ConfigurationError(f"rows per file are {rows_per_file}, wanted 1 or more")
    if to == "parquet":
        return
    for path in sorted(folder.rglob("*.parquet")):
        rows = pq.read_metadata(path).num_rows
        files = max(1, -(-rows // rows_per_file))
        with pq.ParquetFile(path) as source:
            batches = _Batches(source.iter_batches(_BATCH_ROWS))
            for number in range(files):
                target = path.with_name(f"{path.stem}-{number:05d}-of-{files:05d}{SUFFIXES[to]}")
                with target.open("wb") as file:
                    (_write_csv if to == "csv" else _write_records)(file, source.schema_arrow, batches, rows_per_file)
        path.unlink()


class _Batches:
    """Batches, handed out as files of so many rows want them."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches, self._left = batches, None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of ``rows`` rows together, or of what there is."""
        left: pa.RecordBatch | None = self._left
        while rows > 0:
            batch = left if left is not None and left.num_rows else next(self._batches, None)
            if batch is None:
                break
            yield batch.slice(0, rows)
            left, rows = batch.slice(rows), rows - min(rows, batch.num_rows)
        self._left = left


def _spread(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = spread(dict(zip(batch.schema.names, batch.columns, strict=True)))
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _write_csv(file: IO[bytes], schema: pa.Schema, batches: _Batches, rows: int) -> None:
    headings = _spread(pa.RecordBatch.from_pylist([], schema=schema)).schema
    with csv.CSVWriter(file, headings) as writer:
        for batch in batches.take(rows):
            writer.write_batch(_spread(batch))


def _write_records(file: IO[bytes], schema: pa.Schema, batches: _Batches, rows: int) -> None:  # noqa: ARG001
    for batch in batches.take(rows):
        for record in _examples(_spread(batch)):
            length = struct.pack("<Q", len(record))
            file.write(length + _masked_crc(length) + record + _masked_crc(record))


def _examples(batch: pa.RecordBatch) -> Iterator[bytes]:
    columns = [(name, *_values(name, column)) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    for row in range(batch.num_rows):
        example = Example()
        features = example.features.feature
        for name, kind, values in columns:
            if values[row] is not None:
                getattr(features[name], kind).value.append(values[row])
        yield example.SerializeToString(deterministic=True)


def _values(name: str, column: pa.Array) -> tuple[str, list[Any]]:
    """Which list of a feature the values go to, and the values, None where null."""
    if pa.types.is_floating(column.type):
        single = column.cast(pa.float32(), safe=False)
        if not bool(pc.all(pc.is_finite(single), min_count=0).as_py()):
            largest = pc.max(pc.abs(column)).as_py()
            raise ConfigurationError(
                f"column {name!r} has values up to {largest}, which 32-bit floats of a tf.train.Example cannot hold: "
                "write CSV or Parquet"
            )
        return "float_list", single.to_pylist()
    if pa.types.is_string(column.type):
        return "bytes_list", [None if value is None else value.encode() for value in column.to_pylist()]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz))
    return "int64_list", column.cast(pa.int64()).to_pylist()


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF)
