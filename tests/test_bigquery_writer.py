"""Rows written to BigQuery by its Storage Write API: each identity once, whatever is sent twice or cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, cast

import grpc
import pyarrow as pa
import pytest
from google.cloud.bigquery_storage_v1 import types

from batch import bigquery, bigquery_service, bigquery_writer
from batch.bigquery import Endpoints
from batch.bigquery_writer import BigQueryDestination, PendingStream, RowsRefused, commit_streams
from batch.writers import Shape, Written, read_token
from shared_features.errors import HistoryError
from shared_features.schema import TIMESTAMP
from tests.test_writers import SCHEMA, SHAPE, rows


def destination(uri: str, where: Endpoints, shape: Shape = SHAPE) -> BigQueryDestination:
    made = BigQueryDestination(uri, shape, where)
    made.prepare()
    return made


def put(into: BigQueryDestination, *blocks: pa.RecordBatch) -> Written:
    with into.piece("a") as piece:
        for block in blocks:
            piece.write(block)
    return into.commit([piece.token])


def read(uri: str, where: Endpoints) -> pa.Table:
    return pa.Table.from_batches(bigquery.read_table(uri, endpoints=where)).sort_by("prediction_id")


def test_a_second_run_adds_nothing_and_what_differs_is_told(
    bigquery_endpoints: Endpoints, caplog: pytest.LogCaptureFixture
) -> None:
    uri = "bq://sameriver.writer.twice"
    into = destination(uri, bigquery_endpoints)
    assert put(into, rows("a", "b"), rows("c", day=1)) == Written(rows=3)
    assert put(into, rows("a", "b"), rows("c", day=1)) == Written(existing=3)
    assert put(into, rows("a", "b", "d", seen=7)) == Written(rows=1, existing=2)
    assert put(into, rows("c", delay=-0.0, day=1)) == Written(existing=1, differing=1)
    assert "c is there already with feature__delay = 1.0, not -0.0: it stays as it is" in caplog.text
    got = read(uri, bigquery_endpoints)
    assert got["prediction_id"].to_pylist() == ["a", "b", "c", "d"]
    assert got.schema.names == ["prediction_id", "publish_time", "feature__delay", "seen"]


def test_the_table_is_made_of_the_shape_and_grows_by_columns(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.writer.grows"
    lists = pa.list_(pa.float64(), 2)
    shape = Shape(pa.schema([*SCHEMA, ("event_time", TIMESTAMP), ("key_shop", pa.string())]), keys=("key_shop",))
    destination(uri, bigquery_endpoints, shape)
    with bigquery_service.rest_client("sameriver", bigquery_endpoints) as client:
        table = client.get_table("sameriver.writer.grows")
        assert table.time_partitioning.field == "publish_time"
        assert table.clustering_fields == ["key_shop", "event_time"]
    wider = Shape(pa.schema([*SCHEMA, ("feature.last", lists), ("feature.new", pa.bool_())]), "prediction_id")
    into = destination(uri, bigquery_endpoints, wider)
    block = rows("a", "b", "c")
    block = block.append_column("feature.last", pa.array([[1.5, None], None, [2.5, 3.5]], lists))
    put(into, block.append_column("feature.new", pa.array([True, None, False])))
    (first, second, third) = read(uri, bigquery_endpoints).to_pylist()
    assert (first["feature__last__0"], first["feature__last__1"], first["feature__new"]) == (1.5, None, True)
    assert (second["feature__last__0"], third["feature__last__1"], third["key_shop"]) == (None, 3.5, None)
    changed = block.set_column(4, "feature.last", pa.array([[1.5, 9.0], None, [2.5, 3.5]], lists))
    assert put(into, changed) == Written(existing=3, differing=2)  # the first by both columns, the last by the new one
    other = Shape(pa.schema([("prediction_id", pa.string()), ("seen", pa.string())]))
    with pytest.raises(HistoryError, match=r"column 'seen' of bq://.* is NULLABLE INT64, wanted NULLABLE STRING"):
        destination(uri, bigquery_endpoints, other)
    unknown = BigQueryDestination(uri, Shape(pa.schema([("nowhere", pa.int64())])), bigquery_endpoints)
    with pytest.raises(HistoryError, match=r"has no column 'nowhere': it has event_time, .*prepare the destination"):
        put(unknown, pa.record_batch({"nowhere": [1]}))


def test_pieces_are_seen_when_all_are_committed_and_committing_twice_is_once(bigquery_endpoints: Endpoints) -> None:
    uri = "bq://sameriver.writer.pieces"
    into = destination(uri, bigquery_endpoints)
    tokens = []
    for ids in ("ab", "cd"):
        with into.piece("a") as piece:
            piece.write(rows(*ids))
        tokens.append(piece.token)
    with into.piece("a") as dropped:  # done again elsewhere, and dropped
        dropped.write(rows("a"))
    with into.piece("a") as empty:
        pass
    assert read(uri, bigquery_endpoints).num_rows == 0
    assert into.commit(tokens[:1]) == Written(rows=2)
    assert into.commit([*tokens, empty.token]) == into.commit(tokens) == Written(rows=4)
    assert read(uri, bigquery_endpoints)["prediction_id"].to_pylist() == ["a", "b", "c", "d"]
    with pytest.raises(HistoryError, match=r"cannot be committed .*write its rows again"):
        commit_streams(uri, [f"{read_token(tokens[0])[0]['stream'][:-1]}z"], bigquery_endpoints)


def test_rows_that_the_service_refuses_are_put_aside_with_its_reason(bigquery_endpoints: Endpoints) -> None:
    """A row of more than 10 MB cannot be appended; the others of its append are."""
    uri = "bq://sameriver.writer.refused"
    schema = pa.schema([("prediction_id", pa.string()), ("text", pa.string())])
    block = pa.record_batch({"prediction_id": list("abcde"), "text": ["", "", "x" * 11_000_000, "", ""]}, schema=schema)
    into = destination(uri, bigquery_endpoints, Shape(schema, "prediction_id"))
    aside: list[tuple[str, str]] = []
    with into.piece(
        "a", lambda some, why: aside.extend(zip(some["prediction_id"].to_pylist(), why, strict=True))
    ) as piece:
        piece.write(block)
    assert into.commit([piece.token]) == Written(rows=4, rejected=1)
    ((which, why),) = aside
    assert which == "c"
    assert "exceeds the 10485760-byte size cap" in why
    assert read(uri, bigquery_endpoints)["prediction_id"].to_pylist() == ["a", "b", "d", "e"]
    with pytest.raises(HistoryError, match=r"refuses 1 rows, the first one of .*size cap"):
        put(into, rows_of(block, 2))


def rows_of(block: pa.RecordBatch, row: int) -> pa.RecordBatch:
    return block.slice(row, 1).set_column(0, "prediction_id", pa.array(["z"]))


class _WriteService(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """AppendRows that keeps offsets as Google's does, and fails as `script` says: one item an append."""

    def __init__(self, script: list[str]) -> None:
        self.script, self.rows = script, list[int]()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if not handler_call_details.method.endswith("/AppendRows"):
            return None
        return grpc.stream_stream_rpc_method_handler(
            self._append,
            request_deserializer=types.AppendRowsRequest.deserialize,
            response_serializer=types.AppendRowsResponse.serialize,
        )

    def _append(
        self, requests: Iterator[types.AppendRowsRequest], context: grpc.ServicerContext
    ) -> Iterator[types.AppendRowsResponse]:
        schema = None
        for request in requests:
            if request.arrow_rows.writer_schema.serialized_schema:
                schema = pa.ipc.read_schema(pa.py_buffer(request.arrow_rows.writer_schema.serialized_schema))
            batch = pa.ipc.read_record_batch(pa.py_buffer(request.arrow_rows.rows.serialized_record_batch), schema)
            fault = self.script.pop(0) if self.script else ""
            if fault == "before":
                context.abort(grpc.StatusCode.UNAVAILABLE, "broke before the append")
            if fault == "bad row":
                yield types.AppendRowsResponse(
                    error={"code": 3, "message": "Errors found while processing rows"},
                    row_errors=[types.RowError(index=1, code="FIELDS_ERROR", message="out of range")],
                )
                continue
            if fault in {"quota", "schema"}:
                code = 8 if fault == "quota" else 3
                yield types.AppendRowsResponse(error={"code": code, "message": f"{fault} it is"})
                continue
            offset = int(cast("int", request.offset))
            if offset < len(self.rows):
                yield types.AppendRowsResponse(error={"code": 6, "message": "offset exists"})
                continue
            if offset > len(self.rows):
                yield types.AppendRowsResponse(error={"code": 11, "message": "a gap"})
                continue
            self.rows += batch["n"].to_pylist()
            if fault == "after":
                context.abort(grpc.StatusCode.UNAVAILABLE, "broke after the append")
            if fault == "busy":
                yield types.AppendRowsResponse(error={"code": 10, "message": "moved"})
                continue
            yield types.AppendRowsResponse(append_result={"offset": offset})


