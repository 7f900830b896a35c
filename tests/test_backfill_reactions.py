"""Reactions that remember, made in batch: the stream's, bit for bit, and a live job that goes on with their memory."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batch import partitions, partitions_spill, reaction_steps, tables
from batch.backfill import BackfillSummary, backfill
from batch.backfill_rows import Asking
from batch.export import Export
from batch.snapshot import snapshot
from batch.verify import verify
from batch.verify_backfill import BackfillReport, verify_backfill
from batch.writers import Written
from shared_features import App, Key, Reaction, Rule, mean, prediction
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.kernel import step
from shared_features.plan import make_plan
from streaming.archive import Archive, read_commits
from streaming.snapshots import begin_from
from tests import histories
from tests.histories import START_US, block_of, event
from tests.serving_steps import Served, serve, to_messages
from tests.shop.app import by_shop, sale, visit
from tests.test_backfill import between, rows_of

RULES = Asking("", None, {})
BY_TILL = Key("till", sale.till)
HIGH, LOW = prediction() > 0.6, prediction() < 0.3
USUAL = mean(sale.amount, by=by_shop, over="10s")
KINDS = ("plain", "busy", "units", "seldom")

app = App(
    name="reacting",
    event_types=[sale, visit],
    predict_on=sale,
    features={"amount": sale.amount, "units": sale.units, "usual": USUAL},
    models=[Rule("score", sale.amount * 1.0)],
    reactions=[
        Reaction("plain", when=prediction() > 0.9, payload={"usual": USUAL}),
        Reaction("busy", when=HIGH, until=LOW, announce="both", by=by_shop),
        Reaction("units", when=prediction() > 0.0, changes=sale.units, at_most=2, every="9s", by=BY_TILL),
        Reaction("seldom", when=USUAL > 0.4, at_most=1, every="20s", by=by_shop, payload={"usual": USUAL}),
    ],
    lateness="15s",
)


def events(seed: int = 5, count: int = 240) -> pa.RecordBatch:
    """In the order in which they were published: some late, some without a key, some that are not predicted on."""
    rng, rows = np.random.default_rng(seed), list[dict[str, Any]]()
    for i in range(count):
        late = int(rng.choice([0, 0, 0, 1, 12]))
        if i % 6 == 5:
            rows.append(event("visit", i / 2, late=late, shop="abc"[i % 3], length=2.0))
            continue
        amount = None if rng.random() < 0.05 else round(float(rng.random()), 2)
        shop, till = rng.choice(["a", "b", "c", ""]), int(rng.integers(0, 3))
        one = event("sale", i / 2, late=late, shop=str(shop) or None, till=till or None, amount=amount)
        rows.append({**one, "units": int(rng.integers(0, 3)) or None})
    block = block_of(rows)
    by = [(name, "ascending") for name in ("publish_time", "event_type", "event_id")]
    return block.take(pc.sort_indices(pa.Table.from_batches([block]), sort_keys=by))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SPLIT_ROWS", 60)
    monkeypatch.setattr(partitions, "DAY_US", 20_000_000)
    monkeypatch.setattr(reaction_steps, "COMMITS", 7)


def live(block: pa.RecordBatch, archive: Path) -> Served:
    return serve(app, to_messages(app, block, block.column("publish_time").cast(pa.int64()).to_pylist()), archive)


def archived(archive: Path) -> pa.Table:
    """The rows predicted on, as `rows_of` has those of a backfill."""
    table = pa.Table.from_batches([commit.block for commit in read_commits(archive)])
    return histories.in_order(table.filter(pc.equal(table["event_type"], "sale")))


def assert_same(ours: pa.Table, theirs: pa.Table) -> None:
    """To the bit, but for where rows were folded."""
    names = [name for name in theirs.column_names if not name.endswith((".epoch", ".shard", ".position", "message_id"))]
    assert {f"started.{name}" for name in ("busy",)} | {f"reaction.{name}" for name in KINDS} <= set(names)
    for name in names:
        assert ours[name].combine_chunks().equals(theirs[name].combine_chunks()), name


def exported(archive: Path, what: str, to: Path) -> Written:
    running = Export(app, archive, what, str(to))
    try:
        return running.catch_up().written
    finally:
        running.close()


def test_a_backfill_has_the_reactions_of_the_stream(tmp_path: Path) -> None:
    """Of any shards and days, to the same tables with the same ids; of a range, what the whole gives there."""
    block = events()
    sent = live(block, tmp_path / "archive").sent
    folder = histories.write(tmp_path / "history", block, files=2)
    to = tmp_path / "reactions"
    done = backfill(app, folder, tmp_path / "out", asking=RULES, shards=3, reactions=str(to))
    assert_same(rows_of(tmp_path / "out"), archived(tmp_path / "archive"))
    fired = {name: len(sent[f"reacting-reaction-{name}"]) for name in KINDS}
    assert done.reactions == fired
    assert min(fired.values()) > 5
    assert done.reactions_added == sum(fired.values())
    assert exported(tmp_path / "archive", "reactions", to) == Written(existing=sum(fired.values()))
    part = run(folder, tmp_path / "part", 40, 70, shards=2, reactions=str(to))
    assert_same(rows_of(tmp_path / "part"), between(rows_of(tmp_path / "out"), 40, 70))
    assert part.reactions_there == sum(part.reactions.values()) > 0
    again = run(folder, tmp_path / "part", 40, 70, shards=2, reactions=str(to))
    assert (again.reused, again.reactions_added, again.reactions_there) == (True, 0, part.reactions_there)


def test_a_run_that_was_cut_off_goes_on_with_what_was_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are cut off in the midst of their buckets; what reactions remember there lies beside the state."""
    monkeypatch.setattr(partitions_spill, "TOGETHER_BYTES", 1)
    folder = histories.write(tmp_path / "history", events(count=120))
    steps = list[int]()

    def failing(state: Any, block: pa.RecordBatch) -> pa.RecordBatch:
        steps.append(block.num_rows)
        if len(steps) == 5:
            raise HistoryError("cut off")
        return step(state, block)

    monkeypatch.setattr("batch.partitions_steps.step", failing)
    with pytest.raises(HistoryError, match="cut off"):
        backfill(app, folder, tmp_path / "out", asking=RULES, shards=2)
    (work,) = (tmp_path / "out").glob("_work-*")
    assert len(list(work.glob("step-0/*.arrow"))) >= 3
    assert list(work.glob("state/0_*.state"))
    folded = len(steps)
    done = backfill(app, folder, tmp_path / "out", asking=RULES, shards=2)
    assert len(steps) - folded <= 6  # of 8, each shard's newest may be folded again
    report = verify_backfill(app, tmp_path / "out")
    assert report == BackfillReport(sum(done.rows.values()), sum(done.rows.values()) * (len(KINDS) + 1))


