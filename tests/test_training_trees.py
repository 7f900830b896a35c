"""Boosted trees: what is served says what the library says, in both servers; the same command gives the same trees."""

from __future__ import annotations

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batch.attributions import attribute
from serving.in_process import InProcessModel
from shared_features.errors import ConfigurationError
from tests import training_rows
from training.background import read_background
from training.boosted_trees import BoostedTrees, BoostedTreesOptions
from training.export import SavedModel, read_summary
from training.rows import TrainingRows, open_rows
from training.train import train

pytestmark = pytest.mark.tensorflow

OPTIONS = {"iterations": 25, "min_leaf_rows": 5, "learning_rate": 0.2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> TrainingRows:
    return open_rows(training_rows.write(tmp_path_factory.mktemp("trees") / "rows", shards=2))


@pytest.fixture(scope="module")
def fitted(rows: TrainingRows) -> BoostedTrees:
    return BoostedTrees(rows, BoostedTreesOptions.from_mapping(OPTIONS, rows.numbers), seed=3)


def odd_rows(test: pa.Table) -> pa.Table:
    """Test rows, and ones with everything missing, unseen, infinite or on the far side of every threshold."""
    names = [field.name for field in test.schema if field.name in training_rows.FEATURES]
    odd = {
        "delay": [None, float("inf"), -1e30, 1e30, 12.3],
        "hour": [None, -5, 99, 16, 17],
        "busy": [None, True, False, None, True],
        "shop": [None, "", "moon", "west", "west"],
        "carrier": [None, "RARE", "", "CC", "CC"],
    }
    schema = pa.schema([test.schema.field(name) for name in names])
    return pa.concat_tables([test.select(names).cast(schema), pa.table(odd, schema=schema)])


def test_what_is_served_is_what_the_library_says(rows: TrainingRows, fitted: BoostedTrees, tmp_path: Path) -> None:
    trained = train(rows.folder, tmp_path, "boosted_trees", options=OPTIONS, seed=3)
    asked = odd_rows(rows.table("test"))
    expected = fitted.predict(asked)  # another fit of the same: it is deterministic too
    assert expected.std() > 0.1
    assert any(tree.nodes["is_categorical"].any() for (tree,) in fitted.model._predictors)
    assert any(tree.nodes["missing_go_to_left"].any() for (tree,) in fitted.model._predictors)
    exported = SavedModel(trained.path)
    np.testing.assert_allclose(exported.probabilities(asked), expected, atol=1e-6, rtol=0)
    assert exported.probabilities(asked.slice(0, 0)).shape == (0,)
    served = InProcessModel("boosted_trees", 1, trained.path)  # TensorFlow's C library, as the model server has it
    try:
        block = asked.combine_chunks().to_batches()[0]
        np.testing.assert_allclose(served.predict(block)["probability"], expected, atol=1e-6, rtol=0)
        check_contributions(served, fitted, block.slice(0, 1), read_background(trained.path))
    finally:
        served.close()
    summary = read_summary(trained.path)
    assert summary["options"]["iterations"] == 25
    assert summary["statistics"]["rows"] == summary["trained_rows"] == 6_000
    assert trained.metrics["test"]["auc"] > 0.8


def check_contributions(served: InProcessModel, fitted: BoostedTrees, row: pa.RecordBatch, others: pa.Table) -> None:
    """Of the served model within their errors those of the definition, for which the library is asked."""
    names = sorted(training_rows.FEATURES)
    found = attribute(served.predict, row, others, names)["probability"]
    own = pa.concat_tables([pa.Table.from_batches([row]).select(others.column_names).cast(others.schema)] * len(others))
    worth = {}
    for count in range(len(names) + 1):
        for known in combinations(names, count):
            mixed = pa.table({name: (own if name in known else others)[name] for name in names})
            worth[frozenset(known)] = fitted.predict(mixed).mean()
    for place, name in enumerate(names):
        brings = [
            (worth[known | {name}] - worth[known]) / comb(len(names) - 1, len(known))
            for known in worth
            if name not in known
        ]
        assert abs(found.contributions[place] - sum(brings) / len(names)) < 4 * found.errors[place] + 1e-6
    assert found.base + found.contributions.sum() == pytest.approx(found.prediction, abs=1e-9)
    assert np.abs(found.contributions).max() > 10 * found.errors.max() > 0


def test_a_threshold_lies_between_the_same_float32_values() -> None:
    from training.tree_graph import _rounded_down

    thresholds = np.array([0.1, 1 / 3, -0.1, 1e-50, 16_777_217.0, np.inf])
    values = np.array([np.float32(0.1), np.float32(1 / 3), np.float32(-0.1), np.float32(0), np.float32(16_777_218), 3])
    for value in (values, np.nextafter(values, np.float32(-np.inf)), np.nextafter(values, np.float32(np.inf))):
        value = value.astype(np.float32)
        assert ((value <= _rounded_down(thresholds)) == (value.astype(np.float64) <= thresholds)).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"units": [3]}, "Model boosted_trees has no option 'units'; it has iterations, "),
        ({"leaves": 1}, "Option leaves of model boosted_trees must be a whole number from 2 to 100000, but is 1"),
        ({"learning_rate": True}, "must be a number from 0.0001 to 1, but is True"),
        ({"baseline": "shop"}, "must be one of the numbers delay, hour, busy, but is 'shop'"),
    ],
)
def test_wrong_options_are_refused(rows: TrainingRows, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        BoostedTreesOptions.from_mapping(options, rows.numbers)
