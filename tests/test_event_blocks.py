"""Blocks of events in one message: the same rows as the events one by one, bad events refused one by one, no bombs."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from batch.verify import verify
from shared_features import load_app
from shared_features.app import App
from shared_features.blocks import append_columns
from streaming.archive import read_commits
from streaming.compression import CODECS, compress
from streaming.dead_letters import REASONS, read_dead_letters
from streaming.event_blocks import BlockLimits, block_message
from streaming.intake import Intake, refuse_row
from streaming.messages import plain
from streaming.outgoing import dead_letter_of_row, outgoing
from streaming.prediction_blocks import block_predictions
from streaming.source import WORK_BYTES, portions
from streaming.topics import Message
from tests.event_block_kit import INTAKE, arrow, avro_file, container, good, ipc, received, records, without_ids
from tests.processes import REPOSITORY
from tests.sample_events import AT_US, GOOD, SCHEMAS
from tests.serving_steps import serve, to_messages
from tests.shop.app import app as shop
from tests.test_verify import sales


def test_a_block_gives_the_rows_of_its_events_one_by_one() -> None:
    alone = INTAKE.take([received(json.dumps(one).encode()) for one in records(5)])
    typed = {**good(5), "at": pa.array([AT_US] * 5).view(pa.timestamp("us", "UTC"))}
    narrow = {**good(5), "distance": pa.array([500] * 5, pa.uint16()), "weight": pa.array([1.5] * 5, pa.float32())}
    large = {**good(5), "cabin": pa.array(["ECONOMY"] * 5, pa.large_string()), "unknown": [b"x"] * 5}
    zoned = {**good(5), "at": pa.array([AT_US * 1000 + 999] * 5).view(pa.timestamp("ns", "Europe/Paris"))}
    for message in (
        *(arrow(columns) for columns in (good(5), typed, narrow, large, zoned)),
        *(received(ipc(good(5), codec), encoding="arrow") for codec in ("lz4", "zstd")),
        *(received(compress(ipc(good(5)), codec), encoding="arrow", compression=codec) for codec in CODECS),
        *(received(avro_file(5, codec), encoding="avro-file") for codec in ("null", "deflate")),
    ):
        taken = INTAKE.take([message])
        assert taken.refused == []
        assert (taken.events, taken.rows.tolist()) == (5, [0] * 5)
        assert without_ids(taken.block) == without_ids(alone.block)
        assert taken.block.column("message_id").to_pylist() == [f"m/{row}" for row in range(5)]


def test_what_a_publisher_makes_of_rows_gives_these_rows() -> None:
    """Every kind of field and nulls: rows -> block -> rows."""
    history = sales(60)
    for name, schema in shop.event_types.items():
        part = history.filter(pc.equal(history.column("event_type"), name))
        for compression in (None, *CODECS):
            sent = block_message(schema, part, compression=compression)
            taken = Intake(shop.event_types).take([Message(sent.data, sent.attributes, "m", 2**51)])
            assert taken.refused == []
            assert taken.block.select(["event_id", "event_time"]) == part.select(["event_id", "event_time"])
            fields = [field.name for field in schema.block_fields]
            assert taken.block.select(fields) == part.select(fields)


def test_messages_of_all_kinds_keep_their_order() -> None:
    one = json.dumps({**GOOD, "flight": "alone"}).encode()
    datum = io.BytesIO()
    fastavro.schemaless_writer(datum, SCHEMAS["departed"].avro, {**GOOD, "flight": "avro"})
    messages = [
        received(one),
        arrow(good(2)),
        received(b"{"),
        received(datum.getvalue(), encoding="avro"),
        received(avro_file(3), encoding="avro-file"),
        received(compress(one, "gzip"), compression="gzip"),
    ]
    taken = INTAKE.take(messages)
    assert taken.rows.tolist() == [0, 1, 1, 3, 4, 4, 4, 5]
    assert taken.block.column("event_id").to_pylist() == ["alone", "F0", "F1", "avro", "F0", "F1", "F2", "alone"]
    assert [(one.index, one.reason) for one in taken.refused] == [(2, "malformed_json")]
    assert taken.events == 9


BAD: list[tuple[str, dict[str, Any]]] = [
    ("missing_field", {"distance": None}),
    ("not_finite", {"weight": float("nan")}),
    ("out_of_range", {"cabin": "ATTIC"}),
    ("timestamp_out_of_range", {"at": -1}),
    ("in_the_future", {"at": AT_US + 10**12}),
    ("missing_event_id", {"flight": ""}),
    ("wrong_type", {"tail": b"\xff"}),
    ("oversized", {"tail": b"x" * ((1 << 20) + 1)}),
]


KINDS: dict[str, Any] = {
    "flight": "string",
    "at": "long",
    "distance": ["null", "long"],
    "weight": "float",
    "heavy": "boolean",
    "cabin": {"type": "enum", "name": "Cabin", "symbols": ["ECONOMY", "BUSINESS", "ATTIC"]},
    "tail": ["null", "bytes"],
}
"""A writer's schema that lets through what the app's refuses."""


@pytest.mark.parametrize(("reason", "change"), BAD)
@pytest.mark.parametrize("encoding", ["arrow", "avro-file"])
def test_one_bad_event_of_a_block_is_refused_alone(encoding: str, reason: str, change: dict[str, Any]) -> None:
    """It is refused as the event would be by itself, and what its dead letter holds is refused again."""
    rows = records(4)
    rows[2] = {**rows[2], **change}
    if encoding == "avro-file":
        fields = [{"name": name, "type": KINDS[name]} for name in {**GOOD, **change}]
        data = container(rows, {"type": "record", "name": "Departed", "fields": fields})
    else:
        columns = {name: [row.get(name) for row in rows] for name in {**GOOD, **change}}
        if reason == "oversized":
            columns["tail"] = pa.array(columns["tail"]).cast(pa.string())
        data = ipc(columns)
    taken = INTAKE.take([received(data, encoding=encoding)])
    assert taken.block.column("event_id").to_pylist() == ["F0", "F1", "F3"]
    (refused,) = taken.refused
    assert (refused.index, refused.reason, refused.row, taken.events) == (0, reason, 2, 4)
    again = refused.message([received(data, encoding=encoding, message_id="m7")])
    assert (again.message_id, again.attributes) == ("m7/2", {"event_type": "departed"})
    (same,) = INTAKE.take([again]).refused
    assert same.reason == reason


def test_a_column_of_another_type_refuses_each_event_by_itself() -> None:
    naive = pa.array([AT_US] * 2).view(pa.timestamp("us"))
    huge = pa.array([2**64 - 1, 3], pa.uint64())
    for change, wanted in (
        ({"distance": [1.5, 2.0]}, ["wrong_type"] * 2),
        ({"heavy": [1, 0]}, ["wrong_type"] * 2),
        ({"at": naive}, ["wrong_type"] * 2),
        ({"tail": [b"x", None]}, ["wrong_type"]),
        ({"distance": huge}, ["out_of_range"]),
        ({"at": pa.array([2**50, AT_US // 10**6]).view(pa.timestamp("s", "UTC"))}, ["timestamp_out_of_range"]),
        ({"distance": pa.nulls(2)}, ["missing_field"] * 2),
    ):
        taken = INTAKE.take([arrow({**good(2), **change})])
        assert [one.reason for one in taken.refused] == wanted
        assert taken.block.num_rows == 2 - len(wanted)
        for one in taken.refused:
            alone = INTAKE.take([one.message([arrow(good(2))])]).refused
            assert [again.reason for again in alone] == [one.reason], change


def test_events_without_an_identity_of_their_own_get_one_each() -> None:
    at = {"at": [AT_US, AT_US]}
    plain = INTAKE.take([arrow(at, event_type="noted", message_id="m5", event_id="not for a block")])
    assert plain.block.column("event_id").to_pylist() == ["m5/0", "m5/1"]
    given = INTAKE.take([arrow({**at, "event_id": ["a", None]}, event_type="noted", message_id="m5")])
    assert given.block.column("event_id").to_pylist() == ["a", "m5/1"]
    bad = INTAKE.take([arrow({"at": [-1, AT_US], "event_id": ["a", "b"]}, event_type="noted")]).refused[0]
    assert bad.message([arrow(at)]).attributes["event_id"] == "a"


LIMITS = BlockLimits(events=100, bytes=1 << 20, event_bytes=1000)


def whole(reason: str, data: bytes, **attributes: str) -> Any:
    return pytest.param(reason, received(data, **attributes), id=f"{reason}-{attributes.get('encoding')}-{len(data)}")


def dictionary() -> bytes:
    return ipc({"cabin": pa.array(["ECONOMY"] * 3).dictionary_encode()})


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        whole("malformed_block", b"", encoding="arrow"),
        whole("malformed_block", b"ARROW1\0\0", encoding="arrow"),
        whole("malformed_block", ipc(good(3))[:-50], encoding="arrow"),
        whole("malformed_block", ipc(good(3)) + b"more", encoding="arrow"),
        whole("malformed_block", dictionary(), encoding="arrow"),
        whole("malformed_block", ipc({"x": [[1], [2]]}), encoding="arrow"),
        whole("malformed_block", ipc({"x": [{"y": 1}]}), encoding="arrow"),
        whole("malformed_block", ipc({"x": pa.array([b"0" * 16], pa.uuid())}), encoding="arrow"),
        whole("oversized", ipc(good(101)), encoding="arrow"),
        whole("oversized", ipc({"x": pa.nulls(10**6)}), encoding="arrow"),
        whole("oversized", ipc({"x": ["y" * (1 << 21)]}, "zstd"), encoding="arrow"),
        whole("oversized", compress(bytes(1 << 24), "gzip"), encoding="arrow", compression="gzip"),
        whole("oversized", compress(bytes(1 << 24), "zstd"), compression="zstd"),
        whole("malformed_compression", b"no gzip", compression="gzip"),
        whole("unknown_encoding", b"", compression="brotli"),
        whole("unknown_event_type", ipc(good(1)), encoding="arrow", event_type="landed"),
        whole("malformed_block", b"Obj", encoding="avro-file"),
        whole("malformed_block", avro_file(3)[:-1], encoding="avro-file"),
        whole("malformed_block", avro_file(3) + b"\x02", encoding="avro-file"),
        whole("oversized", avro_file(101), encoding="avro-file"),
        whole("oversized", container([{"x": "y" * (1 << 21)}], {"type": "record", "name": "R", "fields": [
            {"name": "x", "type": "string"}]}, "deflate"), encoding="avro-file"),
    ],
)  # fmt: skip
def test_what_is_no_block_or_too_large_is_refused_whole(reason: str, message: Message) -> None:
    taken = Intake(SCHEMAS, max_event_bytes=1000, limits=LIMITS).take([message])
    (refused,) = taken.refused
    assert (refused.reason, refused.event, taken.events, taken.block.num_rows) == (reason, None, 1, 0)
    assert reason in REASONS
    assert refused.message([message]) is message


def test_a_pull_is_cut_into_works_by_size() -> None:
    small, large = received(b"x" * 10), received(b"x" * WORK_BYTES)
    assert [len(part) for part in portions([small] * 1000)] == [1000]
    assert [len(part) for part in portions([small, large, large, small])] == [2, 1, 1]
    assert list(portions([])) == []


def test_an_archive_of_blocks_verifies_and_a_block_is_acknowledged_once(tmp_path: Path) -> None:
    """Alone, as blocks and both at once: one archive, each event once, exact against the batch path."""
    history = sales(120)
    sale = history.filter(pc.equal(history.column("event_type"), "sale"))
    visit = history.filter(pc.equal(history.column("event_type"), "visit"))
    sent = [block_message(shop.event_types["visit"], visit)]
    sent += [block_message(shop.event_types["sale"], sale.slice(at, 20)) for at in range(0, sale.num_rows, 20)]
    blocks = [Message(one.data, one.attributes, f"b{i}", 2**51, f"ack b{i}") for i, one in enumerate(sent)]
    messages = [*blocks, *to_messages(shop, history), *blocks]
    served = serve(shop, messages, tmp_path / "archive")
    assert served.acknowledged == [message.ack_id for message in messages]
    report = verify(shop, tmp_path / "archive")
    assert (report.events, report.mismatches) == (120, 0)
    counts = [commit.counts for commit in read_commits(tmp_path / "archive")]
    assert sum(count["received"] for count in counts) == 360
    assert sum(count["duplicates"] for count in counts) == 240


def test_a_row_refused_after_decoding_becomes_the_event_that_gives_it_again() -> None:
    """Out of the aggregates' range, beyond the horizon, refused by the model: rows that were valid by their schema."""
    for event_type, rows in (("sale", sales(40)), ("visit", sales(40))):
        schema = shop.event_types[event_type]
        part = rows.filter(pc.equal(rows.column("event_type"), event_type))
        sent = block_message(schema, part)
        message = Message(sent.data, sent.attributes, "m3", 2**51)
        taken = Intake(shop.event_types).take([message])
        for row in range(taken.block.num_rows):
            refused = refuse_row(shop.event_types, [message], 0, taken.block, row, "out_of_range", "too large")
            again = refused.message([message])
            assert (refused.row, again.message_id) == (row, f"m3/{row}")
            alone = Intake(shop.event_types).take([again]).block
            assert without_ids(alone) == without_ids(taken.block.slice(row, 1))
    whole = refuse_row(shop.event_types, [message._replace(attributes={})], 0, taken.block, 0, "out_of_range", "")
    assert whole.event is None


