"""Rows into a BigQuery table by its Storage Write API: see `batch.writers`.

A piece is a *pending* stream: every append says at which offset of the stream its rows belong, so that one sent again
after an error is there once (ALREADY_EXISTS is success), and no row is seen before the stream is committed. Several
streams are committed at one moment; one that is committed already stays so. A stream that nobody commits expires.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import NoReturn

import grpc
import pyarrow as pa
from google.api_core import exceptions
from google.api_core.gapic_v1 import routing_header
from google.cloud import bigquery_storage
from google.cloud.bigquery_storage_v1 import types
from google.cloud.bigquery_storage_v1.services.big_query_write.transports import BigQueryWriteGrpcTransport
from google.rpc import code_pb2

from batch import bigquery_service as service
from batch.bigquery_service import DEADLINE_S, LOAD_DEADLINE_S, Endpoints, TableName
from batch.bigquery_tables import SEPARATOR, flat_batch, prepare_table, rows_there
from batch.existing import absent, differing_rows
from batch.writers import PieceGoneError, Reject, Shape, Written, read_token, token_of
from shared_features.errors import HistoryError

APPEND_BYTES = 4 << 20
"""Rows of an append together; the service takes 10 MB, and each waits in memory until it is answered."""

IN_FLIGHT = 4
"""Appends on their way at once: each waits for the line and for the service's disks."""
PATIENCE_S = 300.0
"""How long an append is sent again after errors that pass."""
SCHEMA_PATIENCE_S = 300.0
"""How long a table or a column that was just made may take until new streams know it."""

LARGEST_BYTES = 9_000_000
"""What a larger append is refused for can be its size; a smaller one is not refused for that."""

_PASSING = (
    exceptions.ServiceUnavailable,
    exceptions.Aborted,
    exceptions.InternalServerError,
    exceptions.DeadlineExceeded,
    exceptions.Cancelled,
    exceptions.TooManyRequests,
    exceptions.Unknown,
)
_TOO_LARGE = (exceptions.InvalidArgument, exceptions.TooManyRequests)
_ALREADY = types.StorageError.StorageErrorCode.STREAM_ALREADY_COMMITTED
_GONE = {types.StorageError.StorageErrorCode.STREAM_NOT_FOUND, types.StorageError.StorageErrorCode.INVALID_STREAM_STATE}
_WRONG_STATE = types.StorageError.StorageErrorCode.INVALID_STREAM_STATE

log = logging.getLogger(__name__)


class RowsRefused(Exception):  # noqa: N818
    """The service refuses an append, and why.

    Args:
        reasons: by the number of the row in the append; empty where the service does not say which row.
        batch: the append, of which nothing is in the stream.
    """

    def __init__(self, message: str, reasons: dict[int, str], batch: pa.RecordBatch) -> None:
        super().__init__(message)
        self.reasons, self.batch = reasons, batch


@dataclass(frozen=True, slots=True)
class BigQueryDestination:
    """A BigQuery table."""

    uri: str
    shape: Shape
    endpoints: Endpoints | None = None

    def prepare(self) -> None:
        prepare_table(self.uri, self.shape, self._where)

    def piece(self, name: str, reject: Reject | None = None) -> BigQueryPiece:  # noqa: ARG002
        """Begin a stream; it is made with the first row."""
        return BigQueryPiece(self.uri, self.shape, self._where, reject)

    def commit(self, tokens: Sequence[bytes]) -> Written:
        pieces = [read_token(token) for token in tokens]
        names = list(dict.fromkeys(parts["stream"] for parts, _ in pieces if parts["stream"]))
        if names:
            commit_streams(self.uri, names, self._where)
        return sum((written for _, written in pieces), Written())

    @property
    def _where(self) -> Endpoints:
        return self.endpoints or Endpoints.from_environment()


