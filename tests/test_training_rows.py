"""Training rows: what is read, and what is refused before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared_features.errors import FingerprintError, HistoryError
from tests import training_rows
from training.rows import Feature, open_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    splits = {split: training_rows.table(40, seed) for seed, split in enumerate(("train", "validate", "test"), 1)}
    return training_rows.write(tmp_path / "rows", splits)


def test_features_and_their_kinds_are_read_from_the_schema(folder: Path) -> None:
    rows = open_rows(folder)
    assert rows.features == (
        Feature("delay", "number"),
        Feature("hour", "number"),
        Feature("busy", "number"),
        Feature("shop", "text"),
        Feature("carrier", "text"),
    )
    assert (rows.app, rows.fingerprint, rows.definitions) == (
        "shop",
        training_rows.FINGERPRINT,
        training_rows.DEFINITIONS,
    )
    assert rows.counts == {"train": 40, "validate": 40, "test": 40}


def test_null_is_nan_for_numbers_and_empty_for_texts(tmp_path: Path) -> None:
    few = training_rows.table(3, 1)
    few = few.set_column(few.column_names.index("delay"), "delay", pa.array([1.5, None, 0.0]))
    few = few.set_column(few.column_names.index("busy"), "busy", pa.array([True, False, None]))
    few = few.set_column(few.column_names.index("carrier"), "carrier", pa.array(["AA", None, "AA"]))
    rows = open_rows(training_rows.write(tmp_path, {"train": few, "validate": few, "test": few}))
    numbers, texts, labels = rows.packed(rows.table("train")).take(np.array([2, 0, 1]))
    np.testing.assert_array_equal(numbers[:, 0], [0.0, 1.5, np.nan])
    np.testing.assert_array_equal(numbers[:, 2], [np.nan, 1.0, 0.0])
    assert texts[:, 1].tolist() == ["AA", "AA", ""]
    assert {str(numbers.dtype), str(labels.dtype)} == {"float32"}


def test_the_table_of_a_split_does_not_depend_on_its_shards(folder: Path, tmp_path: Path) -> None:
    shuffled = training_rows.table(40, 1).take(np.random.default_rng(1).permutation(40))
    rest = {split: training_rows.table(40, seed) for seed, split in ((2, "validate"), (3, "test"))}
    resharded = training_rows.write(tmp_path / "again", {"train": shuffled, **rest}, shards=3)
    assert open_rows(resharded).table("train").equals(open_rows(folder).table("train"))


def test_dictionaries_are_texts_and_large_files_come_in_blocks(tmp_path: Path) -> None:
    few = training_rows.table(100, 1)
    place = few.column_names.index("shop")
    few = few.set_column(place, "shop", few["shop"].dictionary_encode())
    rows = open_rows(training_rows.write(tmp_path, {"train": few, "validate": few, "test": few}, shards=2))
    assert rows.texts == ("shop", "carrier")
    sizes = [block.num_rows for block in rows.blocks("train", rows_per_block=30)]
    assert sizes == [30, 20, 30, 20]
    assert rows.packed(rows.table("train")).take(np.arange(3))[1][:, 0].tolist() == few["shop"].to_pylist()[:3]


def test_time_range_is_first_and_last_event(folder: Path) -> None:
    first, last = open_rows(folder).time_range("train")
    times = training_rows.table(40, 1)["event_time"].to_pylist()
    assert (first, last) == (times[0].isoformat(), times[-1].isoformat())


def _without_split(folder: Path) -> None:
    (folder / "validate" / "part-0.parquet").unlink()


def _rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        for path in sorted(folder.rglob("*.parquet")):
            table = pq.read_table(path)
            changed = change(table)
            pq.write_table(changed.replace_schema_metadata(changed.schema.metadata), path)

    return rewrite


def _damaged(folder: Path) -> None:
    (folder / "test" / "part-0.parquet").write_bytes(b"PAR1, or not")


def _other_fingerprint(folder: Path) -> None:
    path = folder / "test" / "part-0.parquet"
    pq.write_table(training_rows.with_origin(pq.read_table(path), "0" * 32), path)


def _bad_definitions(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, b"sameriver.definitions": b"{"})


def _relabelled(values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index("label"), "label", values)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_split, "need Parquet files in validate/, but there are none: run `sameriver traindata`"),
        (_rewritten(lambda table: table.slice(0, 0)), "holds no rows"),
        (_rewritten(lambda table: table.replace_schema_metadata(None)), "lacks sameriver.app, sameriver.fingerprint"),
        (_rewritten(_bad_definitions), "sameriver.definitions in .* must be JSON"),
        (_rewritten(lambda table: table.drop(["label"])), "has no label"),
        (_rewritten(lambda table: table.drop(["publish_time"])), "has no publish_time"),
        (_rewritten(_relabelled(pa.array([1] * 40))), "label must be bool, but .* has int64"),
        (_rewritten(_relabelled(pa.array([None] + [True] * 39))), "needs a label, but .* has rows without"),
        (
            _rewritten(lambda table: table.append_column("seen_at", table["event_time"])),
            r"must be int64, float64, bool, string or a list of numbers, but seen_at in .* is timestamp",
        ),
        (_rewritten(lambda table: table.drop(list(training_rows.FEATURES))), "at least one feature"),
        (_damaged, "must be Parquet, but .* cannot be read"),
        (_other_fingerprint, "must all come from one run, but .* has another schema, app or fingerprint"),
    ],
    ids=[
        "split missing",
        "empty",
        "no metadata",
        "definitions no JSON",
        "no label",
        "no publish time",
        "label a number",
        "label null",
        "feature a time",
        "no feature",
        "no Parquet",
        "two runs",
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(
    folder: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(folder)
    with pytest.raises(HistoryError, match=said) as caught:
        open_rows(folder)
    assert "\n" not in str(caught.value)


def test_rows_of_other_features_are_refused(folder: Path) -> None:
    rows = open_rows(folder)
    rows.require_fingerprint(None)
    rows.require_fingerprint(training_rows.FINGERPRINT)
    with pytest.raises(FingerprintError, match=r"f1f1f1f1f1f1, but app shop now defines 000000000000: run .*traindata"):
        rows.require_fingerprint("0" * 32)