def test_what_was_backfilled_is_verified(tmp_path: Path) -> None:
    folder = histories.write(tmp_path / "history", events(), files=2)
    done = backfill(app, folder, tmp_path / "out", asking=RULES, shards=2)
    report = verify_backfill(app, tmp_path / "out")
    values = len(KINDS) + 1  # `started`, too
    rows = sum(done.rows.values())
    assert report == BackfillReport(rows, rows * values)
    path = sorted((tmp_path / "out").glob("publish_date=*/*.parquet"))[0]
    table = pq.ParquetFile(path).read()
    place = table.schema.get_field_index("reaction.busy")
    pq.write_table(table.set_column(place, "reaction.busy", pc.invert(table["reaction.busy"])), path)
    spoiled = verify_backfill(app, tmp_path / "out")
    assert spoiled.reaction_mismatches == table.num_rows
    assert "reaction.busy of event" in str(spoiled.first_mismatch)
    part = run(folder, tmp_path / "part", 40, 70, shards=2)
    report = verify_backfill(app, tmp_path / "part")
    assert (report.mismatches, report.rows) == (0, sum(part.rows.values()))
    assert min(report.reactions, report.reactions_unchecked) > report.rows
    with pytest.raises(ConfigurationError, match="has no predictions of app 'reacting'"):
        verify_backfill(app, tmp_path / "history")


