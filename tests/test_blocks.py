"""Blocks: columns, nesting, serialisation."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_features.blocks import (
    append_columns,
    block_schema,
    concat_blocks,
    empty_block,
    flatten,
    from_ipc,
    nest,
    to_ipc,
)
from shared_features.errors import HistoryError, SameriverError
from shared_features.schema import TIMESTAMP, EventSchema

DEPARTED = """{"type": "record", "name": "Departed", "fields": [
  {"name": "flight", "type": "string"},
  {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
  {"name": "delay", "type": ["null", "double"]},
  {"name": "tail", "type": ["null", "string"]}]}"""
ARRIVED = """{"type": "record", "name": "Arrived", "fields": [
  {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
  {"name": "delay", "type": "double"}]}"""


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EventSchema]:
    folder: Path = tmp_path_factory.mktemp("schemas")
    (folder / "departed.avsc").write_text(DEPARTED)
    (folder / "arrived.avsc").write_text(ARRIVED)
    return {
        "departed": EventSchema("departed", folder / "departed.avsc", time="at", id="flight"),
        "arrived": EventSchema("arrived", folder / "arrived.avsc", time="at"),
    }


def small_block(schemas: dict[str, EventSchema]) -> pa.RecordBatch:
    at = datetime(2013, 11, 1, 5, tzinfo=UTC)
    schema = block_schema(schemas)
    rows: list[dict[str, object]] = [
        {"event_type": "departed", "event_id": "UA1", "departed.delay": 3.0},
        {"event_type": "arrived", "event_id": "UA1", "arrived.delay": -4.0},
        {"event_type": "departed", "event_id": "UA2", "departed.tail": "N1"},
    ]
    return pa.RecordBatch.from_pylist([{"event_time": at, **row} for row in rows], schema=schema)


def test_a_block_has_the_envelope_then_every_field(schemas: dict[str, EventSchema]) -> None:
    schema = block_schema(schemas)
    assert schema == block_schema(list(schemas.values()))
    assert schema.names == [
        "event_type",
        "event_id",
        "event_time",
        "publish_time",
        "message_id",
        "departed.delay",
        "departed.tail",
        "arrived.delay",
    ]
    assert schema.field("publish_time").type == TIMESTAMP
    assert empty_block(schema).num_rows == 0
    assert empty_block(schema).schema == schema


def test_a_struct_is_null_exactly_on_rows_of_other_types(schemas: dict[str, EventSchema]) -> None:
    nested = nest(small_block(schemas))
    assert nested.schema.names[-2:] == ["departed", "arrived"]
    assert nested.column("departed").to_pylist() == [
        {"delay": 3.0, "tail": None},
        None,
        {"delay": None, "tail": "N1"},
    ]
    assert nested.column("arrived").to_pylist() == [None, {"delay": -4.0}, None]


def test_flatten_undoes_nest_for_batches_tables_and_slices(schemas: dict[str, EventSchema]) -> None:
    block = small_block(schemas)
    assert flatten(nest(block)).equals(block)
    assert flatten(nest(block.slice(1))).equals(block.slice(1))
    assert flatten(nest(block).slice(1)).equals(block.slice(1))
    table = pa.Table.from_batches([block.slice(0, 2), block.slice(2)])
    assert flatten(nest(table)).equals(table)
    assert flatten(nest(table.slice(0, 0))).equals(table.slice(0, 0))
    assert flatten(nest(empty_block(block.schema))).equals(empty_block(block.schema))


def test_stage_feature_and_prediction_nest_at_every_dot_and_are_never_null(
    schemas: dict[str, EventSchema], tmp_path: Path
) -> None:
    block = append_columns(
        small_block(schemas),
        {
            "stage.origin.epoch": pa.array([1, None, 1], pa.int32()),
            "stage.origin.late": pa.array([False, None, False]),
            "feature.delay": pa.array([3.0, None, None]),
            "prediction.wide.probability": pa.array([0.5, None, None]),
            "reaction.rebook": pa.array([True, False, False]),
            "other.note": pa.array([None, None, "kept although no event type"]),
        },
    )
    nested = nest(block)
    assert [nested.column(name).null_count for name in ("stage", "feature", "prediction", "reaction")] == [0] * 4
    assert nested.column("stage").to_pylist()[1] == {"origin": {"epoch": None, "late": None}}
    pq.write_table(pa.Table.from_batches([nested]), tmp_path / "x.parquet")
    assert flatten(pq.read_table(tmp_path / "x.parquet")).equals(pa.Table.from_batches([block]))


def test_what_parquet_gives_back_flattens_to_the_same_block(schemas: dict[str, EventSchema], tmp_path: Path) -> None:
    table = pa.Table.from_batches([small_block(schemas)])
    pq.write_table(nest(table), tmp_path / "x.parquet")
    assert flatten(pq.read_table(tmp_path / "x.parquet")).equals(table)


def test_append_columns_refuses_a_taken_name_and_another_length(schemas: dict[str, EventSchema]) -> None:
    block = small_block(schemas)
    assert append_columns(block, {}) is block
    with pytest.raises(ValueError, match="'event_id' already"):
        append_columns(block, {"event_id": pa.array(["a", "b", "c"])})
    with pytest.raises(ValueError, match=r"(?i)length"):
        append_columns(block, {"feature.x": pa.array([1.0])})


def test_concat_blocks(schemas: dict[str, EventSchema]) -> None:
    block = small_block(schemas)
    assert concat_blocks([block]) is block
    assert concat_blocks([block.slice(0, 1), block.slice(1)]).equals(block)
    with pytest.raises(ValueError):
        concat_blocks([])


def test_ipc_keeps_every_row_and_only_the_slice(schemas: dict[str, EventSchema]) -> None:
    block = small_block(schemas)
    assert from_ipc(to_ipc(block)).equals(block, check_metadata=True)
    assert from_ipc(pa.py_buffer(to_ipc(block))).equals(block)
    assert from_ipc(to_ipc(block.slice(1, 1))).equals(block.slice(1, 1))
    assert from_ipc(to_ipc(empty_block(block.schema))).equals(empty_block(block.schema))
    long = pa.RecordBatch.from_pydict({"x": pa.array(range(100_000))})
    assert len(to_ipc(long.slice(5, 10))) < 2_000


def test_ipc_is_bounded(schemas: dict[str, EventSchema]) -> None:
    data = to_ipc(small_block(schemas))
    with pytest.raises(HistoryError, match="at most 100 bytes"):
        from_ipc(data, max_bytes=100)
    with pytest.raises(HistoryError, match="these 0 bytes are none"):
        from_ipc(b"")
    no_batch = pa.BufferOutputStream()
    pa.ipc.new_stream(no_batch, pa.schema([("x", pa.int64())])).close()
    with pytest.raises(HistoryError, match="are none"):
        from_ipc(no_batch.getvalue())
    two = pa.BufferOutputStream()
    with pa.ipc.new_stream(two, pa.schema([("x", pa.int64())])) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict({"x": [1]}))
        writer.write_batch(pa.RecordBatch.from_pydict({"x": [2]}))
    with pytest.raises(HistoryError, match="got more"):
        from_ipc(two.getvalue())
    squeezed = pa.BufferOutputStream()
    zeros = pa.RecordBatch.from_pydict({"x": pa.array([0] * 100_000)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(squeezed, zeros.schema, options=options) as writer:
        writer.write_batch(zeros)
    with pytest.raises(HistoryError):
        from_ipc(squeezed.getvalue(), max_bytes=10_000)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_bytes_are_told_and_never_crash(schemas: dict[str, EventSchema], data: st.DataObject) -> None:
    whole = bytearray(to_ipc(small_block(schemas)))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    with contextlib.suppress(SameriverError):
        assert from_ipc(cut, max_bytes=1 << 20).nbytes <= 1 << 20
