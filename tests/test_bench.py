"""`sameriver bench kernel`: what it measures is the case that it says, and the others compute the same."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import kernel
from benchmarks.positions import DAY_BEGIN_US, DAY_US, Positions, blocks, case, read, write
from shared_features.errors import ConfigurationError
from tests.processes import PATIENCE_S, REPOSITORY

PROMISED = [
    "rows_per_s",
    "ratio_polars",
    "ratio_duckdb",
    "peak_rss_mb",
    "us_per_event_live",
    "rows_per_s_blocks_of_1000",
    "growth_ratio",
    "hot_key_ratio",
    "late_ratio",
]


def test_a_short_run_measures_everything_and_the_results_agree() -> None:
    command = [sys.executable, "-m", "cli", "bench", "kernel", "--rows", "20000", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in PROMISED if not (math.isfinite(result[name]) and result[name] > 0)] == []
    assert result["results_agree"]
    assert result["rows"] == result["rows_compared"] == 20_000
    assert set(result["largest_difference"]) == {"polars", "duckdb"}
    assert max(result["largest_difference"].values()) <= kernel.TOLERANCE
    assert set(result["targets"]) == set(kernel.TARGETS) <= set(result)
    measured = {(one["aggregate"], one["over"]) for one in result["aggregates"]}
    assert {("mean", "6h"), ("mean", "10 events"), ("slope", "6h"), ("most_frequent", "10 events")} <= measured
    assert result["machine"]["cpu"]
    kernel.report(result)


@pytest.mark.parametrize(
    ("missing", "rows", "sentence"),
    [("duckdb", 20_000, "duckdb cannot be imported: pip install polars duckdb"), ("", 9_999, "wanted 10,000 or more")],
)
def test_what_cannot_be_measured_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, missing: str, rows: int, sentence: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ConfigurationError, match=sentence):
        kernel.run(rows=rows)


def test_results_that_differ_are_noticed() -> None:
    ours = np.array([[1.0, np.nan], [2.0, 3.0]])
    assert kernel.difference(ours, ours.copy()) == 0.0
    assert kernel.difference(ours, np.array([[1.5, np.nan], [2.0, 3.0]])) == 0.5
    assert kernel.difference(ours, np.nan_to_num(ours)) is None
    assert kernel.difference(ours, ours[:1]) is None


def test_a_day_is_in_order_and_no_vessel_reports_twice_in_a_microsecond() -> None:
    table = Positions(220_000, more=22_000).generate()
    time_us, vessel = table["time_us"].to_numpy(), table["vessel"].to_numpy()
    assert table.num_rows == 242_000
    assert (np.diff(time_us) >= 0).all()
    assert abs(time_us[219_999] - DAY_BEGIN_US - DAY_US) < DAY_US / 100
    assert len(np.unique(np.stack([time_us, vessel]), axis=1).T) == 242_000
    counts = np.unique(vessel, return_counts=True)[1] / 1.1  # a day's
    assert len(counts) == 600
    assert round(counts.min()) in range(225, 250)
    assert counts.max() > 20 * counts.min()
    assert table == Positions(220_000, more=22_000).generate()


def test_variants_are_what_they_are_called() -> None:
    hot = Positions(22_000, vessels="hot").generate()["vessel"].to_numpy()
    assert np.unique(hot, return_counts=True)[1].max() == 2_200
    assert np.ptp(np.unique(Positions(22_000, vessels="uniform").generate()["vessel"], return_counts=True)[1]) <= 1
    behind = np.maximum.accumulate(times := Positions(22_000, late_share=0.1).generate()["time_us"].to_numpy()) - times
    assert 0.09 < (behind > 0).mean() < 0.11
    assert 3_300_000_000 < behind.max() < 3_700_000_000


def test_a_part_of_a_file_is_read_as_blocks_of_the_app(tmp_path: Path) -> None:
    table = Positions(120_000).generate()
    write(table, tmp_path / "rows.arrow")
    for skip, rows in ((0, None), (99_999, 2), (100_000, 5), (7, 110_000), (119_000, None)):
        part = pa.Table.from_batches(read(tmp_path / "rows.arrow", skip, rows))
        assert part.equals(table.slice(skip, rows))
    (block, *_) = blocks(read(tmp_path / "rows.arrow", 99_990, 2), first=99_990)
    assert block.column("event_id").to_pylist() == ["99990", "99991"]
    assert set(case().features) == {f"{name}_{w}" for name in ("mean", "std") for w in (1800, 3600, 10800)} | {
        f"{name}_{w}" for name in ("mean", "std") for w in (21600, 43200, 86400)
    }
