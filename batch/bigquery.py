"""BigQuery tables as Arrow: read by the Storage Read API, written by load jobs.

A table is named ``bq://project.dataset.table``. Both ways use Google's own clients; `Endpoints` tells where
the services are: Google's by default, with the default credentials, or an emulator named by the usual
variables ``BIGQUERY_EMULATOR_HOST`` (REST) and ``BIGQUERY_STORAGE_GRPC_ENDPOINT`` (gRPC, plaintext).

Guaranteed: all streams of one call of `streams` together hold each row of the table exactly once, as of one
moment; a stream gives the same rows in the same order each time it is read, so that reading can go on at an
offset. Not guaranteed: any order of rows that means something. Sort where order matters.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
from google.api_core import exceptions, retry
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery, bigquery_storage
from google.cloud.bigquery.retry import DEFAULT_RETRY
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

from shared_features.errors import HistoryError

REST_VARIABLE = "BIGQUERY_EMULATOR_HOST"
GRPC_VARIABLE = "BIGQUERY_STORAGE_GRPC_ENDPOINT"

DEADLINE_S = 60.0
LOAD_DEADLINE_S = 900.0
MAX_STREAMS = 100
MAX_MESSAGE_BYTES = 128 * 1024 * 1024  # a response is at most 10 MiB from Google, more from emulators

# https://cloud.google.com/resource-manager/docs/creating-managing-projects and
# https://cloud.google.com/bigquery/docs/datasets#dataset-naming, tables narrowed to ASCII
_TABLE = re.compile(
    r"bq://(?P<project>(?:[a-z0-9][a-z0-9.-]{0,62}:)?[a-z][a-z0-9-]{2,61}[a-z0-9])"
    r"\.(?P<dataset>[A-Za-z0-9_]{1,1024})"
    r"\.(?P<table>[A-Za-z0-9_-]{1,1024})"
)
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}")

_SCALARS: dict[pa.DataType, str] = {
    pa.int32(): "INT64",
    pa.int64(): "INT64",
    pa.float32(): "FLOAT64",
    pa.float64(): "FLOAT64",
    pa.bool_(): "BOOL",
    pa.string(): "STRING",
    pa.binary(): "BYTES",
    pa.timestamp("us", "UTC"): "TIMESTAMP",
}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where BigQuery is: Google's service (both None) or an emulator (both given).

    Attributes:
        rest: base address of the REST service, for example ``http://127.0.0.1:9050``.
        grpc: ``host:port`` of the storage service, spoken to in plaintext without credentials.
    """

    rest: str | None = None
    grpc: str | None = None

    def __post_init__(self) -> None:
        if (self.rest is None) != (self.grpc is None):
            # Half an emulator would send the other half of the calls to Google.
            raise HistoryError(
                f"BigQuery's emulator needs both {REST_VARIABLE} and {GRPC_VARIABLE}, "
                f"but only {REST_VARIABLE if self.rest else GRPC_VARIABLE} is set; set or remove both"
            )
        if self.grpc is not None and not _HOST_PORT.fullmatch(self.grpc):
            raise HistoryError(f"{GRPC_VARIABLE} must be host:port, got {self.grpc!r}")

    @property
    def emulated(self) -> bool:
        """Whether an emulator is spoken to."""
        return self.grpc is not None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Endpoints:
        """The endpoints that the variables name, Google's if they are unset or empty."""
        environment = os.environ if environment is None else environment
        rest = environment.get(REST_VARIABLE) or None
        if rest is not None and "://" not in rest:
            rest = f"http://{rest}"
        return cls(rest=rest, grpc=environment.get(GRPC_VARIABLE) or None)


@dataclass(frozen=True, slots=True)
class TableName:
    """The three parts of ``bq://project.dataset.table``, each of them checked."""

    project: str
    dataset: str
    table: str

    @classmethod
    def parse(cls, uri: str) -> TableName:
        """The parts of `uri`; HistoryError if one of them is not an identifier of its kind."""
        match = _TABLE.fullmatch(uri)
        if match is None:
            raise HistoryError(f"a BigQuery table is named bq://project.dataset.table, got {uri!r}")
        return cls(**match.groupdict())

    @property
    def path(self) -> str:
        """The resource name that the storage service uses."""
        return f"projects/{self.project}/datasets/{self.dataset}/tables/{self.table}"

    def __str__(self) -> str:
        return f"bq://{self.project}.{self.dataset}.{self.table}"


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
    with _history_errors(f"reading {spec.uri}"), _storage_client(spec.endpoints) as client:
        # bqemulator 1.4.0 ignores the offset and starts at row 0: the rows are skipped here instead.
        skip = offset if spec.endpoints.emulated else 0
        rows = client.read_rows(spec.name, offset - skip, retry=_retry(DEADLINE_S), timeout=LOAD_DEADLINE_S)
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
    schema = [_schema_field(uri, field) for field in table.schema]
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd", coerce_timestamps="us")
    config = bigquery.LoadJobConfig(
        schema=schema,
        source_format=bigquery.SourceFormat.PARQUET,
        write_disposition="WRITE_APPEND" if append else "WRITE_TRUNCATE",
    )
    with _history_errors(f"loading {uri}"), _rest_client(name.project, endpoints) as client:
        patience = DEFAULT_RETRY.with_timeout(DEADLINE_S)
        dataset = bigquery.DatasetReference(name.project, name.dataset)
        client.create_dataset(dataset, exists_ok=True, retry=patience, timeout=DEADLINE_S)
        job = client.load_table_from_file(
            data, dataset.table(name.table), rewind=True, job_config=config, timeout=LOAD_DEADLINE_S
        )
        job.result(timeout=LOAD_DEADLINE_S)
    return int(table.num_rows)


