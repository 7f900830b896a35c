"""What a model's features and predictions looked like in training, as mergeable sketches of their distributions.

KLL sketches (Karnin, Lang and Liberty, 2016) of Apache DataSketches, one a number: 23 KB whatever the rows, ranks wrong
by at most 0.3 % of them. They lie beside the model's summary in DataSketches' own format, which its libraries for Java
and C++ read too. Features are sketched over the training split, predictions over the rows that the model was not
trained on. KLL draws by chance, so that two trainings on the same rows sketch a little differently; what is compared
with a sketch later depends on its bytes only.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasketches
import numpy as np
import numpy.typing as npt

from shared_features.errors import ConfigurationError
from training.export import SUMMARY, read_summary
from training.rows import TrainingRows, number_column

PRECISION = 1_024
FILE = SUMMARY.with_name("sketches.json")


def sketch_of(values: npt.NDArray[Any]) -> Any:
    """A sketch of values [rows]; NaN is missing and left out."""
    sketch = datasketches.kll_doubles_sketch(PRECISION)
    sketch.update(values[~np.isnan(values)].astype(np.float64))
    return sketch


def write_sketches(folder: Path, rows: TrainingRows, predictions: Mapping[str, npt.NDArray[Any]]) -> None:
    """Sketch the training split and predictions, and put it into a version's folder.

    Args:
        folder: of the version.
        rows: whose ``train`` split is read once.
        predictions: output to its values over rows that the model was not trained on.
    """
    sketches = {name: sketch_of(np.empty(0)) for name in rows.numbers}
    for block in rows.blocks("train"):
        for name, sketch in sketches.items():
            sketch.merge(sketch_of(number_column(block[name])))
    outputs = {name: sketch_of(values) for name, values in predictions.items()}
    held = {"features": _texts(sketches), "predictions": _texts(outputs)}
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(held), encoding="utf-8")


def read_reference(folder: Path) -> dict[str, Any]:
    """What `batch.drift.Drift` compares with: the model's statistics, each number with its ``sketch``.

    ``numbers`` and ``texts`` are features, ``predictions`` the model's outputs.

    Raises:
        ConfigurationError: the model was not trained on rows, or before sketches were written; or they are damaged.
    """
    statistics, path = read_summary(folder).get("statistics"), folder / FILE
    if not isinstance(statistics, dict) or not path.is_file():
        raise ConfigurationError(
            f"model {folder} tells nothing of its training data: wanted one that `sameriver train` trained on rows"
        )
    try:
        held = json.loads(path.read_text("utf-8"))
        numbers = {
            name: {**said, "sketch": _sketch(held["features"][name])} for name, said in statistics["numbers"].items()
        }
        outputs = {name: _sketch(text) for name, text in held["predictions"].items()}
    except (ValueError, KeyError, RuntimeError) as error:
        raise ConfigurationError(f"sketches {path} are damaged ({error}): train the model again") from error
    predictions = {name: {"rows": one.n, "missing": 0.0, "sketch": one} for name, one in outputs.items()}
    return {"numbers": numbers, "texts": statistics["texts"], "predictions": predictions}


def _texts(sketches: Mapping[str, Any]) -> dict[str, str]:
    return {name: base64.b64encode(sketch.serialize()).decode() for name, sketch in sketches.items()}


def _sketch(text: str) -> Any:
    return datasketches.kll_doubles_sketch.deserialize(base64.b64decode(text))
