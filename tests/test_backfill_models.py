"""A backfill asks a model server: predictions, versions and ids are those that the stream would have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.backfill import backfill
from batch.backfill_rows import Asking, ask_models
from batch.snapshot import snapshot
from serving.server import ModelServer
from serving.versions import ModelSettings
from shared_features import App, Model, Reaction, prediction
from shared_features.blocks import block_schema, from_ipc, nest
from shared_features.errors import ConfigurationError, FingerprintError
from shared_features.hashing import prediction_id
from shared_features.plan import make_plan
from streaming.deduplication import Deduplicator
from streaming.snapshots import load_snapshot
from tests import histories
from tests.faults.app import by_meter, reading
from tests.faults.served import app
from tests.serving_models import put

ROWS = 2_500


@pytest.mark.tensorflow
def test_predictions_of_a_served_model(tmp_path: Path) -> None:
    put("meters_2", tmp_path / "models" / "half", 2)
    history = write_readings(tmp_path / "history")
    with ModelServer([ModelSettings("half", tmp_path / "models" / "half")], port=0, poll_s=0) as server:
        target = f"127.0.0.1:{server.port}"
        with pytest.raises(FingerprintError, match="model 'half'"):
            ask_models(app, target)
        asking = Asking(target, None, {"half": 2})
        summary = backfill(app, history, tmp_path / "out", asking=asking, shards=2)
        reacting(history, tmp_path, asking)
    assert summary.rows == {"predicted": ROWS}
    rows = all_rows(tmp_path / "out")
    for row in rows.to_pylist():
        assert row["prediction.half.y"] == 0.5 * row["feature.x"] + 200
        assert row["version.half"] == 2
        wanted = prediction_id(app.name, "reading", row["event_id"], "half", 2, app.fingerprint)
        assert row["prediction_id"] == wanted


def all_rows(out: Path) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read() for path in out.glob("publish_date=*/*.parquet")])


def reacting(history: Path, folder: Path, asking: Asking) -> None:
    """Reactions follow what the server says: over a whole range, and on from a snapshot's memory."""
    high, low = prediction("y") >= 206.0, prediction("y") < 202.0
    told = Reaction("high", when=high, until=low, announce="both", by=by_meter)
    watching = App(
        "served",
        event_types=[reading],
        predict_on=reading,
        features=app.features,
        models=[Model("half", outputs=("y",))],
        reactions=[told],
        lateness="2h",
    )
    assert watching.fingerprint == app.fingerprint
    done = backfill(watching, history, folder / "reacting", asking=asking, shards=2)
    rows = histories.in_order(all_rows(folder / "reacting"))
    on, wanted = dict.fromkeys("abc", False), []
    for row in rows.to_pylist():
        was, y = on[row["reading.meter"]], 0.5 * row["reading.x"] + 200
        on[row["reading.meter"]] = y >= 202.0 if was else y >= 206.0
        wanted.append((was != on[row["reading.meter"]], on[row["reading.meter"]]))
    assert list(zip(rows["reaction.high"].to_pylist(), rows["started.high"].to_pylist(), strict=True)) == wanted
    assert done.reactions == {"high": sum(fires for fires, _ in wanted)}
    cut = rows["publish_time"][1_000].as_py()
    made = snapshot(watching, history, folder / "served.state", cut=cut, asking=asking, shards=3)
    stage = load_snapshot(Path(made.file), make_plan(watching), Deduplicator(made.horizon_s * 1_000_000)).stages[1]
    remembered = {one["key"]: one["on"] for one in from_ipc(stage.save()[0]).to_pylist()}
    meters = rows["reading.meter"].to_pylist()
    assert remembered == {meter: on for meter, (_, on) in zip(meters[:1_000], wanted[:1_000], strict=True)}


def test_an_app_without_a_model_predicts_nothing() -> None:
    bare = App("bare", event_types=[reading], predict_on=reading, features={"x": reading.x})
    with pytest.raises(ConfigurationError, match=r"has no model: wanted one, or features only \(--collect\)"):
        ask_models(bare, "")


def write_readings(folder: Path) -> Path:
    rows = [
        {
            "event_type": "reading",
            "event_id": f"r{number}",
            "event_time": 1_700_000_000_000_000 + number * 1_000_000,
            "publish_time": 1_700_000_000_000_000 + number * 1_000_000,
            "reading.meter": "abc"[number % 3],
            "reading.x": number % 17,
        }
        for number in range(ROWS)
    ]
    folder.mkdir()
    block = pa.RecordBatch.from_pylist(rows, schema=block_schema([reading]))
    pq.write_table(nest(pa.Table.from_batches([block])).drop_columns(["message_id"]), folder / "readings.parquet")
    return folder
