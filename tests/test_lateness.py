"""Delays of an archive, given to a history that has none: rows are those of events that came so late."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batch.lateness import STEPS, Lateness, arriving, cost_of, lateness_of
from batch.splits import Splits
from batch.traindata import features_of_history, make_training_rows
from commands.lateness_report import measure
from shared_features import App, last
from shared_features.errors import HistoryError
from tests import histories
from tests.histories import block_of, computed, event
from tests.serving_steps import serve, to_messages
from tests.shop.app import app, by_shop, sale, visit
from tests.test_hand_over import instant, published
from tests.test_hand_over_docs import SHOP, commands, run

EVENTS = [
    *(event("sale", at, shop="ab"[at % 2], till=at % 3, amount=at / 7) for at in range(120)),
    *(event("visit", at + 0.5, shop="ab"[at % 2], length=at % 5) for at in range(0, 120, 2)),
]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Sales come 0 to 4 s late, visits 30 s."""
    events = [{**one, "late": 30 if one["event_type"] == "visit" else i % 5} for i, one in enumerate(EVENTS)]
    block = block_of(events)
    block = block.take(pa.array(np.argsort(published(block), kind="stable")))
    serve(app, to_messages(app, block, published(block).tolist()), tmp_path / "archive")
    return tmp_path / "archive"


def test_rows_are_those_of_events_that_came_so_late(archive: Path, tmp_path: Path) -> None:
    delays = lateness_of(app, archive)
    assert delays.delays_us["visit"] == (30_000_000,) * STEPS
    assert set(delays.delays_us["sale"]) == {0, 1_000_000, 2_000_000, 3_000_000, 4_000_000}
    assert delays.quantiles_s()["sale"] == [2.0, 4.0, 4.0, 4.0]
    history = histories.write(tmp_path / "history", block_of(EVENTS), files=2)
    wanted = computed(app, arriving(block_of(EVENTS), delays))
    for shards in (1, 3):
        rows = features_of_history(app, history, shards=shards, lateness=delays)
        assert rows.drop_columns("publish_time").replace_schema_metadata(None).equals(wanted)
    late = published(arriving(block_of(EVENTS), delays)) - published(block_of(EVENTS))
    shares = np.unique(late[:120], return_counts=True)[1] / 120
    assert len(shares) == 5
    assert shares.min() > 0.08  # drawn by identity, near the archive's own shares


def test_training_rows_are_made_with_it_once(archive: Path, tmp_path: Path) -> None:
    history = histories.write(tmp_path / "history", block_of(EVENTS))
    delays = lateness_of(app, archive)
    splits = Splits(validate_from=instant(1_700_000_060_000_000), test_from=instant(1_700_000_090_000_000))
    plain = make_training_rows(app, history, tmp_path / "plain", splits=splits)
    first = make_training_rows(app, history, tmp_path / "late", splits=splits, lateness=delays)
    again = make_training_rows(app, history, tmp_path / "late", splits=splits, lateness=delays)
    assert (first.reused, again.reused) == (False, True)
    assert first.rows == plain.rows  # what is known changes, not what comes to pass


def test_the_report_says_what_delays_cost(archive: Path, tmp_path: Path) -> None:
    history = histories.write(tmp_path / "history", block_of(EVENTS))
    splits = Splits(validate_from=instant(1_700_000_060_000_000), test_from=instant(1_700_000_090_000_000))
    report = measure(app, str(history), lateness_of(app, archive), lambda *_: None, splits=splits, shards=2)
    assert [cost["grace_s"] for cost in report["graces"]] == [0, 15]
    for cost in report["graces"]:
        assert cost["rows"] == 60  # one of the two shops has visits, and so labels
        assert 0 < cost["rows_differing"] <= 60
        assert cost["features"]["amount"] == (0.0, 0.0)  # of the event itself
        assert cost["features"]["visit_last_10s"][0] > 0.9  # visits come 30 s late, and reach 10 s
        assert set(cost["auc"].values()) == {None}
    assert "kinds_20s" in report["no_auc"]


def test_the_report_says_what_delays_cost_a_model(tmp_path: Path) -> None:
    """The last visit tells what the next one, the label, will be; one that comes 30 s late is out of the window."""
    features = {"known": last(visit.length, by=by_shop, over="10s").fill(1.0)}
    told = App("shop", predict_on=sale, features=features, event_types=[sale, visit], label=app.label, lateness="15s")
    events = [event("sale", at, shop="a") for at in range(600)]
    events += [event("visit", at + 0.5, shop="a", length=at // 60 % 2 * 4) for at in range(0, 600, 5)]
    history = histories.write(tmp_path / "history", block_of(events), row_group_rows=1_000)
    report = measure(told, str(history), Lateness({"sale": (0,), "visit": (30_000_000,)}), lambda *_: None)
    assert report["no_auc"] is None
    assert report["auc_without_delays"] > 0.8
    assert [cost["grace_s"] for cost in report["graces"]] == [0, 15]
    for cost in report["graces"]:
        assert cost["auc"] == {"trained_without_delays": 0.5, "trained_with_delays": 0.5}  # all rows look alike


def test_the_commands_of_the_guide(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    histories.write(tmp_path / "var" / "history" / "flights", block_of(EVENTS))
    (tmp_path / "var" / "archive").mkdir()
    archive.rename(tmp_path / "var" / "archive" / "flights")
    made, reported = commands("lateness.md", "test_lateness")
    assert "written in" in run([*made, "--shards", "1"], SHOP)
    told = run([*reported, "--shards", "1"], SHOP)
    assert "found, " in told
    assert "visit_last_10s" in told
    assert "with the app's own grace of 15 s:" in told


def test_what_has_delays_of_its_own_is_refused(archive: Path, tmp_path: Path) -> None:
    late = block_of([{**EVENTS[0], "late": 3}])
    with pytest.raises(HistoryError, match="has publish times of its own"):
        arriving(late, lateness_of(app, archive))
    serve(app, to_messages(app, block_of(EVENTS[:3])), tmp_path / "sales")
    with pytest.raises(HistoryError, match="has no event of type 'visit'"):
        lateness_of(app, tmp_path / "sales")
    rows = computed(app, block_of(EVENTS))
    with pytest.raises(HistoryError, match="of different events"):
        cost_of(app, [(rows, rows.slice(1))])
    unpublished = arriving(block_of(EVENTS[:3], published=False), Lateness({"sale": (5,)}))
    assert (published(unpublished) - published(block_of(EVENTS[:3]))).tolist() == [5, 5, 5]