def test_predictions_as_blocks_say_what_single_messages_say(tmp_path: Path) -> None:
    serve(shop, to_messages(shop, sales(60)), tmp_path / "archive")
    for commit in read_commits(tmp_path / "archive"):
        alone = outgoing(shop, commit.block, with_features=True)
        together = outgoing(shop, commit.block, with_features=True, as_blocks=True)
        singles = [plain(message.data) for message in alone.pop("shop-predictions", [])]
        blocks = together.pop("shop-predictions", [])
        rows = [row for one in blocks for row in block_predictions(one.data, one.attributes)]
        assert rows == singles
        assert sum(int(one.attributes["rows"]) for one in blocks) == len(singles)
        assert together == alone


def test_a_dead_letter_of_a_block_can_be_read_and_sent_again(tmp_path: Path) -> None:
    rows = {"event_id": ["a", "b"], "sold_at": [1_700_000_000_000_000, -5], "shop": ["s", "s"], "amount": [1.0, 2.0]}
    message = Message(ipc(rows), {"event_type": "sale", "encoding": "arrow"}, "m9", 2**51, "ack m9")
    served = serve(shop, [message], tmp_path / "archive")
    (letter,) = read_dead_letters(served.sent["shop-dead-letters"])
    assert (letter.reason, letter.message_id) == ("timestamp_out_of_range", "m9/1")
    replay = letter.replay()
    assert json.loads(replay.data) == {"event_id": "b", "sold_at": -5, "shop": "s", "amount": 2.0}
    assert served.acknowledged == ["ack m9"]
    mended = json.dumps({**json.loads(replay.data), "sold_at": 1_700_000_000_000_000}).encode()
    again = Intake(shop.event_types).take([replace_data(message, mended, replay.attributes)])
    assert again.block.column("event_id").to_pylist() == ["b"]
    assert np.asarray(again.rows).tolist() == [0]


