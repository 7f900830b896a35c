"""Where BigQuery is, what its tables are called, and how Google's clients are told so and speak up.

Everything goes by Google's own clients; `Endpoints` tells where the services are: Google's by default, with the
default credentials, or an emulator named by the usual variables ``BIGQUERY_EMULATOR_HOST`` (REST) and
``BIGQUERY_STORAGE_GRPC_ENDPOINT`` (gRPC, plaintext).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pyarrow as pa
from google.api_core import exceptions, retry
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.cloud import bigquery, bigquery_storage
from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

from shared_features.errors import HistoryError

REST_VARIABLE = "BIGQUERY_EMULATOR_HOST"
GRPC_VARIABLE = "BIGQUERY_STORAGE_GRPC_ENDPOINT"

DEADLINE_S = 60.0
LOAD_DEADLINE_S = 900.0
MAX_MESSAGE_BYTES = 128 * 1024 * 1024  # a response is at most 10 MiB from Google, more from emulators

# https://cloud.google.com/resource-manager/docs/creating-managing-projects and
# https://cloud.google.com/bigquery/docs/datasets#dataset-naming, tables narrowed to ASCII
_PROJECT = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,62}:)?[a-z][a-z0-9-]{2,61}[a-z0-9]")
_TABLE = re.compile(
    rf"bq://(?P<project>{_PROJECT.pattern})"
    r"\.(?P<dataset>[A-Za-z0-9_]{1,1024})"
    r"\.(?P<table>[A-Za-z0-9_-]{1,1024})"
)
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")
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


def check_project(uri: str, project: str) -> None:
    """HistoryError if this is no project's name."""
    if not _PROJECT.fullmatch(project):
        raise HistoryError(f"{uri[:200]} does not begin with a project's name: wanted bq://project?query=SELECT …")


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

    @property
    def dotted(self) -> str:
        """As SQL and the REST service name it, without quotes."""
        return f"{self.project}.{self.dataset}.{self.table}"

    def __str__(self) -> str:
        return f"bq://{self.dotted}"


@contextmanager
def rest_client(project: str, endpoints: Endpoints) -> Iterator[bigquery.Client]:
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
def storage_client(endpoints: Endpoints) -> Iterator[bigquery_storage.BigQueryReadClient]:
    if endpoints.grpc is None:
        client = bigquery_storage.BigQueryReadClient()
    else:
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
        channel = grpc.insecure_channel(endpoints.grpc, options=options)
        transport = BigQueryReadGrpcTransport(channel=channel)
        client = bigquery_storage.BigQueryReadClient(transport=transport)
    with client:
        yield client


def retrying(timeout_s: float) -> retry.Retry:
    """Exponential backoff on what passes by itself, for at most `timeout_s`."""
    return retry.Retry(
        predicate=retry.if_exception_type(exceptions.ServiceUnavailable, exceptions.TooManyRequests),
        initial=0.1,
        maximum=5.0,
        timeout=timeout_s,
    )


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Turn what Google's clients raise into one sentence."""
    try:
        yield
    except GoogleAuthError as error:
        raise HistoryError(
            f"{doing} needs Google credentials, and none were found ({one_line(error)}); "
            f"run `gcloud auth application-default login`, or name an emulator by {REST_VARIABLE} "
            f"and {GRPC_VARIABLE}"
        ) from error
    except exceptions.NotFound as error:
        raise HistoryError(f"{doing} failed: no such table or column: {one_line(error)}") from error
    except exceptions.Forbidden as error:
        raise HistoryError(f"{doing} is not permitted: {one_line(error)}") from error
    except (exceptions.RetryError, exceptions.ServiceUnavailable, OSError) as error:
        raise HistoryError(f"{doing} failed: BigQuery cannot be reached: {one_line(error)}") from error
    except exceptions.GoogleAPIError as error:
        raise HistoryError(f"{doing} failed: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:500]


def schema_field(where: str, field: pa.Field) -> bigquery.SchemaField:
    """BigQuery's description of a column; every column may be null."""
    where = f"{where}: {field.name}"
    if not COLUMN.fullmatch(field.name):
        raise HistoryError(f"{where}: BigQuery's column names are letters, digits and _, got {field.name!r}")
    if pa.types.is_struct(field.type):
        inner = [schema_field(where, child) for child in cast("Sequence[Any]", field.type.fields)]
        return bigquery.SchemaField(field.name, "RECORD", mode="NULLABLE", fields=inner)
    if field.type not in _SCALARS:
        wanted = ", ".join(str(dtype) for dtype in _SCALARS)
        raise HistoryError(f"{where}: wanted a struct or one of {wanted}, got {field.type}")
    return bigquery.SchemaField(field.name, _SCALARS[field.type], mode="NULLABLE")
