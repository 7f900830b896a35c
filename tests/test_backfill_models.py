"""A backfill asks a model server: predictions, versions and ids are those that the stream would have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.backfill import backfill
from batch.backfill_rows import Asking, ask_models
from serving.server import ModelServer
from serving.versions import ModelSettings
from shared_features import App
from shared_features.blocks import block_schema, nest
from shared_features.errors import ConfigurationError, FingerprintError
from shared_features.hashing import prediction_id
from tests.faults.app import reading
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
        summary = backfill(app, history, tmp_path / "out", asking=Asking(target, None, {"half": 2}), shards=2)
    assert summary.rows == {"predicted": ROWS}
    rows = pa.concat_tables(
        [pq.ParquetFile(path).read() for path in (tmp_path / "out").glob("publish_date=*/*.parquet")]
    )
    for row in rows.to_pylist():
        assert row["prediction.half.y"] == 0.5 * row["feature.x"] + 200
        assert row["version.half"] == 2
        wanted = prediction_id(app.name, "reading", row["event_id"], "half", 2, app.fingerprint)
        assert row["prediction_id"] == wanted


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
