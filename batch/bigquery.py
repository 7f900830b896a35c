"""BigQuery tables as Arrow: read by the Storage Read API, written by load jobs.

A table is named ``bq://project.dataset.table``; `batch.bigquery_service` says where it is. Rows that go on being
written are written by `batch.bigquery_writer`; a load job replaces or adds a whole table at once.

Guaranteed: all streams of one call of `streams` together hold each row of the table exactly once, as of one
moment; a stream gives the same rows in the same order each time it is read, so that reading can go on at an
offset. Not guaranteed: any order of rows that means something. Sort where order matters.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from google.cloud import bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY
from google.cloud.bigquery_storage_v1 import types

from batch import bigquery_service as service
from batch.bigquery_service import COLUMN, LOAD_DEADLINE_S, Endpoints, TableName, rest_client, schema_field
from shared_features.errors import HistoryError

__all__ = ["Endpoints", "StreamSpec", "TableName", "load_table", "read_schema", "read_stream", "read_table", "streams"]

MAX_STREAMS = 100


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One of the parallel streams of a table, readable anywhere for some hours.

    It is plain text, so that it can be handed to another process (`encode`, `decode`).

    Attributes:
        uri: the table, for messages.
        name: the service's name for the stream.
        schema: Arrow schema as an IPC message in base64.
        endpoints: where to read it.
    """

    uri: str
    name: str
    schema: str
    endpoints: Endpoints

    def encode(self) -> bytes:
        """JSON; the inverse of `decode`."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> StreamSpec:
        """The stream that `encode` wrote."""
        parts = json.loads(data)
        return cls(**{**parts, "endpoints": Endpoints(**parts["endpoints"])})


def streams(
    uri: str,
    columns: Sequence[str] | None = None,
    row_restriction: str = "",
    endpoints: Endpoints | None = None,
    max_streams: int = MAX_STREAMS,
) -> list[StreamSpec]:
    """The streams in which the table, as it is now, can be read in parallel.

    Args:
        uri: ``bq://project.dataset.table``.
        columns: top-level columns to read; None reads all. A RECORD column comes whole.
        row_restriction: condition in GoogleSQL on the table's own columns, such as
            ``publish_time < TIMESTAMP '2013-10-01 00:00:00+00'``; no subqueries, no other tables.
        endpoints: where BigQuery is; from the environment if not given.
        max_streams: upper bound; the service gives one stream for a small table, none for an empty one.

    Raises:
        HistoryError: the table, a column or the service is missing, refused or unreachable.
    """
    endpoints = Endpoints.from_environment() if endpoints is None else endpoints
    session = _create_session(uri, columns, row_restriction, endpoints, max_streams)
    schema = base64.b64encode(session.arrow_schema.serialized_schema).decode()
    return [StreamSpec(uri, stream.name, schema, endpoints) for stream in session.streams]


def read_stream(spec: StreamSpec, offset: int = 0) -> Iterator[pa.RecordBatch]:
    """The rows of one stream from row number `offset` on.

    Google's reader reopens a broken connection at the row it had reached. To go on in another process, count
    the rows received and pass that count as `offset`.

    Raises:
        HistoryError: the stream has expired, or the service is unreachable or refuses.
    """
    schema = _serialized_schema(base64.b64decode(spec.schema))
    with service.told(f"reading {spec.uri}"), service.storage_client(spec.endpoints) as client:
        # bqemulator 1.4.0 ignores the offset and starts at row 0: the rows are skipped here instead.
        skip = offset if spec.endpoints.emulated else 0
        rows = client.read_rows(
            spec.name, offset - skip, retry=service.retrying(service.DEADLINE_S), timeout=LOAD_DEADLINE_S
        )
        for message in rows:
            data = pa.py_buffer(message.arrow_record_batch.serialized_record_batch)
            batch = _conform(pa.ipc.read_record_batch(data, schema))
            skipped = min(skip, batch.num_rows)
            skip -= skipped
            if batch.num_rows > skipped:
                yield batch.slice(skipped)


def read_schema(uri: str, columns: Sequence[str] | None = None, endpoints: Endpoints | None = None) -> pa.Schema:
    """The Arrow schema of the table's batches, for a table without rows too."""
    endpoints = Endpoints.from_environment() if endpoints is None else endpoints
    session = _create_session(uri, columns, "", endpoints, 1)
    return _conformed_schema(_serialized_schema(session.arrow_schema.serialized_schema))


