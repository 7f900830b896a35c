"""Files of events: four formats give the same events, and every bad row is named by its line."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands.event_blocks import as_blocks
from commands.event_files import EventFile, Row, check_rows, chunks
from shared_features.blocks import nest
from shared_features.compute import to_block
from shared_features.decode import Decoder
from shared_features.errors import ConfigurationError
from streaming.intake import Intake
from streaming.topics import Message, OutgoingMessage
from tests.sample_events import DECODER, GOOD, SCHEMAS
from tests.shop.app import app

NOW_US = 1_700_000_100_000_000
TIME = datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC)
SALES: list[dict[str, Any]] = [
    {"event_id": "a", "sold_at": TIME, "shop": "x", "till": 1, "amount": 2.5, "units": 3, "paid": True, "kind": "tea"},
    {"event_id": "b", "sold_at": TIME, "shop": None, "till": None, "amount": -0.1, "units": 0, "paid": False},
    {"event_id": "c", "sold_at": TIME, "shop": 'ü, "x"', "amount": 0.1 + 0.2, "kind": "line\nbreak"},
]
FIELDS = list(app.event_types["sale"].fields)


def rows(path: Path, **options: Any) -> list[Row]:
    return list(EventFile(app, str(path), **options).rows(io.BytesIO()))


def events(found: Sequence[Row]) -> list[dict[str, Any]]:
    """The events as the job would decode them; all must be good."""
    good, bad = check_rows(Decoder(app.event_types), list(found), NOW_US)
    assert bad == []
    block = Decoder(app.event_types).decode([_Message(row) for row in good]).block
    return [dict(row) for row in block.to_pylist()]


class _Message:
    def __init__(self, row: Row) -> None:
        self.data, self.attributes = row.message.data, row.message.attributes
        self.message_id, self.publish_time_us = "", NOW_US


def _complete(sale: dict[str, Any]) -> dict[str, Any]:
    return {field: sale.get(field) for field in FIELDS}


def write_json_lines(path: Path) -> None:
    lines = [json.dumps({"event_type": "sale", **sale, "sold_at": TIME.isoformat()}) for sale in SALES]
    path.write_text("\n\n".join(lines), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["event_type", *FIELDS])
        writer.writeheader()
        for sale in SALES:
            writer.writerow({"event_type": "sale", **_complete(sale), "sold_at": int(TIME.timestamp() * 1e6)})


def write_avro(path: Path) -> None:
    with path.open("wb") as file:
        fastavro.writer(file, app.event_types["sale"].avro, [_complete(sale) for sale in SALES], codec="deflate")


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"event_type": "sale", **_complete(sale)} for sale in SALES]), path)


def write_history(path: Path) -> None:
    columns = {"event_type": "sale", "event_time": TIME, "publish_time": TIME}
    named = [
        {**columns, "event_id": sale["event_id"]}
        | {f"sale.{name}": value for name, value in sale.items() if name not in ("event_id", "sold_at")}
        for sale in SALES
    ]
    block = to_block(app, pa.Table.from_pylist(named))
    pq.write_table(pa.Table.from_batches([nest(block)]), path)


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        ("jsonl", write_json_lines),
        ("csv", write_csv),
        ("avro", write_avro),
        ("parquet", write_parquet),
        ("parquet", write_history),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_format_gives_the_same_events(ending: str, write: Any, tmp_path: Path) -> None:
    path = tmp_path / f"sales.{ending}"
    write(path)
    found = events(rows(path))
    assert [event["event_id"] for event in found] == ["a", "b", "c"]
    for event, sale in zip(found, SALES, strict=True):
        assert event["event_time"] == TIME
        for name in FIELDS:
            if name not in ("event_id", "sold_at"):
                assert event[f"sale.{name}"] == sale.get(name)


def test_a_folder_of_parquet_is_read_in_the_order_of_its_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "2.parquet")
    pq.write_table(pa.table({"event_type": ["visit"], "event_id": ["v"], "entered_at": [TIME]}), tmp_path / "1.parquet")
    assert [event["event_id"] for event in events(rows(tmp_path))] == ["v", "a", "b", "c"]


def test_the_event_type_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "visits.csv").write_text("event_id,entered_at,length\nv,2023-11-14T22:13:20Z,1.5\n")
    (event,) = events(rows(tmp_path / "visits.csv", event_type="visit"))
    assert (event["event_type"], event["visit.length"]) == ("visit", 1.5)


def test_standard_input_is_json_lines() -> None:
    file = EventFile(app, "-")
    (row,) = file.rows(io.BytesIO(b'{"event_type": "visit", "event_id": "v", "entered_at": 1700000000000000}\n'))
    assert events([row])[0]["event_id"] == "v"


def test_bad_rows_are_named_by_line_with_the_reason_of_the_job(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    good = '{"event_type": "visit", "event_id": "v", "entered_at": 1700000000000000}'
    bad = {
        2: ('{"event_type": "visit"', "malformed_json"),
        3: ('{"event_type": "visit", "event_id": "w"}', "missing_field"),
        4: ('{"event_type": "call", "event_id": "w"}', "unknown_event_type"),
        5: ('{"event_id": "w"}', "unknown_event_type"),
        6: ('{"event_type": "visit", "event_id": "w", "entered_at": 1700000000000000, "length": "1"}', "wrong_type"),
        7: ('{"event_type": "visit", "event_id": "w", "entered_at": 1800000000000000}', "in_the_future"),
        8: ("[1]", "malformed_json"),
        9: (
            '{"event_type": "visit", "event_id": "w", "entered_at": 1700000000000000, "length": NaN}',
            "malformed_json",
        ),
    }
    path.write_text("\n".join([good, *(line for line, _ in bad.values()), good]))
    good_rows, bad_rows = check_rows(Decoder(app.event_types), rows(path), NOW_US)
    assert [row.number for row in good_rows] == [1, 10]
    found = {row.number: row.reason for row in bad_rows}
    assert found.keys() == bad.keys()
    assert {number: found[number] for number in (2, 3, 4, 5, 6, 7)} == {n: bad[n][1] for n in (2, 3, 4, 5, 6, 7)}
    assert all(row.detail for row in bad_rows)


def test_cells_that_are_no_numbers_and_nan_are_bad_rows(tmp_path: Path) -> None:
    head = "event_type,event_id,sold_at,amount,units,paid\n"
    lines = [
        "sale,a,1700000000000000,1,x,true",
        "sale,b,1700000000000000,nan,1,true",
        "sale,c,1700000000000000,1,1,yes",
    ]
    (tmp_path / "sales.csv").write_text(head + "\n".join(lines))
    good, bad = check_rows(Decoder(app.event_types), rows(tmp_path / "sales.csv"), NOW_US)
    assert (good, [row.number for row in bad]) == ([], [2, 3, 4])
    assert {row.reason for row in bad} == {"wrong_type"}


@pytest.mark.parametrize("ending", ["avro", "parquet"])
def test_a_file_of_another_format_is_refused_in_one_sentence(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"events.{ending}"
    path.write_bytes(b"not at all\n" * 100)
    with pytest.raises(ConfigurationError, match=f"events.{ending} cannot be read as"):
        rows(path)


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes("event_type,kind\nsale,té\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="CSV in UTF-8"):
        rows(tmp_path / "events.csv")


def test_rows_go_in_chunks() -> None:
    found = [Row(number, OutgoingMessage(b"")) for number in range(7)]
    assert [[row.number for row in chunk] for chunk in chunks(found, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_rows_of_a_feed_go_as_they_come_and_the_last_ones_when_it_is_stopped() -> None:
    def feed() -> Iterator[Row]:
        yield from (Row(number, OutgoingMessage(b"")) for number in range(3))
        raise SystemExit

    assert [len(chunk) for chunk in chunks([next(feed())] * 3, 10, most_s=-1)] == [1, 1, 1]
    parts = chunks(feed(), 2)
    assert [[row.number for row in next(parts)] for _ in range(2)] == [[0, 1], [2]]
    with pytest.raises(SystemExit):
        next(parts)


def test_a_compressed_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_bytes(gzip.compress(b"event_type\nsale\n"))
    with pytest.raises(ConfigurationError, match=r"events.csv is compressed by gzip: `gunzip` it, or pipe it in"):
        rows(tmp_path / "events.csv")


def test_rows_go_as_blocks_with_the_identities_that_they_would_have_alone() -> None:
    """In blocks an event without an id of its own is known by its message and its place, never by its line."""
    noted = [OutgoingMessage(b'{"at": %d}' % NOW_US, {"event_type": "noted"}) for _ in range(3)]
    noted[1] = noted[1]._replace(attributes={"event_type": "noted", "event_id": "own"})
    departures = [OutgoingMessage(json.dumps({**GOOD, "flight": id_}).encode()) for id_ in ("F", "2")]
    departures = [one._replace(attributes={"event_type": "departed"}) for one in departures]
    mixed = [noted[0], departures[0], noted[1], noted[2], departures[1]]
    sent = as_blocks(SCHEMAS, DECODER, [Row(n, one) for n, one in enumerate(mixed, 1)], NOW_US, "zstd")
    assert [one.attributes["event_type"] for one in sent] == ["noted", "departed"]
    received = [Message(one.data, one.attributes, f"m{i}", NOW_US) for i, one in enumerate(sent)]
    taken = Intake(SCHEMAS).take(received)
    assert taken.refused == []
    assert taken.block.column("event_id").to_pylist() == ["m0/0", "own", "m0/2", "F", "2"]
