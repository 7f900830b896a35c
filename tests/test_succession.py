"""The next version of an app takes over what has not changed: its state goes on as if it had folded everything."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import shared_features as sf
from batch.snapshot import SnapshotSummary
from batch.snapshot_merge import covers, succeeded
from batch.succession import snapshot_after
from batch.verify import verify
from shared_features import App, Key, Reaction, count, last, mean, prediction, std
from shared_features.blocks import concat_blocks
from shared_features.errors import ConfigurationError, FingerprintError, HistoryError
from shared_features.expressions import Expression
from shared_features.kernel import finish, step
from shared_features.plan import make_plan
from shared_features.state import StageState
from streaming.archive import compact_archive, read_commits
from streaming.deduplication import Deduplicator
from streaming.messages import plain
from streaming.recovery import recover
from streaming.saved_state import FOLDER, keep_state, write_state
from streaming.snapshots import NAME, read_snapshot
from tests.serving_steps import serve, to_messages
from tests.shop.app import app as shop
from tests.shop.app import by_shop, by_till, sale, visit
from tests.test_verify import START_US, sales

BUSY = Reaction("busy", when=prediction() > 0.5, until=prediction() < 0.5, announce="both", by=by_shop)


def version(features: dict[str, Expression], *reactions: Reaction, **options: Any) -> App:
    kept = {name: shop.features[name] for name in ("amount", "sum_10s", "std_20s", "kinds_20s", "units_max_till")}
    parts: dict[str, Any] = {"lateness": "15s", "name": "shop", **options}
    return App(
        event_types=[sale, visit],
        predict_on=sale,
        features=kept | features,
        models=shop.models,
        reactions=[*shop.reactions, *reactions],
        **parts,
    )


OLD = version({"max_10s": sf.max(sale.amount, by=by_shop, over="10s")}, BUSY)
KEPT: dict[str, dict[str, Expression]] = {
    "another window of a track": {"mean_5s": mean(sale.amount, by=by_shop, over="5s", scale=1e-6)},
    "another aggregate of a track": {"std_5s": std(sale.amount, by=by_shop, over="5s")},
    "a track alone that lay with others": {"max_3s": sf.max(sale.units, by=by_till, over="3s")},
    "a feature of the event": {"dear": sale.amount > 3.0},
}
CHANGED: dict[str, dict[str, Expression]] = {
    "a longer window": {"sum_30s": sf.sum(sale.amount, by=by_shop, over="30s")},
    "another track": {"visits": count(visit.length, by=by_shop, over="9s")},
    "a window of events": {"last_3": last(sale.amount, by=by_shop, over="3 events")},
}


@pytest.mark.parametrize("name", [*KEPT, *CHANGED])
def test_a_stage_that_covers_another_goes_on_as_it(name: str) -> None:
    plan, new = make_plan(OLD), make_plan(version({**KEPT, **CHANGED}[name]))
    pairs = list(zip(plan.stages, new.stages, strict=True))
    assert all(covers(held, wanted) for held, wanted in pairs) == (name in KEPT)
    if name in CHANGED:
        return
    block = sales(160)
    again, whole = block.slice(100), block
    for held, wanted in pairs:
        state, before = StageState(held), block.slice(0, 100)
        step(state, before)
        again, whole = step(succeeded(wanted, state, 1), again), step(StageState(wanted), whole)
    found, expected = finish(new, again), finish(new, whole).slice(100)
    for column in new.feature_columns:
        assert found.column(column).equals(expected.column(column)), column


def test_only_what_is_new_is_folded_from_the_beginning(tmp_path: Path) -> None:
    """With saved state of the running job: of its archive one stage is folded again, of the others what came since."""
    messages, archive = to_messages(OLD, sales(160)), tmp_path / "archive"
    whole = serve(OLD, messages, tmp_path / "whole").sent
    serve(OLD, messages[:80], archive)
    save(OLD, archive)
    serve(OLD, messages[70:100], archive)
    compact_archive(archive)
    new = version(KEPT["another window of a track"], BUSY)
    kept = run(new, archive, tmp_path / "kept.state")
    assert (sorted(kept.stages_kept), kept.events) == (["shop", "till"], 20)
    by_units = Key("units", sale.units)
    newer = version({"of_units": count(sale.amount, by=by_units, over="9s")}, BUSY)
    fresh = run(newer, archive, tmp_path / "fresh.state")
    assert (sorted(fresh.stages_kept), fresh.events) == (["shop", "till"], 100)
    for app, made in ((new, kept), (newer, fresh)):
        begun = tmp_path / made.fingerprint
        begun.mkdir()
        (begun / NAME).write_bytes(Path(made.file).read_bytes())
        sent = serve(app, messages[60:], begun).sent  # 40 of them are in the snapshot
        assert_as_from_the_beginning(app, sales(160), begun)
        assert verify(app, begun).ok
        topic = "shop-reaction-busy"
        again = [plain(one.data) for one in sent[topic]]
        wanted = [plain(one.data) for one in whole[topic]][-len(again) :]
        for name in ("event_id", "payload"):  # ids have the fingerprint in them
            assert [one[name] for one in again] == [one[name] for one in wanted]
        assert read_snapshot(begun / NAME).epoch == 1


def run(app: App, archive: Path, out: Path, at: int = 99) -> SnapshotSummary:
    cut = dt.datetime.fromtimestamp(START_US / 1e6 + at, dt.UTC)
    return snapshot_after(app, OLD, archive, out, cut=cut)


def save(app: App, archive: Path) -> None:
    """As the job does that goes on."""
    plan, deduplicator = make_plan(app), Deduplicator(7 * 86_400_000_000)
    found = recover(plan, archive, deduplicator, lambda *_: None, with_features=False)
    file = write_state(archive / FOLDER, plan, found.states, found.stages, deduplicator, *found.last)
    keep_state(file, found.last[0])


def assert_as_from_the_beginning(app: App, block: pa.RecordBatch, archive: Path) -> None:
    plan = make_plan(app)
    for stage in plan.stages:
        block = step(StageState(stage), block)
    expected = finish(plan, block).slice(100)
    found = concat_blocks([commit.block for commit in read_commits(archive) if commit.block.num_rows])
    for column in ("event_id", *plan.feature_columns):
        assert found.column(column).equals(expected.column(column)), column


def test_what_would_not_be_true_is_refused(tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", tmp_path / "next.state"
    serve(OLD, to_messages(OLD, sales(40)), archive)
    newer = version(CHANGED["a longer window"])
    with pytest.raises(HistoryError, match=r"complete to 2023-11-14T22:13:59\+00:00 only, the cut is .*--complete-to"):
        run(newer, archive, out, at=40)
    with pytest.raises(ConfigurationError, match="app 'store' is no next version of app 'shop'"):
        run(version({}, name="store"), archive, out)
    with pytest.raises(FingerprintError, match="give the version that wrote it with --previous"):
        snapshot_after(newer, newer, archive, out, cut=dt.datetime.now(dt.UTC))
    made = run(newer, archive, out, at=30)
    assert (made.stages_kept, made.remembered) == (["till"], {})
    (archive / NAME).write_bytes(Path(run(OLD, archive, out, at=30).file).read_bytes())
    with pytest.raises(HistoryError, match="begins with a snapshot, so that it lacks what came before"):
        run(newer, archive, out, at=30)
    other_lateness = version({}, lateness="20s")
    with pytest.raises(HistoryError, match="begins with a snapshot"):
        run(other_lateness, archive, out, at=30)