def read_table(
    uri: str,
    columns: Sequence[str] | None = None,
    row_restriction: str = "",
    endpoints: Endpoints | None = None,
) -> Iterator[pa.RecordBatch]:
    """All rows of the table, as of one moment, in no particular order; arguments as for `streams`.

    A table without rows (or none left by `row_restriction`) gives one batch of no rows, so that its schema is
    known.
    """
    found = streams(uri, columns, row_restriction, endpoints, max_streams=1)
    empty = True
    for spec in found:
        for batch in read_stream(spec):
            empty = False
            yield batch
    if empty:
        yield pa.RecordBatch.from_pylist([], schema=read_schema(uri, columns, endpoints))


def load_table(uri: str, table: pa.Table, endpoints: Endpoints | None = None, *, append: bool = False) -> int:
    """Write `table` to BigQuery by a load job, making the dataset if need be; returns the rows written.

    An existing table is replaced, or added to with `append`; either happens wholly or not at all.

    Raises:
        HistoryError: a column has a type that has no counterpart, or the service is unreachable or refuses.
    """
    endpoints = Endpoints.from_environment() if endpoints is None else endpoints
    name = TableName.parse(uri)
    schema = [schema_field(uri, field) for field in table.schema]
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd", coerce_timestamps="us")
    config = bigquery.LoadJobConfig(
        schema=schema,
        source_format=bigquery.SourceFormat.PARQUET,
        write_disposition="WRITE_APPEND" if append else "WRITE_TRUNCATE",
    )
    with service.told(f"loading {uri}"), rest_client(name.project, endpoints) as client:
        patience = DEFAULT_RETRY.with_timeout(service.DEADLINE_S)
        dataset = bigquery.DatasetReference(name.project, name.dataset)
        client.create_dataset(dataset, exists_ok=True, retry=patience, timeout=service.DEADLINE_S)
        job = client.load_table_from_file(
            data, dataset.table(name.table), rewind=True, job_config=config, timeout=LOAD_DEADLINE_S
        )
        job.result(timeout=LOAD_DEADLINE_S)
    return int(table.num_rows)


def _create_session(
    uri: str,
    columns: Sequence[str] | None,
    row_restriction: str,
    endpoints: Endpoints,
    max_streams: int,
) -> types.ReadSession:
    name = TableName.parse(uri)
    for column in columns or ():
        if not COLUMN.fullmatch(column):
            raise HistoryError(f"{uri}: a column name was wanted, got {column!r}")
    if columns is not None and not columns:
        raise HistoryError(f"{uri}: at least one column must be asked for")
    wanted = types.ReadSession(
        table=name.path,
        data_format=types.DataFormat.ARROW,
        read_options=types.ReadSession.TableReadOptions(
            selected_fields=list(columns or ()), row_restriction=row_restriction
        ),
    )
    with service.told(f"reading {uri}"), service.storage_client(endpoints) as client:
        return client.create_read_session(
            parent=f"projects/{name.project}",
            read_session=wanted,
            max_stream_count=max_streams,
            retry=service.retrying(service.DEADLINE_S),
            timeout=service.DEADLINE_S,
        )


def _serialized_schema(data: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(data))


def _conformed_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([pa.field(field.name, _conformed_type(field.type)) for field in schema])


def _conformed_type(dtype: pa.DataType) -> pa.DataType:
    """The type that our blocks use for values of `dtype`; other types stay as they are."""
    if pa.types.is_struct(dtype):
        return pa.struct([pa.field(field.name, _conformed_type(field.type)) for field in dtype.fields])
    if pa.types.is_large_string(dtype):
        return pa.string()
    if pa.types.is_timestamp(dtype) and dtype.tz is not None:
        return pa.timestamp("us", "UTC")
    return dtype


def _conform(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without the service's own field metadata, and in our types."""
    schema = _conformed_schema(batch.schema)
    if schema.equals(batch.schema, check_metadata=True):
        return batch
    arrays = [array.cast(field.type) for array, field in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
