"""BigQuery through Google's own clients, against an emulator that speaks its wire protocol."""

from __future__ import annotations

import base64
import datetime as dt
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pyarrow as pa
import pytest
from google.cloud import bigquery as google_bigquery
from google.cloud.bigquery_storage_v1 import types

from batch import bigquery, bigquery_service
from batch.bigquery import Endpoints, StreamSpec, TableName
from shared_features.errors import HistoryError

UTC_US = pa.timestamp("us", "UTC")
DEPARTED = pa.struct(
    [("delay", pa.float64()), ("seats", pa.int64()), ("tail", pa.string()), ("wet", pa.bool_()), ("left_at", UTC_US)]
)


def instant(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


TABLE = pa.table(
    {
        "event_id": pa.array(["a", "b", "c", "d"]),
        "event_time": pa.array(
            [
                instant("2013-03-10T06:59:59.999999"),
                instant("1970-01-01T00:00:00"),
                instant("2099-12-31T23:59:59.999999"),
                None,
            ],
            UTC_US,
        ),
        "departed": pa.array(
            [
                {"delay": -0.1, "seats": 2**62 + 1, "tail": "N14228 é", "wet": True, "left_at": instant("2013-03-10")},
                None,
                {"delay": None, "seats": None, "tail": "", "wet": None, "left_at": None},
                {"delay": 5e-324, "seats": -(2**63), "tail": None, "wet": False, "left_at": instant("2013-11-03")},
            ],
            DEPARTED,
        ),
    }
)


def read(endpoints: Endpoints, uri: str, columns: list[str] | None = None, where: str = "") -> pa.Table:
    table = pa.Table.from_batches(bigquery.read_table(uri, columns, where, endpoints))
    return table.sort_by("event_id") if "event_id" in table.column_names else table


def test_a_table_comes_back_bit_for_bit_with_null_records_kept(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.round_trip.events"
    assert bigquery.load_table(uri, TABLE, bigquery_endpoints) == 4
    got = read(bigquery_endpoints, uri)
    assert got.schema.equals(TABLE.schema, check_metadata=True)
    assert got.equals(TABLE)
    assert got["departed"].null_count == 1  # a missing record is not a record of nulls


def test_another_official_client_sees_the_same_table(bigquery_endpoints: Endpoints) -> None:
    bigquery.load_table("bq://sameriver.official.events", TABLE, bigquery_endpoints)
    with bigquery_service.rest_client("sameriver", bigquery_endpoints) as client:
        assert isinstance(client, google_bigquery.Client)
        schema = client.get_table("sameriver.official.events").schema
        assert [(field.name, field.field_type) for field in schema] == [
            ("event_id", "STRING"),
            ("event_time", "TIMESTAMP"),
            ("departed", "RECORD"),
        ]
        rows = list(client.query("SELECT departed.seats FROM official.events WHERE event_id = 'a'").result())
    assert rows[0].seats == 2**62 + 1


def test_columns_and_rows_are_chosen_by_the_service(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.chosen.events"
    bigquery.load_table(uri, TABLE, bigquery_endpoints)
    where = "event_time >= TIMESTAMP '1970-01-01 00:00:00+00' AND event_time < TIMESTAMP '2014-01-01 00:00:00+00'"
    got = read(bigquery_endpoints, uri, ["departed", "event_id"], where)
    assert got.column_names == ["departed", "event_id"]
    assert got["event_id"].to_pylist() == ["a", "b"]


def test_no_rows_still_give_the_schema(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.nothing.events"
    bigquery.load_table(uri, TABLE.slice(0, 0), bigquery_endpoints)
    (batch,) = bigquery.read_table(uri, endpoints=bigquery_endpoints)
    assert batch.num_rows == 0
    assert batch.schema.equals(TABLE.schema)
    assert bigquery.streams(uri, endpoints=bigquery_endpoints) == []


def test_load_replaces_unless_told_to_append(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.loads.events"
    for _ in range(2):
        bigquery.load_table(uri, TABLE, bigquery_endpoints)
    assert read(bigquery_endpoints, uri).num_rows == 4
    bigquery.load_table(uri, TABLE, bigquery_endpoints, append=True)
    assert read(bigquery_endpoints, uri).num_rows == 8


def test_streams_together_hold_each_row_once_and_resume_at_any_offset(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.streams.numbers"
    numbers = pa.table({"event_id": pa.array(range(300_000), pa.int64())})
    bigquery.load_table(uri, numbers, bigquery_endpoints)
    specs = bigquery.streams(uri, endpoints=bigquery_endpoints, max_streams=3)
    assert len(specs) == 3
    parts = [pa.Table.from_batches(bigquery.read_stream(spec)) for spec in specs]
    assert pa.concat_tables(parts).sort_by("event_id").equals(numbers)

    first = StreamSpec.decode(specs[0].encode())  # as another process would get it
    assert first == specs[0]
    for offset in (1, 65_536, 65_537, parts[0].num_rows - 1, parts[0].num_rows):
        batches = list(bigquery.read_stream(first, offset))
        rest = pa.Table.from_batches(batches, parts[0].schema)
        assert rest.equals(parts[0].slice(offset))


@pytest.mark.parametrize(
    "uri",
    [
        "bq://sameriver.events",
        "bq://sameriver.a.b.c",
        "sameriver.a.b",
        "bq://sameriver.a.b;drop",
        "bq://sameriver.a.b`",
        "bq://sameriver.a.../b",
        "bq://sameriver.a.b\n",
        "bq://Sameriver.a.b",
        "bq://projects/x.a.b",
        "bq://sameriver.a-b.c",
        "bq://sameriver.á.b",
        "",
    ],
)
def test_table_names_that_are_none_are_refused(uri: str) -> None:
    with pytest.raises(HistoryError, match=r"named bq://project\.dataset\.table, got"):
        TableName.parse(uri)


@pytest.mark.parametrize("uri", ["bq://sameriver.a.b", "bq://example.com:old-project1.a_1.b-2"])
def test_table_names_are_parsed(uri: str) -> None:
    assert str(TableName.parse(uri)) == uri


@pytest.mark.parametrize(
    ("columns", "where", "message"),
    [
        (["event_id, (SELECT 1)"], "", "a column name was wanted"),
        (["event_id`"], "", "a column name was wanted"),
        ([], "", "at least one column"),
        (["nowhere"], "", "no such table or column.*nowhere"),
        (None, "nowhere > 3", r"reading bq://sameriver.bad.events failed.*nowhere"),
        (None, "event_id = 'a'; DROP TABLE x", r"reading bq://sameriver.bad.events failed"),
    ],
)
def test_bad_requests_are_told_in_one_sentence(
    bigquery_endpoints: Endpoints, columns: list[str] | None, where: str, message: str
) -> None:
    uri = "bq://sameriver.bad.events"
    bigquery.load_table(uri, TABLE, bigquery_endpoints)
    with pytest.raises(HistoryError, match=message) as raised:
        list(bigquery.read_table(uri, columns, where, bigquery_endpoints))
    assert "\n" not in str(raised.value)


def test_a_missing_table_is_told(bigquery_endpoints: Endpoints) -> None:
    with pytest.raises(HistoryError, match=r"reading bq://sameriver.none.events failed: no such table"):
        bigquery.streams("bq://sameriver.none.events", endpoints=bigquery_endpoints)


def test_columns_without_counterpart_are_refused_before_anything_is_sent() -> None:
    nowhere = Endpoints(rest="http://127.0.0.1:9", grpc="127.0.0.1:9")
    for column, message in [
        (pa.array([[1]]), "values: wanted a struct or one of int32, .* got list"),
        (pa.array([{"inner": [1]}]), "values: inner: wanted a struct"),
    ]:
        with pytest.raises(HistoryError, match=message):
            bigquery.load_table("bq://sameriver.a.b", pa.table({"values": column}), nowhere)
    with pytest.raises(HistoryError, match=r"got 'departed\.delay'"):
        bigquery.load_table("bq://sameriver.a.b", pa.table({"departed.delay": [1.0]}), nowhere)


def test_an_unreachable_service_is_told(monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]) -> None:
    monkeypatch.setattr(bigquery_service, "DEADLINE_S", 0.3)
    port = free_port()
    nowhere = Endpoints(rest=f"http://127.0.0.1:{port}", grpc=f"127.0.0.1:{port}")
    with pytest.raises(HistoryError, match=r"reading bq://sameriver.a.b failed: BigQuery cannot be reached"):
        bigquery.streams("bq://sameriver.a.b", endpoints=nowhere)
    with pytest.raises(HistoryError, match=r"loading bq://sameriver.a.b failed: BigQuery cannot be reached"):
        bigquery.load_table("bq://sameriver.a.b", TABLE, nowhere)


def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/key.json")
    with pytest.raises(HistoryError, match=r"needs Google credentials.*gcloud auth application-default login"):
        bigquery.streams("bq://sameriver.a.b", endpoints=Endpoints())


def test_endpoints_come_from_the_environment_and_never_by_halves() -> None:
    assert Endpoints.from_environment({}) == Endpoints()
    both = {"BIGQUERY_EMULATOR_HOST": "localhost:1", "BIGQUERY_STORAGE_GRPC_ENDPOINT": "localhost:2"}
    assert Endpoints.from_environment(both) == Endpoints("http://localhost:1", "localhost:2")
    for name in both:
        with pytest.raises(HistoryError, match=rf"only {name} is set"):
            Endpoints.from_environment({name: both[name]})
    with pytest.raises(HistoryError, match="must be host:port, got 'http://x:1'"):
        Endpoints("http://x:1", "http://x:1")


class _BreakingService(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """ReadRows of 10 rows, 3 a message, that breaks off after each message and honours the offset."""

    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.rows = pa.record_batch({"n": pa.array(range(10), pa.int64())})

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if not handler_call_details.method.endswith("/ReadRows"):
            return None
        return grpc.unary_stream_rpc_method_handler(
            self._read_rows,
            request_deserializer=types.ReadRowsRequest.deserialize,
            response_serializer=types.ReadRowsResponse.serialize,
        )

    def _read_rows(
        self, request: types.ReadRowsRequest, context: grpc.ServicerContext
    ) -> Iterator[types.ReadRowsResponse]:
        self.offsets.append(request.offset)
        part = self.rows.slice(request.offset, 3)
        yield types.ReadRowsResponse(
            row_count=part.num_rows,
            arrow_record_batch=types.ArrowRecordBatch(serialized_record_batch=part.serialize().to_pybytes()),
        )
        if request.offset + part.num_rows < 10:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")


@contextmanager
def _serving(service: _BreakingService) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_broken_stream_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    service = _BreakingService()
    with _serving(service) as address:
        local = bigquery_service.storage_client
        here = Endpoints(rest="http://127.0.0.1:9", grpc=address)
        monkeypatch.setattr(bigquery_service, "storage_client", lambda _: local(here))
        schema = base64.b64encode(service.rows.schema.serialize().to_pybytes()).decode()
        google = StreamSpec("bq://sameriver.a.b", "projects/p/locations/l/sessions/s/streams/0", schema, Endpoints())
        batches = list(bigquery.read_stream(google, offset=2))
    assert [n for batch in batches for n in batch["n"].to_pylist()] == list(range(2, 10))
    assert service.offsets == [2, 5, 8]


@pytest.mark.soak
def test_reading_is_about_as_fast_as_receiving(bigquery_endpoints: Endpoints) -> None:
    """Beside a client that receives the same messages and does not look into them; `pytest -m soak -s` prints both."""
    uri, count = "bq://sameriver.rates.numbers", 2_000_000
    numbers = pa.array(range(count), pa.int64())
    columns = {"event_id": numbers.cast(pa.string()), "event_time": numbers.cast(UTC_US)}
    table = pa.table(columns | {name: numbers.cast(pa.float64()) for name in "abcd"})
    for start in range(0, count, 500_000):
        bigquery.load_table(uri, table.slice(start, 500_000), bigquery_endpoints, append=start > 0)
    rates = []
    for read in (_received, _read) * 2:
        specs = bigquery.streams(uri, endpoints=bigquery_endpoints, max_streams=2)
        started = time.perf_counter()
        with futures.ThreadPoolExecutor(len(specs)) as threads:
            found = sum(threads.map(read, specs))
        rates.append(count / (time.perf_counter() - started))
        assert found >= count
    received, ours = max(rates[::2]), max(rates[1::2])
    print(f"\nreceived {received:,.0f} rows/s, read {ours:,.0f} rows/s: {ours / received:.2f}")
    assert ours > received / 3


def _read(spec: StreamSpec) -> int:
    return sum(batch.num_rows for batch in bigquery.read_stream(spec))


def _received(spec: StreamSpec) -> int:
    """Bytes of all messages of a stream, which stay as they came."""
    assert spec.endpoints.grpc is not None
    options = [("grpc.max_receive_message_length", bigquery_service.MAX_MESSAGE_BYTES)]
    with grpc.insecure_channel(spec.endpoints.grpc, options=options) as channel:
        call = channel.unary_stream(
            "/google.cloud.bigquery.storage.v1.BigQueryRead/ReadRows",
            request_serializer=types.ReadRowsRequest.serialize,
            response_deserializer=None,
        )
        return sum(len(message) for message in call(types.ReadRowsRequest(read_stream=spec.name)))