def replace_data(message: Message, data: bytes, attributes: dict[str, str]) -> Message:
    return message._replace(data=data, attributes=attributes)


def test_the_documented_block_gives_its_events() -> None:
    """The code in docs/messages.md, run, makes a block of the event that the document shows as JSON."""
    flights = load_app("flights")
    text = (REPOSITORY / "docs" / "messages.md").read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    shown = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + "\nprint(attributes['encoding'], data.hex())"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    alone = re.findall(r"^```json departed\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    take = Intake(flights.event_types).take
    (row,) = take([received(alone.encode())]).block.drop_columns(["message_id"]).to_pylist()
    block = take([received(bytes.fromhex(shown[1]), encoding=shown[0])]).block
    assert block.drop_columns(["message_id"]).to_pylist() == [row, {**row, "event_id": "another"}]


def test_a_row_finer_than_its_schemas_unit_can_still_be_a_dead_letter() -> None:
    """A block brings microseconds into a field of milliseconds; the dead letter after a restart keeps them."""
    planned = pa.array([AT_US + 1]).view(pa.timestamp("us", "UTC"))
    row = INTAKE.take([arrow({**good(1), "planned": planned})]).block
    row = append_columns(row, {"failure": pa.array(["no"])})
    (letter,) = dead_letter_of_row(cast(App, SimpleNamespace(name="sample", event_types=SCHEMAS)), row, 0)
    again = INTAKE.take([received(letter.data)]).block
    assert again.column("departed.planned") == row.column("departed.planned")
