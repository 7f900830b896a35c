"""Training rows: what is in them, what was left out and why, reuse, and the folder never half-written."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from batch import partitions, partitions_spill, rows, traindata
from batch.splits import Splits, by_share
from batch.tables import open_history
from batch.traindata import MANIFEST, TrainingSummary, features_of_history, made_from, make_training_rows
from shared_features import App, Label, load_app
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.plan import make_plan
from streaming.locks import take_lock
from tests import histories
from tests.histories import SPLITS_2013, START_US, block_of, computed, event
from tests.processes import PATIENCE_S, REPOSITORY
from tests.shop.app import app, sale, visit


def instant(at_s: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(START_US / 1_000_000 + at_s, dt.UTC)


SPLITS = Splits(start=instant(0), validate_from=instant(100), test_from=instant(150), end=instant(200))

EVENTS = [
    # 200 s of sales every second second, in two shops in turn, each shop visited every 12 s.
    *(event("sale", at, shop="ab"[at // 2 % 2], till=at % 3, amount=at / 7) for at in range(0, 204, 2)),
    *(event("visit", at, shop="ab"[at // 6 % 2], length=at % 5) for at in range(0, 200, 6)),
]


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return histories.write(tmp_path / "history", block_of(EVENTS), files=2)


def make(history: Path, out: Path, **options: Any) -> TrainingSummary:
    return make_training_rows(app, history, out, **{"splits": SPLITS, **options})


def read(out: Path, split: str) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((out / split).glob("*.parquet"))]).combine_chunks()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_have_the_features_of_compute_and_their_label(history: Path, tmp_path: Path) -> None:
    summary = make(history, tmp_path / "rows")
    wanted = computed(app, block_of(EVENTS))
    rows = pa.concat_tables([read(tmp_path / "rows", split) for split in ("train", "validate", "test")])
    assert rows.schema.names == ["event_id", "event_time", "publish_time", *app.features, "label"]
    assert rows.schema.field("label") == pa.field("label", pa.bool_(), nullable=False)
    mine = rows.select(wanted.schema.names).combine_chunks().replace_schema_metadata(None)
    labelled = pc.is_in(wanted["event_id"], rows["event_id"].combine_chunks())
    assert mine.equals(wanted.filter(labelled).combine_chunks())
    visits = [(e["at"], e["shop"], e["length"] >= 3) for e in EVENTS if e["event_type"] == "visit"]
    for row in rows.select(["event_time", "event_id", "label"]).to_pylist():
        at = (row["event_time"] - instant(0)).total_seconds()
        shop = "ab"[int(at) // 2 % 2]
        (first, *_) = [value for visited, name, value in visits if name == shop and at <= visited <= at + 20]
        assert row["label"] == first
    assert summary.rows == {"train": 50, "validate": 25, "test": sum(summary.rows.values()) - 75}
    assert summary.events == len(EVENTS)


def test_what_is_left_out_adds_up(history: Path, tmp_path: Path) -> None:
    silent = [event("sale", 20, shop="c", event_id="c1"), event("visit", 21, shop="c", event_id="c2", length=None)]
    more = [*silent, event("sale", 30, shop="d", event_id="d"), event("sale", 31, event_id="no shop")]
    more += [event("sale", 7, shop="a", event_id="bad", amount=float("inf")), event("sale", -5, shop="a", event_id="e")]
    more += [event("sale", 20, shop="c", event_id="c1", late=1)]
    histories.write(history / "more", block_of(more))
    summary = make(history, tmp_path / "rows")
    assert summary.events == len(EVENTS) + len(more)
    assert summary.events_left_out == {"duplicate": 1, "not_finite": 1}
    assert summary.without_key == {"shop": 1, "till": 4}
    sales = sum(e["event_type"] == "sale" for e in EVENTS) + 4
    assert sum(summary.rows.values()) + sum(summary.rows_left_out.values()) == sales
    # d and the sale without a shop find no visit, nor do those in the last seconds; c1 finds one without length.
    assert summary.rows_left_out["label_null"] == 1
    assert summary.rows_left_out["no_label"] >= 2
    assert summary.rows_left_out["outside_splits"] >= 1
    labels = read(tmp_path / "rows", "train")["label"].to_pylist()
    assert summary.label_share["train"] == sum(labels) / len(labels)


def test_shards_and_files_change_no_byte(history: Path, tmp_path: Path) -> None:
    make(history, tmp_path / "one", shards=1)
    other = histories.write(tmp_path / "other", block_of(EVENTS), files=5, row_group_rows=3, seed=9)
    make(other, tmp_path / "seven", shards=7)
    one, seven = tree(tmp_path / "one"), tree(tmp_path / "seven")
    assert one.pop(MANIFEST) != seven.pop(MANIFEST)
    assert one == seven
    assert len(one) == 3


def test_files_are_sorted_by_month_and_carry_what_made_them(tmp_path: Path) -> None:
    days = [event("sale", 86_400 * day, shop="a", event_id=f"s{day}") for day in range(60)]
    days += [event("visit", 86_400 * day + 5, shop="a", length=4.0) for day in range(60)]
    folder = histories.write(tmp_path / "history", block_of(days))
    splits = Splits(validate_from=instant(86_400 * 40), test_from=instant(86_400 * 50))
    make(folder, tmp_path / "rows", splits=splits)
    assert sorted(name for name in tree(tmp_path / "rows") if name != MANIFEST) == [
        "test/2024-01.parquet",
        "train/2023-11.parquet",
        "train/2023-12.parquet",
        "validate/2023-12.parquet",
        "validate/2024-01.parquet",
    ]
    table = pq.read_table(tmp_path / "rows" / "train" / "2023-12.parquet")
    assert table["event_time"].to_pylist() == sorted(table["event_time"].to_pylist())
    metadata = table.schema.metadata
    assert metadata[b"sameriver.app"] == b"shop"
    assert metadata[b"sameriver.fingerprint"] == app.fingerprint.encode()
    assert json.loads(metadata[b"sameriver.definitions"]) == app.definitions


def test_a_second_run_reuses_the_rows(history: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows"
    first = make(history, out)
    before = tree(out)
    steps: list[tuple[float, str]] = []
    second = make(history, out, progress=lambda share, step: steps.append((share, step)))
    assert not first.reused
    assert second.reused
    assert steps[-1] == (1.0, "reused")
    assert {**second.as_dict(), "reused": False} == first.as_dict()
    assert tree(out) == before


@pytest.mark.parametrize("change", ["history", "splits", "label", "feature", "damage", "manifest"])
def test_rows_are_made_anew_when_anything_that_decides_them_changed(history: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "rows"
    make(history, out)
    made, splits = app, SPLITS
    if change == "history":
        histories.write(history / "more", block_of([event("sale", 33, shop="a", event_id="new")]))
    elif change == "splits":
        splits = Splits(validate_from=instant(90), test_from=instant(150))
    elif change == "label":
        made = variant(length=4.0)
    elif change == "feature":
        made = variant(features={"amount": sale.amount})
    elif change == "damage":
        next((out / "train").iterdir()).write_bytes(b"")
    else:
        (out / MANIFEST).write_text("{}")
        with pytest.raises(ConfigurationError, match="holds something else"):
            make_training_rows(made, history, out, splits=splits)
        return
    assert not make_training_rows(made, history, out, splits=splits).reused
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def variant(length: float = 3.0, features: dict[str, Any] | None = None) -> App:
    return App(
        "shop",
        predict_on=sale,
        event_types=[sale, visit],
        features=features or app.features,
        label=Label(visit.length >= length, join=("shop", "shop"), within="20s"),
        lateness="15s",
    )


def test_a_folder_that_holds_something_else_is_left_alone(history: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ConfigurationError, match="holds something else: name an empty folder"):
        make(history, tmp_path / "photos")
    assert tree(tmp_path / "photos") == {"cat.jpg": b"cat"}


def test_a_run_that_fails_leaves_the_old_rows_and_nothing_else(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows"
    make(history, out)
    before = tree(out)
    histories.write(history / "more", block_of([event("sale", 1, event_id="late")], published=False))
    with pytest.raises(HistoryError, match="without a publish_time"):
        make(history, out)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history", "rows"]


def test_an_unwritable_folder_is_named(history: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"cannot be written to .*file/rows"):
        make(history, tmp_path / "file" / "rows")


def test_a_history_without_rows_for_the_splits_is_told_with_counts(history: Path, tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"gives no training row for app 'shop' .*rows\.outside_splits"):
        make_training_rows(app, history, tmp_path / "rows", splits=SPLITS_2013)
    assert not (tmp_path / "rows").exists()


def test_an_app_without_a_label_is_told_so(history: Path, tmp_path: Path) -> None:
    unlabelled = App("shop", predict_on=sale, features={"amount": sale.amount}, event_types=[sale])
    with pytest.raises(ConfigurationError, match="app 'shop' has no label to train on"):
        make_training_rows(unlabelled, history, tmp_path / "rows")
    assert features_of_history(unlabelled, history).num_rows == 102


def test_splits_must_rise_and_have_a_zone() -> None:
    with pytest.raises(ConfigurationError, match="wanted rising times, each with its zone"):
        Splits(validate_from=instant(5), test_from=instant(5))
    with pytest.raises(ConfigurationError, match="wanted rising times"):
        Splits(validate_from=dt.datetime(2013, 1, 1), test_from=dt.datetime(2013, 1, 2))  # noqa: DTZ001
    assert SPLITS_2013.as_dict()["test_from"] == "2013-11-01T00:00:00+00:00"
    assert Splits.from_dict(SPLITS_2013.as_dict()) == SPLITS_2013


def test_where_nobody_gives_splits_the_history_is_divided_by_time(history: Path, tmp_path: Path) -> None:
    """Events from 0 s to 202 s: 70 % are 141.4 s, 85 % are 171.7 s; whole seconds."""
    found = by_share(open_history(history, make_plan(app)))
    assert found == Splits(validate_from=instant(141), test_from=instant(171))
    summary = make_training_rows(app, history, tmp_path / "rows")
    assert summary.splits == found.as_dict()
    assert min(summary.rows.values()) > 0
    one = histories.write(tmp_path / "one", block_of(EVENTS[:1]))
    with pytest.raises(ConfigurationError, match="covers no time that could be split"):
        make_training_rows(app, one, tmp_path / "of one")


def test_rows_tell_what_they_were_made_from(history: Path, tmp_path: Path) -> None:
    assert made_from(app, tmp_path / "rows") is None
    make(history, tmp_path / "rows")
    found = made_from(app, tmp_path / "rows")
    assert found is not None
    assert (found.history, found.splits, found.fits) == (str(history), SPLITS, True)
    other = App("shop", predict_on=sale, features={"amount": sale.amount}, event_types=[sale, visit], label=app.label)
    again = made_from(other, tmp_path / "rows")
    assert again is not None
    assert not again.fits


def test_progress_rises_to_one(history: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    make(history, tmp_path / "rows", progress=lambda share, step: told.append((share, step)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert {"read", "fold by shop", "fold by till", "written"} <= {step for _, step in told}


def test_a_real_month_of_flights(tmp_path: Path) -> None:
    """January 2013: 27,004 flights; the label of each row is what pandas finds in the same files."""
    january = histories.flights() / "2013-01.parquet"
    flights = load_app("flights")
    summary = make_training_rows(flights, january, tmp_path / "rows", splits=SPLITS_2013)
    table = pq.read_table(january).flatten()
    departed = table.filter(pc.equal(table["event_type"], "departed")).to_pandas()
    arrived = table.filter(pc.equal(table["event_type"], "arrived")).to_pandas()
    both = departed.merge(arrived, left_on="departed.flight_id", right_on="arrived.flight_id", suffixes=("", "_later"))
    wanted = both.set_index("event_id")["arrived.arrival_delay_later"] >= 15
    rows = read(tmp_path / "rows", "train").to_pandas().set_index("event_id")
    assert len(rows) == len(wanted) == summary.rows["train"]
    assert (rows["label"] == wanted.reindex(rows.index)).all()
    assert summary.rows_left_out == {"no_label": len(departed) - len(wanted), "label_null": 0, "outside_splits": 0}
    assert summary.events_left_out == {}
    assert summary.events == table.num_rows
    assert 0.2 < summary.label_share["train"] < 0.3


KILLED = """
import os, signal, sys
from batch import partitions, partitions_spill, partitions_steps, rows
from tests import test_traindata as here