def run(folder: Path, out: Path, since_s: float, until_s: float, **options: Any) -> BackfillSummary:
    since, until = (dt.datetime.fromtimestamp(START_US / 1e6 + at, dt.UTC) for at in (since_s, until_s))
    return backfill(app, folder, out, since=since, until=until, asking=RULES, **options)


def test_of_an_archive_reactions_go_in_the_order_in_which_the_job_saw_the_rows(tmp_path: Path) -> None:
    """Which is not that of publish times: messages overtake each other."""
    block = events()
    order = np.argsort(np.arange(block.num_rows) + np.random.default_rng(1).uniform(0, 25, block.num_rows))
    live(block.take(pa.array(order)), tmp_path / "archive")
    exported(tmp_path / "archive", "archive", tmp_path / "history")
    backfill(app, tmp_path / "history", tmp_path / "out", asking=RULES, shards=3)
    theirs = archived(tmp_path / "archive")
    assert_same(rows_of(tmp_path / "out"), theirs)
    in_time = histories.write(tmp_path / "in_time", block)
    backfill(app, in_time, tmp_path / "other", asking=RULES)
    assert not rows_of(tmp_path / "other")["reaction.busy"].equals(theirs["reaction.busy"])


@pytest.mark.parametrize("source", ["history", "archive"])
def test_a_job_that_begins_with_a_snapshot_goes_on_with_what_was_remembered(source: str, tmp_path: Path) -> None:
    block = events()
    times = block.column("publish_time").cast(pa.int64()).to_numpy()
    cut_us = int(times[150])
    before, after = block.filter(pa.array(times < cut_us)), block.filter(pa.array(times >= cut_us))
    whole = live(block, tmp_path / "whole").sent
    folder = histories.write(tmp_path / "history", block, files=2)
    if source == "archive":
        folder = tmp_path / "archived"
        exported(tmp_path / "whole", "archive", folder)
    cut = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=cut_us)
    made = snapshot(app, folder, tmp_path / "app.state", cut=cut, asking=RULES, shards=3)
    assert min(made.remembered.values()) > 0
    begin(tmp_path / "archive", Path(made.file))
    # What comes twice is dropped by its identity; a restart in between comes back from snapshot and archive.
    first = live(pa.concat_batches([before.slice(before.num_rows - 20), after.slice(0, 30)]), tmp_path / "archive").sent
    second = live(after.slice(30), tmp_path / "archive").sent
    late = live(before, tmp_path / "early").sent
    for name in KINDS:
        topic = f"reacting-reaction-{name}"
        parts = [one.data for sent in (late, first, second) for one in sent.get(topic, [])]
        assert sorted(parts) == sorted(one.data for one in whole[topic]), name
    report = verify(app, tmp_path / "archive")
    assert (report.predictions > 50, report.mismatches) == (True, 0), report.first_mismatch


def begin(archive: Path, file: Path) -> None:
    opened = Archive(archive, {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
    begin_from(archive, file, make_plan(app), 7 * 86_400_000_000, lambda _: None)
    opened.close()


def test_without_models_reactions_begin_anew(tmp_path: Path) -> None:
    folder = histories.write(tmp_path / "history", events(count=60))
    newest = dt.datetime.fromtimestamp(START_US / 1e6 + 20, dt.UTC)
    made = snapshot(app, folder, tmp_path / "app.state", cut=newest)
    assert set(made.remembered.values()) == {0}
