"""A small model of the eighteen features, exported as `sameriver train` does, with weights that nobody has trained.

python -m benchmarks.vessels.export FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.vessels.app import app
from shared_features.fingerprint import canonical


def main(folder: Path) -> None:
    """Write ``slow/1`` below ``folder``: a wide & deep network with one hidden layer of 8."""
    import keras

    from training.export import write_saved_model
    from training.options import WideAndDeepOptions
    from training.rows import Feature, TrainingRows
    from training.statistics import NumberStatistics, Statistics
    from training.wide_and_deep import build

    features = tuple(Feature(name, "number") for name in app.features)
    rows = TrainingRows(folder, app.name, app.fingerprint, canonical(app.definitions), features, {}, {})
    number = NumberStatistics(1_000, 0.1, 8.0, 4.0, tuple(float(edge) for edge in range(0, 40, 5)))
    keras.utils.set_random_seed(1)
    model = build(Statistics(1_000, 0.3, dict.fromkeys(app.features, number), {}), WideAndDeepOptions(units=(8,)))
    write_saved_model(model, rows, folder / "slow" / "1")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