name, last = sys.argv[3:]
partitions.DAY_US = rows.DAY_US = 20_000_000
partitions_spill.TOGETHER_BYTES = 1
module = rows if hasattr(rows, name) else partitions_steps
calls, function = 0, getattr(module, name)
def counting(*arguments):
    global calls
    calls += 1
    if calls == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments)
setattr(module, name, counting)
here.make(here.Path(sys.argv[1]), here.Path(sys.argv[2]), shards=2)
"""


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("first_labels", 7),
        pytest.param("step", 9, marks=pytest.mark.soak),
        pytest.param("merged", 2, marks=pytest.mark.soak),
    ],
)
def test_a_killed_run_goes_on_where_it_was(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, last: int
) -> None:
    """kill -9 while folding, joining labels or writing; what is done is not done again, but for a shard's newest."""
    out = tmp_path / "rows"
    command = [sys.executable, "-c", KILLED, str(history), str(out), name, str(last)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".rows.work").rglob("*.*") if path.suffix != ".state"}
    kept = {path: at for path, at in kept.items() if path.suffix in (".arrow", ".parquet") and path.name[0] != "."}
    newest = {(path.parent, path.name.split("_")[0]): path for path in sorted(kept) if path.parent.name != "rows"}
    seen: dict[Path, int] = {}
    put = traindata._put

    def looking(*places: Path) -> None:
        seen.update({path: path.stat().st_mtime_ns for path in kept})
        put(*places)

    monkeypatch.setattr(traindata, "_put", looking)
    monkeypatch.setattr(partitions, "DAY_US", 20_000_000)
    monkeypatch.setattr(rows, "DAY_US", 20_000_000)
    monkeypatch.setattr(partitions_spill, "TOGETHER_BYTES", 1)
    make(history, out, shards=5)
    monkeypatch.undo()
    old = {path: at for path, at in kept.items() if path not in newest.values()}
    assert len(old) > 4
    assert {path: seen[path] for path in old} == old
    make(history, tmp_path / "whole")
    whole, again = tree(tmp_path / "whole"), tree(out)
    assert whole.pop(MANIFEST) != again.pop(MANIFEST)
    assert whole == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history", "rows", "whole"]


def test_two_runs_do_not_write_the_same_rows(history: Path, tmp_path: Path) -> None:
    (tmp_path / ".rows.work").mkdir()
    lock = take_lock(tmp_path / ".rows.work" / "lock")
    assert lock is not None
    with lock, pytest.raises(ConfigurationError, match=r"are being written to .*rows already: wait"):
        make(history, tmp_path / "rows")
