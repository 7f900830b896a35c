"""`sameriver bench backfill`: the job and its parts give the same rows, and every figure is there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from benchmarks import backfill
from benchmarks.backfill_tasks import Task, checksum, generate
from shared_features.errors import ConfigurationError
from tests.processes import PATIENCE_S, REPOSITORY

PROMISED = ["rows_per_s", "ratio_kernel_plus_io", "peak_rss_mb", "growth_ratio", "verify_rows_per_min"]


@pytest.mark.soak
def test_a_short_run_measures_everything_and_the_results_agree() -> None:
    command = [sys.executable, "-m", "cli", "bench", "backfill", "--rows", "20000", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in PROMISED if not (math.isfinite(result[name]) and result[name] > 0)] == []
    assert (result["results_agree"], result["rows_added_again"], result["rows"]) == (True, 0, 20_000)
    assert set(result["targets"]) == set(backfill.TARGETS) <= set(result)
    backfill.report(result)


def test_what_cannot_be_measured_is_said_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match="got 9,999 rows, wanted 10,000 or more"):
        backfill.run(rows=9_999)


def test_days_follow_each_other_and_a_checksum_sees_one_bit(tmp_path: Path) -> None:
    generate(Task("generate", str(tmp_path / "days.parquet"), rows=10_000, days=2))
    table = pq.read_table(tmp_path / "days.parquet")
    assert table.num_rows == 20_000
    assert table["publish_time"].equals(table["event_time"])
    assert len(set(table["event_time"].cast("date32").to_pylist())) == 2
    (tmp_path / "rows").mkdir()
    (tmp_path / "other").mkdir()
    from benchmarks.positions import case

    columns = {f"feature.{name}": table["position.speed"] for name in case().features}
    whole = table.select(["event_id"])
    for name, values in columns.items():
        whole = whole.append_column(name, values)
    pq.write_table(whole.slice(0, 9_000), tmp_path / "rows" / "a.parquet")
    pq.write_table(whole.slice(9_000), tmp_path / "rows" / "b.parquet")
    pq.write_table(whole.take(list(range(19_999, -1, -1))), tmp_path / "other" / "a.parquet")
    assert checksum(tmp_path / "rows") == checksum(tmp_path / "other")
    speeds = whole["feature.std_86400"].to_pylist()
    speeds[77] = math.nextafter(speeds[77], math.inf)
    place = whole.schema.get_field_index("feature.std_86400")
    pq.write_table(whole.set_column(place, "feature.std_86400", [speeds]), tmp_path / "other" / "a.parquet")
    assert checksum(tmp_path / "rows") != checksum(tmp_path / "other")
