"""Finding and reading a history: splits, ranges, columns, and one sentence for each thing that is wrong."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch import tables
from batch.admission import admit, first_of_each
from batch.tables import History, open_history, read_split
from shared_features import load_app
from shared_features.blocks import nest
from shared_features.errors import HistoryError
from shared_features.plan import make_plan
from tests import histories
from tests.histories import START_US, block_of, event
from tests.shop.app import app

PLAN = make_plan(app)


def rows(history: History) -> pa.Table:
    return pa.Table.from_batches([b for split in history.splits for b in read_split(split)], schema=history.schema)


def instant(at_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(START_US / 1_000_000 + at_s, dt.UTC)


def nested(block: pa.RecordBatch) -> pa.Table:
    return nest(pa.Table.from_batches([block]))


def test_the_splits_hold_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SPLIT_ROWS", 20)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 6)
    block = block_of([event("sale", at, till=at) for at in range(100)])
    history = open_history(histories.write(tmp_path, block, files=3, row_group_rows=5), PLAN)
    assert len(history.splits) == 6  # two of each file
    assert history.rows == 100
    assert sorted(rows(history)["sale.till"].to_pylist()) == list(range(100))
    sizes = [b.num_rows for split in history.splits for b in read_split(split)]
    assert max(sizes) <= 20
    assert not history.archived


def test_a_file_is_a_history_too_and_marked_files_are_passed_over(tmp_path: Path) -> None:
    histories.write(tmp_path / "year=2013", block_of([event("sale", 1)]))
    (tmp_path / "_work").mkdir()
    (tmp_path / "_work" / "other.parquet").write_bytes(b"no Parquet")
    (tmp_path / ".part.parquet").write_bytes(b"no Parquet")
    assert rows(open_history(tmp_path, PLAN)).num_rows == 1
    assert rows(open_history(tmp_path / "year=2013" / "part-0.parquet", PLAN)).num_rows == 1


def test_the_version_tells_histories_apart_by_content(tmp_path: Path) -> None:
    folder = histories.write(tmp_path, block_of([event("sale", 1)]))
    before = open_history(folder, PLAN).version
    assert before is not None
    digest = hashlib.sha256((folder / "part-0.parquet").read_bytes()).hexdigest()
    assert [(file["file"], file["rows"], file["sha256"]) for file in before["files"]] == [("part-0.parquet", 1, digest)]
    histories.write(folder, block_of([event("sale", 2)]))
    assert open_history(folder, PLAN).version != before


def test_a_range_reads_only_row_groups_that_can_hold_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SPLIT_ROWS", 1)
    table = nested(block_of([event("sale", at, till=at) for at in range(100)]))
    pq.write_table(table, tmp_path / "sorted.parquet", row_group_size=10)
    history = open_history(tmp_path, PLAN, since=instant(25), until=instant(41))
    assert len(history.splits) == 3  # rows 20 to 49
    assert rows(history)["sale.till"].to_pylist() == list(range(25, 41))
    assert rows(open_history(tmp_path, PLAN, since=instant(98)))["sale.till"].to_pylist() == [98, 99]
    assert rows(open_history(tmp_path, PLAN, until=instant(0))).num_rows == 0


def test_a_range_goes_by_event_time_where_no_publish_time_is_known(tmp_path: Path) -> None:
    block = block_of([event("sale", at, till=at) for at in range(10)], published=False)
    pq.write_table(nested(block).drop_columns("publish_time"), tmp_path / "all.parquet")
    history = open_history(tmp_path, PLAN, since=instant(3), until=instant(5))
    assert rows(history)["sale.till"].to_pylist() == [3, 4]
    assert rows(history)["publish_time"].null_count == 2


def test_only_event_types_in_use_are_read() -> None:
    names = tables.event_schema(load_app("flights")).names
    assert names[:4] == ["event_type", "event_id", "event_time", "publish_time"]
    assert {name.partition(".")[0] for name in names[4:]} == {"departed", "arrived", "weather"}
    # Fields that no feature names are read all the same: a NaN in them is refused live, so here too.
    assert "departed.flight_number" in names


def test_narrower_types_are_widened_without_loss(tmp_path: Path) -> None:
    table = nested(block_of([event("sale", 1, shop="a", till=3, amount=0.5, units=-7)]))
    sale = table["sale"].combine_chunks()
    kinds = {"shop": pa.large_string(), "till": pa.int32(), "amount": pa.float32(), "units": pa.int8()}
    fields = [sale.field(f.name).cast(kinds.get(f.name, f.type)) for f in sale.type]
    other = pa.StructArray.from_arrays(fields, names=[f.name for f in sale.type])
    table = table.set_column(table.schema.get_field_index("sale"), "sale", other)
    table = table.set_column(0, "event_type", table["event_type"].dictionary_encode())
    times = table["event_time"].cast(pa.timestamp("ms", "Europe/Berlin"))
    table = table.set_column(table.schema.get_field_index("event_time"), "event_time", times)
    pq.write_table(table, tmp_path / "all.parquet")
    (read,) = rows(open_history(tmp_path, PLAN)).to_pylist()
    assert (read["event_type"], read["sale.shop"], read["sale.till"], read["sale.amount"], read["sale.units"]) == (
        "sale",
        "a",
        3,
        0.5,
        -7,
    )
    assert read["event_time"] == instant(1)


def test_positions_are_read_where_there_are_any(tmp_path: Path) -> None:
    block = block_of([event("sale", 1)])
    for name, kind in (("epoch", pa.int32()), ("position", pa.int64())):
        block = block.append_column(f"stage.shop.{name}", pa.array([5], kind))
    history = open_history(histories.write(tmp_path, block), PLAN)
    assert history.archived
    assert history.schema.names[-2:] == ["stage.shop.epoch", "stage.shop.position"]
    assert rows(history)["stage.shop.position"].to_pylist() == [5]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"history .*/nowhere does not exist: wanted a folder or file of Parquet"):
        open_history(tmp_path / "nowhere", PLAN)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="has no Parquet file"):
        open_history(tmp_path, PLAN)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(HistoryError, match="'s3://bucket/x' names a source that is not known"):
        open_history("s3://bucket/x", PLAN)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(HistoryError, match=r"bad\.parquet cannot be read as Parquet"):
        open_history(tmp_path, PLAN)


def test_a_missing_column_is_named_with_what_is_there(tmp_path: Path) -> None:
    block = block_of([event("sale", 1)])
    names = [name for name in block.schema.names if name != "sale.amount"]
    histories.write(tmp_path, block.select(names))
    with pytest.raises(HistoryError, match=r"has no column 'sale\.amount' \(double\): it has sale\.shop, sale\.till"):
        open_history(tmp_path, PLAN)


def test_a_column_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    block = block_of([event("sale", 1)])
    index = block.schema.get_field_index("sale.amount")
    histories.write(tmp_path, block.set_column(index, "sale.amount", pa.array(["1.5"])))
    with pytest.raises(HistoryError, match=r"column 'sale\.amount' of history .* is string, wanted double"):
        open_history(tmp_path, PLAN)


def test_local_times_are_refused(tmp_path: Path) -> None:
    block = block_of([event("sale", 1)])
    index = block.schema.get_field_index("event_time")
    histories.write(tmp_path, block.set_column(index, "event_time", block.column(index).cast(pa.timestamp("us"))))
    with pytest.raises(HistoryError, match=r"'event_time' .* is timestamp\[us\], wanted timestamp\[us, tz=UTC\]"):
        open_history(tmp_path, PLAN)
    with pytest.raises(HistoryError, match="has no zone"):
        open_history(tmp_path, PLAN, since=dt.datetime(2013, 1, 1))  # noqa: DTZ001


def test_a_value_that_does_not_fit_is_named(tmp_path: Path) -> None:
    block = block_of([event("sale", 1)])
    index = block.schema.get_field_index("sale.units")
    histories.write(tmp_path, block.set_column(index, "sale.units", pa.array([2**63], pa.uint64())))
    history = open_history(tmp_path, PLAN)
    with pytest.raises(HistoryError, match=r"column 'sale\.units' of history .* has a value that is no int64"):
        rows(history)


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    history = open_history(histories.write(tmp_path, block_of([event("sale", 1)])), PLAN)
    (tmp_path / "part-0.parquet").unlink()
    with pytest.raises(HistoryError, match=r"part-0\.parquet cannot be read any more"):
        rows(history)


def test_what_is_left_out_is_counted_by_reason() -> None:
    bad = [
        event("sale", 0, amount=float("nan")),
        event("sale", 1, amount=1e300),
        event("sale", 2),
        event("refund", 3),
        event("visit", 4, event_id=""),
    ]
    schema = tables.event_schema(app)
    admitted, left_out = admit(PLAN, block_of(bad).select(schema.names))
    assert admitted.column("event_type").to_pylist() == ["sale"]
    assert left_out == {"not_finite": 1, "out_of_range": 1, "unknown_event_type": 1, "missing_event_id": 1}


def test_the_first_of_each_identity_stays() -> None:
    """One id in two event types is two identities; of one identity the first by publish time stays."""
    block = block_of(
        [
            event("sale", 3, event_id="x", late=0, units=1),
            event("sale", 0, event_id="x", late=9, units=2),
            event("sale", 1, event_id="x", late=1, units=3),
            event("visit", 9, event_id="x"),
            event("sale", 9, event_id="y", units=4),
        ]
    )
    kept = first_of_each(block).to_pylist()
    assert sorted((row["event_type"], row["event_id"], row["sale.units"]) for row in kept if row["sale.units"]) == [
        ("sale", "x", 3),
        ("sale", "y", 4),
    ]
    assert len(kept) == 3
