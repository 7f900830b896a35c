"""A backfill gives what one call of `compute` gives, with the stream's ids; done again it adds nothing."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings

from batch import partitions, partitions_spill, tables
from batch.backfill import BackfillSummary, backfill
from batch.backfill_rows import Asking, archive_schema
from batch.traindata import features_of_history
from shared_features.app import Rule
from shared_features.blocks import nest
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.hashing import prediction_id
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from shared_features.state import StageState
from streaming import results
from tests import histories
from tests.histories import EVENT, START_US, block_of, computed, event, in_order
from tests.processes import PATIENCE_S, REPOSITORY
from tests.shop.app import app

PLAN = make_plan(app)
RULES = Asking("", None, {})
SPREAD = [
    *(event("sale", at, shop="abc"[at % 3], till=at % 2, amount=at / 7, late=at % 5) for at in range(0, 120, 2)),
    *(event("visit", at, shop="abc"[at % 3], length=at % 4) for at in range(1, 120, 6)),
    *(event("sale", at, amount=1.5) for at in range(5, 120, 40)),  # neither shop nor till
]


def rows_of(out: Path) -> pa.Table:
    """All rows, by (event_time, event_id)."""
    found = [pq.ParquetFile(path).read() for path in sorted(out.glob("publish_date=*/*.parquet"))]
    return in_order(pa.concat_tables(found)) if found else archive_schema(PLAN, predicted=False).empty_table()


def features_of(out: Path) -> pa.Table:
    rows = rows_of(out).select(["event_id", "event_time", *(f"feature.{name}" for name in app.features)])
    rows = rows.rename_columns(["event_id", "event_time", *app.features])
    return rows.cast(pa.schema([(name, _type(name, rows)) for name in rows.column_names]))


def _type(name: str, rows: pa.Table) -> pa.DataType:
    return app.features[name].arrow_type if name in app.features else rows.schema.field(name).type


@pytest.fixture
def days_of_20_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "DAY_US", 20_000_000)
    monkeypatch.setattr(partitions_spill, "TOGETHER_BYTES", 1)


@settings(max_examples=3)
@given(
    events=st.lists(EVENT, min_size=1, max_size=40),
    published=st.booleans(),
    shards=st.sampled_from([1, 3]),
    day_s=st.sampled_from([20, 86_400]),
    files=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_compute_whatever_the_shards_days_splits_and_order(
    events: list[dict[str, Any]], published: bool, shards: int, day_s: int, files: int, seed: int
) -> None:
    block = block_of(events, published=published)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "SPLIT_ROWS", 5)
        patch.setattr(tables, "BLOCK_ROWS", 3)
        patch.setattr(partitions, "DAY_US", day_s * 1_000_000)
        patch.setattr(partitions_spill, "TOGETHER_BYTES", 1)
        folder = histories.write(Path(name, "history"), block, files=files, seed=seed)
        summary = backfill(app, folder, Path(name, "out"), shards=shards)
        assert features_of(Path(name, "out")).equals(computed(app, block))
        assert summary.rows_added == sum(one["event_type"] == "sale" for one in events)


@settings(max_examples=2)
@given(
    events=st.lists(EVENT, min_size=2, max_size=30),
    again=st.lists(
        st.tuples(st.integers(0, 29), st.sampled_from([0, 0, 7, 50]), st.sampled_from(["a", "d"])), max_size=9
    ),
    shards=st.sampled_from([1, 3]),
)
def test_of_an_identity_that_comes_twice_the_first_one_counts(
    events: list[dict[str, Any]], again: list[tuple[int, int, str]], shards: int
) -> None:
    """Also under another key, on another day: as training rows are made."""
    named = [{**one, "event_id": f"e{number}"} for number, one in enumerate(events)]
    twice = [{**named[i % len(named)], "late": late, "shop": shop} for i, late, shop in again]
    block = block_of(named + twice)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "SPLIT_ROWS", 5)
        patch.setattr(partitions, "DAY_US", 10_000_000)
        patch.setattr(partitions_spill, "TOGETHER_BYTES", 1)
        folder = histories.write(Path(name, "history"), block, files=2)
        summary = backfill(app, folder, Path(name, "out"), shards=shards)
        wanted = features_of_history(app, folder).drop_columns("publish_time").replace_schema_metadata(None)
        assert features_of(Path(name, "out")).equals(wanted)
        assert summary.events_left_out.get("duplicate", 0) == len(twice)


@pytest.mark.usefixtures("days_of_20_s")
def test_rows_are_those_of_the_stream(tmp_path: Path) -> None:
    """Columns in the archive's order, predictions of the rule, reactions, ids, places in stages without gaps."""
    folder = histories.write(tmp_path / "history", block_of(SPREAD), files=2)
    summary = backfill(app, folder, tmp_path / "out", asking=RULES, shards=3, span=2)
    rows = rows_of(tmp_path / "out")
    live = live_block(block_of(SPREAD))
    assert [name for name in rows.column_names if name != "prediction_id"] == live.schema.names
    assert summary.rows == {"predicted": rows.num_rows - rows["outcome"].to_pylist().count("prediction_failed")} | (
        {"prediction_failed": failed} if (failed := rows["outcome"].to_pylist().count("prediction_failed")) else {}
    )
    for row in rows.select(["event_type", "event_id", "prediction_id"]).to_pylist():
        wanted = prediction_id(app.name, row["event_type"], row["event_id"], "big_sale", 0, app.fingerprint)
        assert row["prediction_id"] == wanted
    same = ["outcome", "prediction.big_sale.probability", "reaction.praise", "version.big_sale", "stage.shop.late"]
    theirs = pa.Table.from_batches([live]).filter(pc.equal(live.column("event_type"), "sale"))
    theirs = theirs.take(pc.sort_indices(theirs, sort_keys=[("event_time", "ascending"), ("event_id", "ascending")]))
    for name in same:
        assert rows[name].to_pylist() == theirs[name].to_pylist(), name
    places = [(row["stage.shop.shard"], row["stage.shop.position"]) for row in rows.to_pylist()]
    placed = [place for place in places if place[0] is not None]
    assert len(set(placed)) == len(placed) == rows.num_rows - 3
    dates = {path.parent.name for path in (tmp_path / "out").glob("publish_date=*/*.parquet")}
    assert dates == {f"publish_date={dt.datetime.fromtimestamp(START_US / 1e6, dt.UTC).date()}"}