def commit_streams(uri: str, names: Sequence[str], endpoints: Endpoints) -> None:
    """Let everybody see the rows of these finished streams, at one moment; those that are seen already stay so."""
    left = list(names)
    with service.told(f"writing {uri}"), write_client(endpoints) as client:
        while left:
            request = types.BatchCommitWriteStreamsRequest(parent=TableName.parse(uri).path, write_streams=left)
            answer = client.batch_commit_write_streams(
                request, retry=service.retrying(PATIENCE_S), timeout=LOAD_DEADLINE_S
            )
            done = {error.entity for error in answer.stream_errors if _is_committed(error, endpoints)}
            for error in answer.stream_errors:
                if error.entity not in done:
                    raise (PieceGoneError if error.code in _GONE else HistoryError)(
                        f"writing {uri} failed: stream {error.entity} cannot be committed ({error.error_message}): "
                        "write its rows again"
                    )
            if not answer.stream_errors:
                return
            left = [name for name in left if name not in done]


def _is_committed(error: types.StorageError, endpoints: Endpoints) -> bool:
    if error.code == _ALREADY:
        return True
    # bqemulator 1.4.0 has another code for it.
    return endpoints.emulated and error.code == _WRONG_STATE and error.error_message.endswith("state=COMMITTED")


class BigQueryPiece:
    """One pending stream."""

    def __init__(self, uri: str, shape: Shape, endpoints: Endpoints, reject: Reject | None) -> None:
        self._uri, self._shape, self._endpoints, self._reject = uri, shape, endpoints, reject
        self._stack = contextlib.ExitStack()
        self._stream: PendingStream | None = None
        self._flat_shape: Shape | None = None
        self._written, self._token = Written(), b""

    def write(self, block: pa.RecordBatch) -> None:
        batch = flat_batch(block, self._shape.schema)
        identity = self._shape.identity
        if identity and batch.num_rows:
            there = rows_there(self._uri, identity, batch, self._endpoints)
            if there.num_rows:
                left_out = batch.num_rows
                uncompared, nearly = (
                    tuple(name.replace(".", SEPARATOR) for name in names)
                    for names in (self._shape.uncompared, self._shape.nearly)
                )
                shape = Shape(batch.schema, identity, (), uncompared, nearly)
                differing = differing_rows(shape, batch, there)
                batch = absent(batch, identity, there)
                self._written += Written(existing=left_out - batch.num_rows, differing=differing)
        rows = max(1, batch.num_rows * APPEND_BYTES // max(1, batch.nbytes))
        for start in range(0, batch.num_rows, rows):
            self._append(batch.slice(start, rows))

    def _append(self, batch: pa.RecordBatch) -> None:
        if self._stream is None:
            self._stream = self._stack.enter_context(
                PendingStream.opened(self._uri, batch.schema.names, self._endpoints)
            )
        self._sifted(partial(self._stream.append, batch))

    def _sifted(self, put: Callable[[], None]) -> None:
        """Put something into the stream; what was refused of it, or of what is on its way, is sifted."""
        try:
            put()
        except RowsRefused as refused:
            self._sift(refused)

    def _sift(self, refused: RowsRefused) -> None:
        """Put aside the rows that are refused, append the others; where none is named, look for them by halves."""
        batch = refused.batch
        if not refused.reasons and batch.num_rows > 1:
            half = batch.num_rows // 2
            self._append(batch.slice(0, half))
            self._append(batch.slice(half))
            return
        reasons = refused.reasons or {0: str(refused)}
        if self._reject is None:
            row, reason = next(iter(reasons.items()))
            raise HistoryError(
                f"{self._uri} refuses {len(reasons)} rows, the first one of {batch.slice(row, 1).to_pylist()!s:.300}: "
                f"{reason}"
            ) from refused
        self._reject(batch.take(pa.array(list(reasons))), list(reasons.values()))
        self._written += Written(rejected=len(reasons))
        others = [row for row in range(batch.num_rows) if row not in reasons]
        if others:
            self._append(batch.take(pa.array(others)))

    @property
    def token(self) -> bytes:
        return self._token

    def __enter__(self) -> BigQueryPiece:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                while self._stream is not None and self._stream.unanswered:
                    self._sifted(self._stream.flush)
                rows = 0 if self._stream is None else self._stream.rows
                self._written += Written(rows=rows)
                self._token = token_of(self._written, stream=self._stream.finish() if self._stream and rows else "")


class PendingStream:
    """A stream of which no row is seen before it is committed, and the connection that appends to it.

    Several appends are on their way at a time; the service takes them in order, each at its offset, or not.

    Attributes:
        rows: in the stream, once all is answered; the offset of the next append.
        unanswered: offset and rows of the appends that the service has not confirmed, oldest first.
    """

    def __init__(self, uri: str, name: str, client: bigquery_storage.BigQueryWriteClient) -> None:
        self._uri, self._name, self._client = uri, name, client
        self._requests: queue.SimpleQueue[types.AppendRowsRequest | None] | None = None
        self._answers: Iterator[types.AppendRowsResponse] = iter(())
        self.rows = 0
        self.unanswered: deque[tuple[int, pa.RecordBatch]] = deque()
        self._sent = 0  # of these, on this connection

    @classmethod
    @contextmanager
    def opened(cls, uri: str, columns: Sequence[str], endpoints: Endpoints) -> Iterator[PendingStream]:
        """A new stream of the table that knows all of ``columns``."""
        with service.told(f"writing {uri}"), write_client(endpoints) as client:
            until = time.monotonic() + (0.0 if endpoints.emulated else SCHEMA_PATIENCE_S)
            while (made := cls._made(uri, columns, client, final=time.monotonic() >= until)) is None:
                time.sleep(5.0)
            stream = cls(uri, made.name, client)
            try:
                yield stream
            finally:
                stream._hang_up()

    @staticmethod
    def _made(
        uri: str, columns: Sequence[str], client: bigquery_storage.BigQueryWriteClient, *, final: bool
    ) -> types.WriteStream | None:
        """A new stream; None, or finally an error, where the service does not know the table or a column yet."""
        try:
            made = client.create_write_stream(
                parent=TableName.parse(uri).path,
                write_stream=types.WriteStream(type_=types.WriteStream.Type.PENDING),
                retry=service.retrying(DEADLINE_S),
                timeout=DEADLINE_S,
            )
        except exceptions.NotFound:
            if final:
                raise
            return None
        known = {field.name for field in made.table_schema.fields}
        missing = [column for column in columns if column not in known]
        if missing and final:
            raise HistoryError(
                f"{uri} has no column {missing[0]!r}: it has {', '.join(sorted(known))}; prepare the destination first"
            )
        return None if missing else made

    def append(self, batch: pa.RecordBatch) -> None:
        """Append rows once, however often they have to be sent; returns while some are on their way.

        Raises:
            RowsRefused: the service refuses rows that it names, of this append or of one before, or one is too large;
                of that append nothing is in the stream, the others go on.
            HistoryError: it cannot be reached, or refuses for another reason.
        """
        self._put(batch)
        with service.told(f"writing {self._uri}"):
            self._send()
            while len(self.unanswered) >= IN_FLIGHT:
                self._answered()

    def flush(self) -> None:
        """Wait until all is answered. Raises as `append`, and may then be called again."""
        with service.told(f"writing {self._uri}"):
            while self.unanswered:
                self._answered()

    def _put(self, batch: pa.RecordBatch) -> None:
        self.unanswered.append((self.rows, batch))
        self.rows += batch.num_rows

    def _answered(self) -> None:
        """Wait for the answer to the oldest append; what passes is sent again, with all that was sent after it."""
        until, pause_s = time.monotonic() + PATIENCE_S, 0.1
        while (error := self._next_answer()) is not None:
            if self.unanswered[0][1].nbytes > LARGEST_BYTES and isinstance(error, _TOO_LARGE):
                self._refuse(service.one_line(error), {})
            if not isinstance(error, _PASSING) or time.monotonic() > until:
                raise error
            self._hang_up()
            log.info("%s: an append is sent again (%s)", self._uri, service.one_line(error))
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 10.0)
        self.unanswered.popleft()
        self._sent -= 1

    def _refuse(self, message: str, reasons: dict[int, str]) -> NoReturn:
        """Take the oldest append out; those that were sent after it were at offsets that are not there yet."""
        answers = [next(self._answers, None) for _ in range(self._sent - 1)]  # each refused, before rows are moved
        if None in answers:
            raise HistoryError(f"writing {self._uri} failed: the connection broke after {message}; write again")
        self._hang_up()
        (self.rows, refused), *waiting = self.unanswered
        self.unanswered.clear()
        for _, batch in waiting:
            self._put(batch)
        raise RowsRefused(message, reasons, refused)

    def _next_answer(self) -> exceptions.GoogleAPICallError | None:
        """Wait for the next answer: what went wrong, or None; RowsRefused if rows are named."""
        try:
            self._send()
            answer = next(self._answers)
        except (StopIteration, exceptions.GoogleAPICallError) as error:
            self._hang_up()  # it is over, and with it all that is on its way
            return exceptions.ServiceUnavailable("it was closed") if isinstance(error, StopIteration) else error
        if answer.row_errors:
            reasons = {int(error.index): f"{error.code.name}: {error.message}" for error in answer.row_errors}
            self._refuse(answer.error.message, reasons)
        if answer.error.code in {code_pb2.OK, code_pb2.ALREADY_EXISTS}:
            return None
        status = next(status for status in grpc.StatusCode if status.value[0] == answer.error.code)
        error_of_rows: exceptions.GoogleAPICallError = exceptions.from_grpc_status(status, answer.error.message)
        return error_of_rows

    def _send(self) -> None:
        """Send what has not been sent on this connection, which is made if there is none."""
        for offset, batch in islice(self.unanswered, self._sent, None):
            data = types.AppendRowsRequest.ArrowData(
                rows=types.ArrowRecordBatch(serialized_record_batch=batch.serialize().to_pybytes())
            )
            request = types.AppendRowsRequest(write_stream=self._name, offset=offset, arrow_rows=data)
            self._sent += 1
            if self._requests is None:
                schema = batch.schema.serialize().to_pybytes()
                request.arrow_rows.writer_schema = types.ArrowSchema(serialized_schema=schema)
                self._requests = queue.SimpleQueue()
                self._answers = self._connected(self._requests)
            self._requests.put(request)

    def _connected(
        self, requests: queue.SimpleQueue[types.AppendRowsRequest | None]
    ) -> Iterator[types.AppendRowsResponse]:
        """The answers; the connection is made when the first one is asked for, which is when it can fail."""
        yield from self._client.append_rows(
            iter(requests.get, None),
            retry=None,
            timeout=LOAD_DEADLINE_S,
            metadata=(routing_header.to_grpc_metadata({"write_stream": self._name}),),
        )

    def finish(self) -> str:
        """No row comes any more; the stream's name."""
        self._hang_up()
        with service.told(f"writing {self._uri}"):
            answer = self._client.finalize_write_stream(
                name=self._name, retry=service.retrying(PATIENCE_S), timeout=DEADLINE_S
            )
        if answer.row_count != self.rows:
            raise HistoryError(
                f"writing {self._uri} failed: stream {self._name} has {answer.row_count} rows, wanted {self.rows}: "
                "write them again"
            )
        return self._name

    def _hang_up(self) -> None:
        self._sent = 0
        if self._requests is not None:
            self._requests.put(None)
            self._requests = None


@contextmanager
def write_client(endpoints: Endpoints) -> Iterator[bigquery_storage.BigQueryWriteClient]:
    """Google's client for the Storage Write API."""
    if endpoints.grpc is None:
        client = bigquery_storage.BigQueryWriteClient()
    else:
        channel = grpc.insecure_channel(endpoints.grpc)
        client = bigquery_storage.BigQueryWriteClient(transport=BigQueryWriteGrpcTransport(channel=channel))
    with client:
        yield client
