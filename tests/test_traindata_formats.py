"""Training rows for other trainers: the same values, to the bit where the format can hold them."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from batch import formats
from batch.traindata import make_training_rows
from serving.wire import Example
from shared_features.errors import ConfigurationError
from tests import histories
from tests.histories import block_of
from tests.shop.app import app
from tests.test_traindata import EVENTS, SPLITS

SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("delay", pa.float64()),
        ("seats", pa.int64()),
        ("last", pa.list_(pa.float64(), 2)),
        ("label", pa.bool_()),
    ]
)
ROWS = pa.table(
    {
        "event_id": ["a", 'b "x", é\n', "", None, "e"],
        "event_time": pa.array([0, 1, -1, 253402300799999999, None]).cast(pa.timestamp("us", "UTC")),
        "delay": [0.1 + 0.2, -0.0, 5e-324, None, 1.7976931348623157e38],
        "seats": [2**63 - 1, -(2**63), 0, None, 7],
        "last": pa.array([[1.5, None], [None, 4.0], [None, None], [2.0, 3.0], [0.1, 0.2]], pa.list_(pa.float64(), 2)),
        "label": [True, False, True, False, True],
    },
    schema=SCHEMA,
)


def converted(folder: Path, to: formats.Format, rows_per_file: int) -> list[Path]:
    (folder / "train").mkdir()
    pq.write_table(ROWS, folder / "train" / "2013-01.parquet", row_group_size=3)
    formats.convert(folder, to, rows_per_file)
    return sorted((folder / "train").iterdir())


def test_csv_gives_the_same_bits_back(tmp_path: Path) -> None:
    paths = converted(tmp_path, "csv", 2)
    assert [path.name for path in paths] == [f"2013-01-0000{i}-of-00003.csv" for i in range(3)]
    kinds = {"event_id": pa.string(), "event_time": SCHEMA.field("event_time").type, "delay": pa.float64()}
    kinds |= {"seats": pa.int64(), "last[0]": pa.float64(), "last[1]": pa.float64(), "label": pa.bool_()}
    options = csv.ConvertOptions(column_types=kinds, strings_can_be_null=True, quoted_strings_can_be_null=False)
    parse = csv.ParseOptions(newlines_in_values=True)
    back = pa.concat_tables([csv.read_csv(path, parse_options=parse, convert_options=options) for path in paths])
    assert back.column_names == list(kinds)
    for name in ("event_id", "event_time", "seats", "label"):
        assert back[name].to_pylist() == ROWS[name].to_pylist()
    assert bits(back["delay"].to_pylist()) == bits(ROWS["delay"].to_pylist())
    assert back["last[1]"].to_pylist() == [None, 4.0, None, 3.0, 0.2]


def bits(values: list[float | None]) -> list[bytes | None]:
    return [None if value is None else struct.pack("<d", value) for value in values]


def records(path: Path) -> list[bytes]:
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        for part, crc in ((data[:8], data[8:12]), (data[12 : 12 + length], data[12 + length : 16 + length])):
            value = google_crc32c.value(part)
            assert struct.unpack("<I", crc)[0] == (((value >> 15) | (value << 17 & 0xFFFFFFFF)) + 0xA282EAD8) % 2**32
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_tfrecord_holds_an_example_a_row(tmp_path: Path) -> None:
    paths = converted(tmp_path, "tfrecord", 3)
    assert [path.name for path in paths] == [f"2013-01-0000{i}-of-00002.tfrecord" for i in range(2)]
    examples = [Example.FromString(record).features.feature for path in paths for record in records(path)]
    assert [list(one["delay"].float_list.value) for one in examples if "delay" in one] == [
        [float(np.float32(value))] for value in (0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e38)
    ]
    assert [list(one["seats"].int64_list.value) for one in examples if "seats" in one] == [
        [value] for value in (2**63 - 1, -(2**63), 0, 7)
    ]
    assert [sorted(one) for one in examples][2] == ["delay", "event_id", "event_time", "label", "seats"]
    assert examples[1]["event_id"].bytes_list.value[0].decode() == 'b "x", é\n'
    assert examples[3]["last[1]"].float_list.value == [3.0]
    assert examples[3]["event_time"].int64_list.value == [253402300799999999]


def test_traindata_writes_them_and_finds_them_again(tmp_path: Path) -> None:
    history = histories.write(tmp_path / "history", block_of(EVENTS))
    plain = make_training_rows(app, history, tmp_path / "plain", splits=SPLITS)
    first = make_training_rows(app, history, tmp_path / "rows", splits=SPLITS, file_format="csv", rows_per_file=5)
    assert (first.rows, first.label_share) == (plain.rows, plain.label_share)
    paths = sorted((tmp_path / "rows").rglob("*.csv"))
    assert len(paths) == first.files > plain.files
    assert sum(len(path.read_text().splitlines()) - 1 for path in paths) == sum(plain.rows.values())
    again = make_training_rows(app, history, tmp_path / "rows", splits=SPLITS, file_format="csv", rows_per_file=5)
    assert again.reused
    with pytest.raises(ConfigurationError, match="rows per file are 0"):
        formats.convert(tmp_path, "csv", 0)
    pq.write_table(pa.table({"far": [-1e39]}), tmp_path / "plain" / "far.parquet")
    with pytest.raises(ConfigurationError, match=r"column 'far' has values up to 1e\+39, which 32-bit floats"):
        formats.convert(tmp_path / "plain", "tfrecord")