def live_block(block: pa.RecordBatch) -> pa.RecordBatch:
    """As the streaming job archives it, in the order of publish times."""
    by = [(name, "ascending") for name in ("publish_time", "event_type", "event_id")]
    block = block.take(pc.sort_indices(pa.Table.from_batches([block]), sort_keys=by))
    for stage in PLAN.stages:
        block = step(StageState(stage), block)
    block = finish(PLAN, block)
    answers = {model.name: results.apply_rule(app, model, block) for model in app.models if isinstance(model, Rule)}
    return results.with_results(app, block, answers, reaction_stages(app))


@pytest.mark.usefixtures("days_of_20_s")
def test_a_range_is_what_the_whole_gives_there_and_what_is_there_stays(tmp_path: Path) -> None:
    folder = histories.write(tmp_path / "history", block_of(SPREAD), files=3)
    backfill(app, folder, tmp_path / "whole", asking=RULES)
    whole = rows_of(tmp_path / "whole")
    first = run(folder, tmp_path / "out", 30, 70)
    assert rows_of(tmp_path / "out").equals(between(whole, 30, 70))
    assert (first.rows_added, first.rows_there) == (between(whole, 30, 70).num_rows, 0)
    again = run(folder, tmp_path / "out", 30, 70)
    assert (again.reused, again.rows_added, again.rows_there) == (True, 0, first.rows_added)
    gone = sorted((tmp_path / "out").glob("publish_date=*/*.parquet"))[-1]
    gone.unlink()
    whole_again = run(folder, tmp_path / "out", 30, 70)
    assert (whole_again.reused, whole_again.rows_added) == (False, first.rows_added)
    assert rows_of(tmp_path / "out").equals(between(whole, 30, 70))
    spoil(tmp_path / "out")
    wider = run(folder, tmp_path / "out", 10, 90)
    assert (wider.rows_there, wider.rows_differing) == (first.rows_added, 1)
    assert wider.rows_added == between(whole, 10, 90).num_rows - first.rows_added
    assert rows_of(tmp_path / "out").num_rows == between(whole, 10, 90).num_rows
    assert -1.0 in rows_of(tmp_path / "out")["feature.sum_10s"].to_pylist()
    assert not list((tmp_path / "out").glob("_work*"))


def run(folder: Path, out: Path, since_s: float, until_s: float, **options: Any) -> BackfillSummary:
    since, until = (dt.datetime.fromtimestamp(START_US / 1e6 + at, dt.UTC) for at in (since_s, until_s))
    return backfill(app, folder, out, since=since, until=until, asking=RULES, **options)


def between(rows: pa.Table, since_s: float, until_s: float) -> pa.Table:
    times = rows["publish_time"].cast(pa.int64()).to_numpy()
    return rows.filter(pa.array((times >= START_US + since_s * 1e6) & (times < START_US + until_s * 1e6)))


def spoil(out: Path) -> None:
    """Another value in one row that is there."""
    path = sorted(out.glob("publish_date=*/*.parquet"))[0]
    table = pq.ParquetFile(path).read()
    values = [-1.0, *table["feature.sum_10s"].to_pylist()[1:]]
    place = table.schema.get_field_index("feature.sum_10s")
    pq.write_table(table.set_column(place, "feature.sum_10s", pa.array(values, pa.float64())), path)


def test_an_event_too_late_for_what_is_read_wants_the_whole_history(tmp_path: Path) -> None:
    """The app's lateness is 15 s."""
    late = event("sale", 30, shop="a", amount=3.0, late=300, event_id="late")
    more = [event("sale", at, shop="a", amount=at / 9) for at in range(0, 400, 3)]
    folder = histories.write(tmp_path / "history", block_of([*more, late]))
    with pytest.raises(HistoryError, match=r"^1 events of the range came later than .*--whole-history"):
        run(folder, tmp_path / "out", 320, 400)
    run(folder, tmp_path / "out", 320, 400, whole_history=True)
    assert "late" in rows_of(tmp_path / "out")["event_id"].to_pylist()


