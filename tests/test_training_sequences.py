"""The convolutional network over lists: what it sees, that it learns from an order, that the servers say the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serving.in_process import InProcessModel
from shared_features.errors import ConfigurationError
from tests import training_rows
from training.export import SavedModel
from training.rows import TrainingRows, open_rows
from training.train import train

pytestmark = pytest.mark.tensorflow

LENGTH = 6
OPTIONS = {"kind": "cnn", "filters": 8, "units": [16], "epochs": 4, "batch_rows": 128, "learning_rate": 0.02}


def table(rows: int, seed: int) -> pa.Table:
    """True where a speed fell by more than 1 from one event to the next; the newest speed says little about that.

    ``speeds``: the last six, newest first, fewer of them for every third row.
    """
    random = np.random.default_rng(seed)
    speeds = random.normal(10, 1, (rows, LENGTH))
    falls = random.random(rows) < 0.5
    at = random.integers(0, 2, rows)
    speeds[np.arange(rows), at] = np.where(falls, 6, speeds[np.arange(rows), at])
    missing = (np.arange(rows) % 3 == 0)[:, None] & (np.arange(LENGTH) >= 3)
    values = pa.array(speeds.ravel(), mask=missing.ravel())
    plain = training_rows.table(rows, seed).drop(["delay", "busy", "carrier", "label"])
    lists = pa.FixedSizeListArray.from_arrays(values, LENGTH)
    return plain.append_column("speeds", lists).append_column("label", pa.array(falls))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> TrainingRows:
    splits = {"train": table(2_000, 1), "validate": table(400, 2), "test": table(400, 3)}
    return open_rows(training_rows.write(tmp_path_factory.mktemp("sequences") / "rows", splits))


def test_it_learns_from_the_order_of_events_and_is_served(rows: TrainingRows, tmp_path: Path) -> None:
    trained = train(rows.folder, tmp_path, "falling", options=OPTIONS)
    assert trained.metrics["test"]["auc"] > 0.95
    test = rows.table("test", [*(feature.name for feature in rows.features)])
    said = SavedModel(trained.path).probabilities(test)
    original = table(400, 3).drop(["event_id", "event_time", "publish_time", "label"])
    served = InProcessModel("falling", 1, trained.path)  # one list, one input of shape [rows, 6]
    try:
        block = original.combine_chunks().to_batches()[0]
        np.testing.assert_allclose(served.predict(block)["probability"], said, atol=1e-6, rtol=0)
        assert served.tensors(block.slice(0, 2))["speeds"].shape == (2, LENGTH)
    finally:
        served.close()


def test_events_that_are_not_there_count_for_nothing() -> None:
    #            newest … oldest        as seen: oldest first, (value − mean) / std, then who is there
    #    row 0   12    8    –           –    -1    1
    #    row 1    –    –    –           –     –    –
    from training.sequences import Pooled, Sequences
    from training.statistics import NumberStatistics

    speed = NumberStatistics(9, 0.1, 10.0, 2.0, (0.0, 99.0))
    numbers = np.array([[7, 12, 8, np.nan], [7, np.nan, np.nan, np.nan], [7, 1e9, np.inf, 10]], np.float32)
    seen = Sequences([[1, 2, 3]], [speed])(numbers).numpy()
    np.testing.assert_array_equal(seen[0], [[0, 0], [-1, 1], [1, 1]])
    np.testing.assert_array_equal(seen[1], np.zeros((3, 2)))
    np.testing.assert_array_equal(seen[2], [[0, 1], [0, 0], [4, 1]])
    found = np.array([[[9.0], [3], [5]], [[9], [9], [9]], [[2], [9], [4]]], np.float32)
    np.testing.assert_array_equal(Pooled()([found, seen]).numpy(), [[5, 4], [0, 0], [4, 3]])


def test_numbers_are_encoded_as_their_docstring_says() -> None:
    from training.statistics import NumberStatistics
    from training.wide_and_deep import NumberEncoding

    statistics = [
        NumberStatistics(9, 0.0, 2.0, 1.0, (0.0, 1.0, 1.0, 3.0)),  # buckets [0, 1) and [1, 3]
        NumberStatistics(9, 0.5, 5.0, 0.0, (5.0, 5.0, 5.0, 5.0)),  # always 5, or missing
        NumberStatistics(9, 1.0, 0.0, 0.0, ()),  # never there
    ]
    nan, inf = np.nan, np.inf
    rows = np.array([[0.25, 5, nan], [2, nan, 7], [nan, 9, nan], [-9, 5, inf], [99, 5, nan]], np.float32)
    steps, dense, places = (part.numpy() for part in NumberEncoding(statistics)(rows))
    #                        >=1 >=3  2nd and 3rd missing
    assert steps.tolist() == [[0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1]]
    #              along [0,1) along [1,3]  scaled (mean 2)
    expected = np.array([[0.25, 0, -1.75], [1, 0.5, 0], [1, 0.5, 0], [0, 0, -4], [1, 1, 4]])
    np.testing.assert_allclose(dense[:, :3], expected)
    np.testing.assert_array_equal(dense[:, 3:5], 0)  # no spread: nothing to scale by
    np.testing.assert_array_equal(dense[:, 5:], steps[:, 2:])
    np.testing.assert_array_equal(places, [[1, 1, 0], [2, 0, 1], [0, 1, 0], [1, 1, 0], [3, 1, 0]])


def test_it_needs_lists(tmp_path: Path) -> None:
    few = training_rows.table(60, 1)
    rows = training_rows.write(tmp_path / "rows", {"train": few, "validate": few, "test": few})
    with pytest.raises(ConfigurationError, match="needs features that are lists, but there are none: add one to the"):
        train(rows, tmp_path / "models", "cnn", options={"units": [4]})
    with pytest.raises(ConfigurationError, match="Model deep has no option 'filters'"):
        train(rows, tmp_path / "models", "deep", options={"filters": 4})