@contextmanager
def _rest_client(project: str, endpoints: Endpoints) -> Iterator[bigquery.Client]:
    if endpoints.emulated:
        client = bigquery.Client(
            project=project,
            credentials=AnonymousCredentials(),
            client_options=ClientOptions(api_endpoint=endpoints.rest),
        )
    else:
        client = bigquery.Client(project=project)
    with client:
        yield client


@contextmanager
def _storage_client(endpoints: Endpoints) -> Iterator[bigquery_storage.BigQueryReadClient]:
    if endpoints.grpc is None:
        client = bigquery_storage.BigQueryReadClient()
    else:
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        channel = grpc.insecure_channel(endpoints.grpc, options=options)
        transport = BigQueryReadGrpcTransport(channel=channel)
        client = bigquery_storage.BigQueryReadClient(transport=transport)
    with client:
        yield client


def _create_session(
    uri: str,
    columns: Sequence[str] | None,
    row_restriction: str,
    endpoints: Endpoints,
    max_streams: int,
) -> types.ReadSession:
    name = TableName.parse(uri)
    for column in columns or ():
        if not _COLUMN.fullmatch(column):
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
    with _history_errors(f"reading {uri}"), _storage_client(endpoints) as client:
        return client.create_read_session(
            parent=f"projects/{name.project}",
            read_session=wanted,
            max_stream_count=max_streams,
            retry=_retry(DEADLINE_S),
            timeout=DEADLINE_S,
        )


def _retry(timeout_s: float) -> retry.Retry:
    """Exponential backoff on what passes by itself, for at most `timeout_s`."""
    return retry.Retry(
        predicate=retry.if_exception_type(exceptions.ServiceUnavailable, exceptions.TooManyRequests),
        initial=0.1,
        maximum=5.0,
        timeout=timeout_s,
    )


@contextmanager
def _history_errors(doing: str) -> Iterator[None]:
    """Turn what Google's clients raise into one sentence."""
    try:
        yield
    except GoogleAuthError as error:
        raise HistoryError(
            f"{doing} needs Google credentials, and none were found ({_one_line(error)}); "
            f"run `gcloud auth application-default login`, or name an emulator by {REST_VARIABLE} "
            f"and {GRPC_VARIABLE}"
        ) from error
    except exceptions.NotFound as error:
        raise HistoryError(f"{doing} failed: no such table or column: {_one_line(error)}") from error
    except exceptions.Forbidden as error:
        raise HistoryError(f"{doing} is not permitted: {_one_line(error)}") from error
    except (exceptions.RetryError, exceptions.ServiceUnavailable, OSError) as error:
        raise HistoryError(f"{doing} failed: BigQuery cannot be reached: {_one_line(error)}") from error
    except exceptions.GoogleAPIError as error:
        raise HistoryError(f"{doing} failed: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:500]


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


def _schema_field(where: str, field: pa.Field) -> bigquery.SchemaField:
    """BigQuery's description of a column; every column may be null."""
    where = f"{where}: {field.name}"
    if not _COLUMN.fullmatch(field.name):
        raise HistoryError(f"{where}: BigQuery's column names are letters, digits and _, got {field.name!r}")
    if pa.types.is_struct(field.type):
        inner = [_schema_field(where, child) for child in cast("Sequence[Any]", field.type.fields)]
        return bigquery.SchemaField(field.name, "RECORD", mode="NULLABLE", fields=inner)
    if field.type not in _SCALARS:
        wanted = ", ".join(str(dtype) for dtype in _SCALARS)
        raise HistoryError(f"{where}: wanted a struct or one of {wanted}, got {field.type}")
    return bigquery.SchemaField(field.name, _SCALARS[field.type], mode="NULLABLE")