@settings(max_examples=3)
@given(events=st.lists(EVENT, min_size=2, max_size=30), cut=st.integers(0, 30), data=st.data())
def test_an_archive_is_folded_in_its_own_order_and_keeps_its_positions(
    events: list[dict[str, Any]], cut: int, data: st.DataObject
) -> None:
    block = block_of(data.draw(st.permutations(events)))  # the order of arrival
    served = []
    states = [StageState(stage) for stage in PLAN.stages]
    for piece in (block.slice(0, cut), block.slice(cut)):
        for state in states:
            piece = step(state, piece)
        served.append(finish(PLAN, piece))
        states = [StageState.load(stage, b"".join([s.save()])) for stage, s in zip(PLAN.stages, states, strict=True)]
    table = pa.Table.from_batches(served)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "POSITIONS", 7)
        patch.setattr(partitions_spill, "TOGETHER_BYTES", 1)
        Path(name, "history").mkdir()
        pq.write_table(nest(table.drop_columns(["message_id"])), Path(name, "history", "part.parquet"))
        backfill(app, Path(name, "history"), Path(name, "out"), shards=3)
        rows = rows_of(Path(name, "out"))
        wanted = in_order(table.filter(pc.equal(table["event_type"], "sale")))
        for column in [f"feature.{one}" for one in app.features] + ["stage.shop.position", "stage.till.position"]:
            assert rows[column].to_pylist() == wanted[column].to_pylist(), column


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from batch import partitions, partitions_spill, partitions_steps
from batch.backfill import backfill
from batch.backfill_rows import Asking
from tests.shop.app import app

calls, step, last = 0, partitions_steps.step, int(sys.argv[3])
def counting(state, block):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(state, block)
partitions.DAY_US = 20_000_000
partitions_spill.TOGETHER_BYTES = 1
partitions_steps.step = counting
backfill(app, sys.argv[1], sys.argv[2], asking=Asking("", None, {}), shards=2)
"""


@pytest.mark.usefixtures("days_of_20_s")
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 as the ninth bucket is folded; buckets that are done are neither folded nor written again.

    A shard's newest bucket may be: shards are folded side by side, and its rows are there before its state is.
    """
    folder = histories.write(tmp_path / "history", block_of(SPREAD), files=2)
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "out"), "9"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == -9, done.stderr
    (work,) = (tmp_path / "out").glob("_work-*")
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("*.arrow") if not path.name.startswith(".")}
    folded = [path for path in kept if path.parent.name.startswith("step-")]
    assert 6 <= len(folded) <= 8
    newest = {(path.parent, path.name.split("_")[0]): path for path in sorted(folded)}
    for path in newest.values():
        del kept[path]
    assert len(kept) >= 4
    seen: dict[Path, int] = {}
    remove = shutil.rmtree

    def looking(path: Path, **options: Any) -> None:
        seen.update(_times(path, kept))
        remove(path, **options)

    monkeypatch.setattr("batch.backfill.shutil.rmtree", looking)
    summary = backfill(app, folder, tmp_path / "out", asking=RULES, shards=2)
    assert {path: seen[path] for path in kept} == kept
    backfill(app, folder, tmp_path / "whole", asking=RULES, shards=2)
    assert rows_of(tmp_path / "out").equals(rows_of(tmp_path / "whole"))
    assert summary.rows_added == rows_of(tmp_path / "out").num_rows


def _times(folder: Path, paths: dict[Path, int]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths if path.is_relative_to(folder) and path.exists()}


def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path: Path) -> None:
    day = dt.datetime(2024, 1, 2, tzinfo=dt.UTC)
    with pytest.raises(ConfigurationError, match="holds nothing: wanted --from before --to"):
        backfill(app, tmp_path, tmp_path / "out", since=day, until=day)
    folder = histories.write(tmp_path / "history", block_of(SPREAD))
    with pytest.raises(ConfigurationError, match="the number of shards is 0, wanted 1 or more"):
        backfill(app, folder, tmp_path / "a", shards=0)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "archive.json").write_text(json.dumps({}))
    with pytest.raises(ConfigurationError, match="is the archive of a job, which alone writes there"):
        backfill(app, folder, tmp_path / "archive")
    with pytest.raises(ConfigurationError, match="wants a folder for what waits between two steps"):
        backfill(app, folder, "bq://project.dataset.table")
    mixed = [block_of(SPREAD[:5]), block_of(SPREAD[5:9], published=False)]
    histories.write(tmp_path / "mixed", pa.concat_batches(mixed))
    with pytest.raises(HistoryError, match="without a publish_time"):
        backfill(app, tmp_path / "mixed", tmp_path / "b")
    assert np.all([not path.name.endswith(".parquet") for path in (tmp_path / "b").glob("publish_date=*/*")])