@pytest.fixture
def stream() -> Iterator[Callable[..., tuple[_WriteService, PendingStream]]]:
    stops = []

    def begin(*script: str) -> tuple[_WriteService, PendingStream]:
        service = _WriteService(list(script))
        server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[service])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        client = bigquery_writer.write_client(Endpoints(rest="http://127.0.0.1:9", grpc=f"127.0.0.1:{port}"))
        made = PendingStream("bq://sameriver.a.b", "projects/p/datasets/d/tables/t/streams/s", client.__enter__())
        stops.append((made, client, server))
        return service, made

    yield begin
    for made, client, server in stops:
        made._hang_up()
        client.__exit__(None, None, None)
        server.stop(None).wait()


def numbers(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(values, pa.int64())})


def test_an_append_that_is_sent_again_is_there_once(
    stream: Callable[..., tuple[_WriteService, PendingStream]],
) -> None:
    service, pending = stream("", "before", "after", "quota", "", "busy", "")
    for first in range(0, 10, 2):
        pending.append(numbers(first, first + 1))
    assert 0 < len(pending.unanswered) < 4
    pending.flush()
    assert service.rows == list(range(10))
    assert pending.rows == 10
    assert service.script == []


def test_rows_that_are_named_are_refused_and_the_stream_goes_on(
    stream: Callable[..., tuple[_WriteService, PendingStream]],
) -> None:
    service, pending = stream("", "bad row", "", "after")
    for first in range(0, 6, 2):
        pending.append(numbers(first, first + 1))
    with pytest.raises(RowsRefused) as refused:
        pending.flush()
    assert (refused.value.reasons, refused.value.batch) == ({1: "FIELDS_ERROR: out of range"}, numbers(2, 3))
    pending.append(numbers(2))
    pending.flush()
    assert (service.rows, pending.rows) == ([0, 1, 4, 5, 2], 5)
    service.script = ["schema"]
    pending.append(numbers(1))
    with pytest.raises(HistoryError, match=r"writing bq://sameriver.a.b failed: schema it is"):
        pending.flush()


def test_a_gap_is_no_way_to_go_on(stream: Callable[..., tuple[_WriteService, PendingStream]]) -> None:
    _, pending = stream()
    pending.rows = 7
    pending.append(numbers(1))
    with pytest.raises(HistoryError, match=r"writing bq://sameriver.a.b failed: a gap"):
        pending.flush()


def test_a_service_that_stays_away_is_told(
    stream: Callable[..., tuple[_WriteService, PendingStream]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bigquery_writer, "PATIENCE_S", 0.2)
    _, pending = stream(*["before"] * 9)
    pending.append(numbers(1))
    with pytest.raises(HistoryError, match=r"BigQuery cannot be reached: .*broke before the append"):
        pending.flush()
