"""Constants over the training split: exact, in one pass, of that split only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shared_features.errors import ConfigurationError
from tests import training_rows
from training import statistics
from training.rows import open_rows
from training.statistics import NumberAccumulator, TextAccumulator, compute_statistics


def test_constants_are_those_of_the_training_split_alone(tmp_path: Path) -> None:
    train = training_rows.table(2_000, 1)
    other = training_rows.table(500, 2)
    poisoned = other.set_column(other.column_names.index("delay"), "delay", pa.array(np.full(500, 1e6)))
    poisoned = poisoned.set_column(poisoned.column_names.index("shop"), "shop", pa.array(["moon"] * 500))
    splits = {"train": train, "validate": poisoned, "test": poisoned}
    rows = open_rows(training_rows.write(tmp_path, splits, shards=3))
    found = compute_statistics(rows, buckets=10, min_rows=4)

    delay = train["delay"].drop_null().to_numpy()
    number = found.numbers["delay"]
    assert number.rows == 2_000
    assert number.missing == pytest.approx(train["delay"].null_count / 2_000)
    assert number.mean == pytest.approx(delay.mean(), rel=1e-8)
    assert number.std == pytest.approx(delay.std(), rel=1e-8)
    expected = np.quantile(delay, np.arange(11) / 10, method="inverted_cdf")
    np.testing.assert_array_equal(number.quantiles, expected)

    counts = train["shop"].to_pandas().value_counts()
    assert dict(found.texts["shop"].vocabulary) == counts.to_dict()
    assert [rows for _, rows in found.texts["shop"].vocabulary] == sorted(counts, reverse=True)
    carrier = found.texts["carrier"]
    assert carrier.missing == pytest.approx(train["carrier"].null_count / 2_000)
    assert "RARE" not in dict(carrier.vocabulary)  # in 3 rows at most
    assert carrier.distinct == 5
    assert found.positives == pytest.approx(train["label"].to_numpy().mean())


def test_a_bool_is_a_number_and_nothing_at_all_has_constants_too() -> None:
    nothing = NumberAccumulator()
    nothing.add(np.array([np.nan, np.nan]))
    assert nothing.result(4) == statistics.NumberStatistics(2, 1.0, 0.0, 0.0, ())
    same = NumberAccumulator()
    same.add(np.array([1e8, 1e8 + 1, 1e8 + 2]))
    assert same.result(2).std == pytest.approx((2 / 3) ** 0.5)
    assert same.result(2).quantiles == (1e8, 1e8 + 1, 1e8 + 2)


def test_merged_accumulators_say_what_one_says() -> None:
    values = np.round(np.random.default_rng(1).normal(100, 15, 5_000), 2)
    values[::7] = np.nan
    whole = NumberAccumulator()
    whole.add(values)
    for pieces in (2, 17):
        parts = []
        for piece in np.array_split(values, pieces):
            part = NumberAccumulator()
            part.add(piece)
            parts.append(part)
        merged = NumberAccumulator()
        for part in reversed(parts):
            merged.merge(part)
        assert merged.result(24) == whole.result(24)

    texts = pa.array(["b", "a", None, "a", "", "c", "b", "a"])
    one, left, right = TextAccumulator(), TextAccumulator(), TextAccumulator()
    one.add(texts)
    left.add(texts[:3])
    right.add(texts[3:])
    right.merge(left)
    assert right.result(1, 10) == one.result(1, 10)
    assert one.result(1, 10).vocabulary == (("a", 3), ("b", 2), ("c", 1))
    assert one.result(1, 2).vocabulary == (("a", 3), ("b", 2))
    assert one.result(2, 10).missing == 0.25


def test_beyond_what_memory_holds_quantiles_keep_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "EXACT_VALUES", 4_096)
    monkeypatch.setattr(statistics, "RUN_VALUES", 1_024)
    values = np.random.default_rng(2).lognormal(size=300_000)
    accumulator = NumberAccumulator()
    for piece in np.array_split(values, 61):
        accumulator.add(piece)
    held = sum(map(len, accumulator.values)) + sum(len(run) for runs in accumulator.runs.values() for run in runs)
    assert held < 20_000
    weights = sum(len(run) << level for level, runs in accumulator.runs.items() for run in runs)
    assert weights + sum(map(len, accumulator.values)) == len(values)
    ranks = np.searchsorted(np.sort(values), accumulator.result(20).quantiles) / len(values)
    levels = np.arange(21) / 20
    bound = (max(accumulator.runs) / 2 + 1) / 1_024
    assert np.abs(ranks - levels).max() < bound


def test_a_beam_pass_says_what_one_process_says(tmp_path: Path) -> None:
    """Shards are counted by the runner and join; what they say holds for any buckets, and for these shards only."""
    from training.statistics_job import count_by_beam

    rows = open_rows(training_rows.write(tmp_path, shards=3))
    expected = [compute_statistics(rows, buckets=buckets, min_rows=buckets) for buckets in (4, 10)]
    count_by_beam(rows)
    assert sorted(path.name for path in rows.folder.iterdir()) == ["_statistics.npz", "test", "train", "validate"]
    assert [compute_statistics(rows, buckets=buckets, min_rows=buckets) for buckets in (4, 10)] == expected
    written = (rows.folder / "_statistics.npz").stat().st_mtime_ns
    count_by_beam(rows)
    assert (rows.folder / "_statistics.npz").stat().st_mtime_ns == written
    other = open_rows(training_rows.write(tmp_path, {"train": training_rows.table(900, 9)}, shards=3))
    assert compute_statistics(other).rows == 900
    (rows.folder / "_statistics.npz").write_bytes(b"PK")
    with pytest.raises(ConfigurationError, match=r"is damaged .*: remove it, and the rows are counted anew"):
        compute_statistics(rows)


def test_what_is_counted_comes_back_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.counted import read_counted, write_counted

    rows = open_rows(training_rows.write(tmp_path / "rows"))
    monkeypatch.setattr(statistics, "EXACT_VALUES", 1_024)
    monkeypatch.setattr(statistics, "RUN_VALUES", 256)
    counted = statistics.SplitAccumulator.of(rows)
    for block in rows.blocks("train"):
        counted.add(block)
    write_counted(tmp_path / "counted.npz", counted, [])
    again = read_counted(tmp_path / "counted.npz")
    assert max(again.numbers["delay"].runs) > 2
    assert again.result(24, 1, 9) == counted.result(24, 1, 9)
    again.merge(counted)
    twice, once = (one.result(24, 1, 9).numbers["delay"] for one in (again, counted))
    assert twice.quantiles == pytest.approx(once.quantiles, abs=1)
    assert (twice.quantiles[0], twice.quantiles[-1]) == (once.quantiles[0], once.quantiles[-1])
