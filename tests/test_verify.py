"""Verify: 0 on what was served rightly; a broken kernel, a changed prediction, a late event are told apart."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batch.replay import Replay, read_served, served_chunks
from batch.skew import training_rows
from batch.verify import verify
from shared_features import kernel, load_app
from shared_features.blocks import block_schema
from shared_features.columns import Column
from shared_features.errors import FingerprintError, HistoryError
from shared_features.plan import Track, make_plan
from streaming import results
from streaming.archive import Archive, read_commits
from tests.serving_steps import serve, to_messages
from tests.shop.app import app

START_US = 1_700_000_000_000_000


def sales(count: int, seed: int = 1) -> pa.RecordBatch:
    """Sales and visits of three shops, one a second, in order."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        time_us = START_US + i * 1_000_000
        row = {"event_id": f"e{i}", "event_time": time_us, "publish_time": time_us}
        if i % 4 == 3:
            row |= {"event_type": "visit", "visit.shop": "abc"[i % 3], "visit.length": float(rng.integers(0, 5))}
        else:
            row |= {"event_type": "sale", "sale.shop": "abc"[i % 3], "sale.amount": round(float(rng.normal(2, 2)), 2)}
            row |= {"sale.till": i % 2, "sale.units": int(rng.integers(0, 9)), "sale.paid": bool(i % 2)}
        rows.append(row)
    return pa.RecordBatch.from_pylist(rows, schema=block_schema(app.event_types))


def test_what_was_served_rightly_has_no_mismatch(tmp_path: Path) -> None:
    served = serve(app, to_messages(app, sales(200)), tmp_path)
    report = verify(app, tmp_path)
    assert (report.events, report.predictions, report.mismatches) == (200, 150, 0)
    assert report.features == 150 * len(app.features)
    assert report.predictions_unchecked == 0
    assert report.first_mismatch is None
    assert len(served.sent["shop-predictions"]) == 150
    assert len(served.acknowledged) == 200


def test_a_kernel_broken_in_one_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live path adds one thousandth to every value of one track; the batch path does not."""
    right = kernel.encode

    def wrong(track: Track, column: Column) -> tuple[np.ndarray, np.ndarray]:
        values, valid = right(track, column)
        return (values + 1000, valid) if track.encoding == "scaled" else (values, valid)

    monkeypatch.setattr(kernel, "encode", wrong)
    serve(app, to_messages(app, sales(50)), tmp_path)
    monkeypatch.setattr(kernel, "encode", right)
    report = verify(app, tmp_path)
    assert report.feature_mismatches > 0
    assert report.first_mismatch is not None
    assert "batch gives" in report.first_mismatch


def test_a_changed_prediction_and_a_changed_reaction_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = results.apply_rule
    monkeypatch.setattr(
        "streaming.delivery.results.apply_rule",
        lambda *args: results.Answer({"probability": 1 - right(*args).outputs["probability"]}, right(*args).refused, 0),
    )
    serve(app, to_messages(app, sales(40)), tmp_path)
    monkeypatch.undo()
    report = verify(app, tmp_path)
    assert report.feature_mismatches == 0
    assert report.prediction_mismatches > 0
    assert report.reaction_mismatches == 0  # they follow the archived predictions


def test_training_rows_agree_when_nothing_was_late(tmp_path: Path) -> None:
    history = sales(200)
    serve(app, to_messages(app, history), tmp_path)
    report = verify(app, tmp_path, training=training_rows(make_plan(app), history, START_US))
    assert (report.training_compared, report.training_mismatches, report.training_causes) == (150, 0, {})


def test_a_late_event_is_named_as_the_cause(tmp_path: Path) -> None:
    """Event 40 comes 6 places late: rows that its windows reach differ from training, all by late arrival."""
    history = sales(120)
    order = [*range(40), *range(41, 47), 40, *range(47, 120)]
    serve(app, to_messages(app, history.take(pa.array(order))), tmp_path)
    report = verify(app, tmp_path, training=training_rows(make_plan(app), history, START_US))
    assert report.mismatches == 0
    assert report.training_mismatches == 0
    assert set(report.training_causes) == {"late_arrival"}
    assert 0 < report.training_causes["late_arrival"] <= 7


def test_a_cold_start_is_named_as_the_cause(tmp_path: Path) -> None:
    history = sales(120)
    serve(app, to_messages(app, history.slice(60)), tmp_path)
    report = verify(app, tmp_path, training=training_rows(make_plan(app), history, START_US))
    assert report.training_causes.keys() == {"cold_state"}
    assert report.training_mismatches == report.training_causes["cold_state"] > 0
    assert report.first_mismatch is not None
    assert "(cold_state)" in report.first_mismatch
    warm = verify(app, tmp_path, training=training_rows(make_plan(app), history, START_US + 95_000_000))
    assert (warm.training_compared > 0, warm.training_mismatches) == (True, 0)


def test_a_lost_event_is_unexplained(tmp_path: Path) -> None:
    history = sales(80)
    serve(app, to_messages(app, history.take(pa.array([i for i in range(80) if i != 40]))), tmp_path)
    report = verify(app, tmp_path, training=training_rows(make_plan(app), history, START_US))
    assert report.training_causes.keys() == {"unexplained"}


def test_accounting_adds_up_and_duplicates_are_folded_once(tmp_path: Path) -> None:
    """C6: received = predicted + folded + duplicates + dead-lettered, in the archive's own records."""
    messages = to_messages(app, sales(60))
    broken = [message.__class__(b"{", message.attributes, f"b{i}", 0) for i, message in enumerate(messages[:5])]
    serve(app, [*messages[:30], *broken, *messages[10:60]], tmp_path)
    counts = [commit.counts for commit in read_commits(tmp_path)]
    outcomes: dict[str, int] = {}
    for one in counts:
        for name, number in one["outcomes"].items():
            outcomes[name] = outcomes.get(name, 0) + number
    received, duplicates = sum(c["received"] for c in counts), sum(c["duplicates"] for c in counts)
    dead = sum(sum(c["dead_letters"].values()) for c in counts)
    assert (received, duplicates, dead) == (85, 20, 5)
    assert received == sum(outcomes.values()) + duplicates + dead
    assert verify(app, tmp_path).events == 60


