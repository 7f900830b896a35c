"""Contributions of features: what Shapley values must be, whatever the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch.attributions import Attribution, attribute
from batch.why_contributions import Compared, contributions
from shared_features import Model
from shared_features.errors import ConfigurationError
from tests import training_rows
from training.background import FILE, read_background, write_background
from training.rows import open_rows

Array = np.ndarray[Any, Any]
NAMES = ["a", "b", "c", "d"]


def table(seed: int, rows: int) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table({name: random.normal(size=rows).round(2) for name in NAMES})


BACKGROUND = table(1, 128)
ROW = table(2, 1).to_batches()[0]
OWN, OTHERS = (np.stack([data[name].to_numpy() for name in NAMES], axis=1) for data in (ROW, BACKGROUND))


def asked(model: Callable[[Array], Array]) -> Callable[[pa.RecordBatch], Mapping[str, Array]]:
    """A model of rows [rows, 4] as one of blocks; it must be asked once."""
    calls: list[int] = []

    def predict(block: pa.RecordBatch) -> dict[str, Array]:
        calls.append(block.num_rows)
        assert len(calls) == 1
        return {"probability": model(np.stack([block.column(name).to_numpy() for name in NAMES], axis=1))}

    return predict


def told(model: Callable[[Array], Array], row: pa.RecordBatch = ROW, **more: Any) -> Attribution:
    return attribute(asked(model), row, BACKGROUND, NAMES, **more)["probability"]


def mixture(rows: Array) -> Array:
    """Products, a step and a square: features act together."""
    a, b, c, d = rows.T
    mixed: Array = 0.3 * a * b + (c > 0) * d + 0.1 * c**2 + a
    return mixed


def by_definition(model: Callable[[Array], Array], feature: int) -> float:
    """Over all sets of the other features, with what they are worth against the whole background."""

    def worth(known: Iterable[int]) -> float:
        mixed = OTHERS.copy()
        mixed[:, list(known)] = OWN[0, list(known)]
        return float(model(mixed).mean())

    others, size, found = [one for one in range(4) if one != feature], 4, 0.0
    for count in range(size):
        weight = factorial(count) * factorial(size - count - 1) / factorial(size)
        found += sum(weight * (worth([*some, feature]) - worth(some)) for some in combinations(others, count))
    return found


def test_they_are_those_of_the_definition_and_add_up_to_the_prediction() -> None:
    found = told(mixture)
    exact = np.array([by_definition(mixture, feature) for feature in range(4)])
    assert (np.abs(found.contributions - exact) < 3 * found.errors).all()
    assert found.prediction == mixture(OWN)[0]
    assert found.base == pytest.approx(mixture(OTHERS).mean(), abs=1e-12)
    assert found.base + found.contributions.sum() == pytest.approx(found.prediction, abs=1e-12)
    assert told(mixture).contributions.tolist() == found.contributions.tolist()
    few = attribute(asked(mixture), ROW, BACKGROUND.slice(0, 1), NAMES)["probability"]
    assert few.base + few.contributions.sum() == pytest.approx(few.prediction, abs=1e-12)
    assert np.isnan(few.errors).all()


def test_of_a_logistic_model_they_are_exact_in_log_odds() -> None:
    weights = np.array([0.5, -1.0, 2.0, 0.0])
    found = told(lambda rows: 1 / (1 + np.exp(-(rows @ weights + 0.3))), log_odds=True)
    np.testing.assert_allclose(found.contributions, weights * (OWN[0] - OTHERS.mean(axis=0)), atol=1e-12)
    assert found.contributions[3] == 0
    assert found.base == pytest.approx(OTHERS.mean(axis=0) @ weights + 0.3)


def test_what_the_model_does_not_use_and_what_never_differs_brings_nothing() -> None:
    assert told(lambda rows: rows[:, 0] * rows[:, 1]).contributions[2:].tolist() == [0, 0]
    same = BACKGROUND.set_column(1, "b", pa.array(np.full(128, OWN[0, 1])))
    found = attribute(asked(mixture), ROW, same, NAMES)["probability"]
    assert found.contributions[1] == found.errors[1] == 0


def test_features_that_play_the_same_part_bring_the_same() -> None:
    row = ROW.set_column(1, "b", ROW.column("a"))
    twins = BACKGROUND.set_column(1, "b", BACKGROUND["a"])
    found = attribute(asked(lambda rows: rows[:, 0] * rows[:, 1] * rows[:, 2]), row, twins, NAMES)["probability"]
    assert abs(found.contributions[0] - found.contributions[1]) < 3 * found.errors[:2].sum()
    together = attribute(asked(lambda rows: rows[:, 0] + rows[:, 1]), row, twins, NAMES)["probability"]
    assert together.contributions[0] == pytest.approx(together.contributions[1], abs=1e-12)


def test_any_kind_of_feature_and_what_is_missing() -> None:
    kinds = {"carrier": pa.array(["AA"]), "delay": pa.array([None], pa.float64()), "last": pa.array([[1.0, None]])}
    kinds["last"] = kinds["last"].cast(pa.list_(pa.float64(), 2))
    row = pa.RecordBatch.from_pydict({**kinds, "busy": pa.array([True])})
    background = pa.table(
        {
            "carrier": pa.array(["AA", "BB", "BB", None]).dictionary_encode(),
            "delay": pa.array([3, None, 5, 9]),
            "last": pa.array([[1.0, None], [2.0, 3.0], [None, None], [1.0, 1.0]], pa.list_(pa.float64(), 2)),
            "busy": pa.array([False, False, None, True]),
        }
    )

    def predict(block: pa.RecordBatch) -> dict[str, Array]:
        own = [(block["carrier"], "AA"), (block["delay"], None), (block["last"], [1.0, None]), (block["busy"], True)]
        weights = (1, 10, 100, 1000)
        worth = [[w * (one == v) for one in c.to_pylist()] for w, (c, v) in zip(weights, own, strict=True)]
        return {"probability": np.sum(worth, axis=0), "other": np.zeros(block.num_rows)}

    compared = Compared(lambda *_: background, 256)
    found = contributions(Model("score"), 1, predict, row, row.schema.names, compared)
    (only,) = found["outputs"]
    assert [only["output"], only["rows"], only["prediction"]] == ["probability", 4, 1111.0]
    seen = {one["feature"]: (one["contribution"], one["usual"], one["value"]) for one in only["features"]}
    assert seen == {
        "busy": (750.0, False, True),
        "last": (75.0, None, [1.0, None]),
        "delay": (7.5, 5.0, None),
        "carrier": (0.75, "BB", "AA"),
    }
    assert [one["feature"] for one in only["features"]] == ["busy", "last", "delay", "carrier"]
    json.dumps(found, allow_nan=False)

    def reason(background: pa.Table, model: Callable[..., Any] = predict) -> str:
        compared = Compared(lambda *_: background, 256)
        return str(contributions(Model("score"), 1, model, row, row.schema.names, compared)["reason"])

    assert "no column 'busy'" in reason(background.drop_columns(["busy"]))
    assert "'busy' is bool, and fixed_size_list" in reason(background.set_column(3, "busy", background["last"]))
    gives_nan = reason(background, lambda block: {"probability": np.full(block.num_rows, np.nan)})
    assert "gives no probability for some rows" in gives_nan


def test_the_rows_kept_with_a_model_are_the_same_however_the_split_is_sharded(tmp_path: Path) -> None:
    kept = []
    for shards in (1, 3):
        rows = open_rows(training_rows.write(tmp_path / f"rows{shards}", shards=shards))
        texts = {"carrier": {"vocabulary": [["AA", 9], ["BB", 9], ["CC", 9], ["DD", 9]]}}
        (tmp_path / str(shards)).mkdir()
        write_background(tmp_path / str(shards), rows, texts)
        kept.append(read_background(tmp_path / str(shards)))
    assert kept[0].equals(kept[1])
    assert kept[0].num_rows == 256
    assert set(kept[0].column_names) == set(training_rows.FEATURES)
    assert (tmp_path / "1" / FILE).stat().st_size < 20_000
    write_background(tmp_path / "1", rows, texts, count=10_000)
    every = read_background(tmp_path / "1")
    assert every.num_rows == 6_000
    assert set(every["carrier"].to_pylist()) == {"AA", "BB", "CC", "DD", None}  # "RARE" is left out


def test_a_background_that_cannot_be_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="keeps no training rows to compare with"):
        read_background(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"rows.csv must be a Parquet file of rows with features"):
        read_background(tmp_path / "rows.csv")
    pq.write_table(BACKGROUND.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(ConfigurationError, match="has no rows"):
        read_background(tmp_path / "none.parquet")
