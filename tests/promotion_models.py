"""Version 1 and version 2 of the model of `tests.promotion`, exported as `sameriver train` does, and their answers.

Their vocabularies number the carriers differently: UA is the first of version 1 and the last of version 2. What each
model answers in the process that made it is kept beside them, for comparison with what is served.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shared_features import load_app
from shared_features.fingerprint import canonical

CARRIERS = ["UA", "AA", "DL", "never seen", ""]
VOCABULARIES = {1: ["UA", "AA"], 2: ["AA", "DL", "UA"]}
APPS = {1: "before", 2: "after"}
DELAY = 12.5


def main(folder: Path) -> None:
    """Write ``chance/1``, ``chance/2`` and ``answers.json``: version -> carrier -> probability at `DELAY`."""
    import keras
    import tensorflow as tf

    from training.export import write_saved_model
    from training.options import WideAndDeepOptions
    from training.rows import Feature, TrainingRows
    from training.statistics import NumberStatistics, Statistics, TextStatistics
    from training.wide_and_deep import build

    answers: dict[int, dict[str, float]] = {}
    for version, vocabulary in VOCABULARIES.items():
        app = load_app(str(Path(__file__).parent / "promotion" / APPS[version]))
        numbers = [name for name in app.features if name != "carrier"]
        features = tuple(Feature(name, "text" if name == "carrier" else "number") for name in app.features)
        rows = TrainingRows(folder, app.name, app.fingerprint, canonical(app.definitions), features, {}, {})
        number = NumberStatistics(100, 0.1, 10.0, 5.0, tuple(float(edge) for edge in range(0, 40, 5)))
        text = TextStatistics(100, 0.1, 5, tuple((carrier, 10) for carrier in vocabulary))
        statistics = Statistics(100, 0.3, dict.fromkeys(numbers, number), {"carrier": text})
        keras.utils.set_random_seed(version)
        model = build(statistics, WideAndDeepOptions(units=(8,)))
        for weight in model.trainable_variables:
            weight.assign(keras.random.normal(weight.shape, seed=version))
        write_saved_model(model, rows, folder / "chance" / str(version))
        # The first flight of its carrier: its delay is the mean, and it is one flight.
        row = [DELAY, DELAY, 1.0][: len(numbers)]
        texts = tf.constant([[carrier] for carrier in CARRIERS])
        logits = model([tf.constant([row] * len(CARRIERS), tf.float32), texts], training=False)
        found = tf.sigmoid(tf.reshape(logits, [-1])).numpy().tolist()
        answers[version] = dict(zip(CARRIERS, found, strict=True))
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