def test_served_rows_carry_positions_without_gaps(tmp_path: Path) -> None:
    serve(app, to_messages(app, sales(40)), tmp_path)
    served = read_served(tmp_path)
    assert served is not None
    assert served.column("stage.shop.position").to_pylist() == list(range(40))
    assert [p for p in served.column("stage.till.position").to_pylist() if p is not None] == list(range(30))


def test_another_fingerprint_is_refused(tmp_path: Path) -> None:
    serve(app, to_messages(app, sales(10)), tmp_path)
    written = json.loads((tmp_path / "archive.json").read_text())
    (tmp_path / "archive.json").write_text(json.dumps({**written, "fingerprint": "0" * 32}))
    with pytest.raises(FingerprintError, match="verify it with the version of the app"):
        verify(load_app("tests/shop"), tmp_path)


@pytest.mark.parametrize("rows", [1, 7, 1_000])
def test_chunks_of_any_size_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    serve(app, to_messages(app, sales(100)), tmp_path)
    monkeypatch.setattr("batch.verify.served_chunks", functools.partial(served_chunks, rows=rows))
    report = verify(app, tmp_path)
    assert (report.events, report.predictions, report.mismatches) == (100, 75, 0)
    assert report.features == 75 * len(app.features)


def test_an_event_that_stands_twice_in_the_archive_is_named(tmp_path: Path) -> None:
    """In different chunks, by another event's hash: only equal identities count."""
    serve(app, to_messages(app, sales(30)), tmp_path)
    (chunk,) = served_chunks(tmp_path)
    replay = Replay(make_plan(app), tmp_path)
    for part in (chunk.slice(0, 20), chunk.slice(20)):
        replay.take(part)
    replay.check_identities()
    replay.take(chunk.slice(3, 1))
    replay.check_identities()  # equal hashes, but the archive holds the event once
    serve_again = Archive(tmp_path, {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
    serve_again.append(next(iter(read_commits(tmp_path))).block.slice(3, 1), {})
    serve_again.close()
    with pytest.raises(HistoryError, match="event e3 of type visit stands twice in the archive"):
        verify(app, tmp_path)
