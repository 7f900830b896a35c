"""The two SavedModels of `sameriver bench serving`, exported by a process of its own.

python -m benchmarks.serving_export FOLDER

Both take 32 columns of numbers. ``large`` has four dense layers of 2,048: one row takes milliseconds, because all
weights (50 MB) pass through the processor for it, and 64 rows together take a few times as long. ``small`` has one
of 64, and takes as long as TensorFlow takes to run anything.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

COLUMNS = 32
MODELS = {"large": (2048, 2048, 2048, 2048), "small": (64,)}


def main(folder: Path) -> None:
    """Export both as version 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    names = [f"x{number:02}" for number in range(COLUMNS)]
    for name, layers in MODELS.items():
        module = tf.Module()
        sizes = [COLUMNS, *layers, 1]
        module.weights = [
            tf.Variable(tf.random.stateless_normal([rows, columns], [1, seed]) / rows**0.5)
            for seed, (rows, columns) in enumerate(itertools.pairwise(sizes))
        ]

        def predict(module: tf.Module = module, **columns: tf.Tensor) -> dict[str, tf.Tensor]:
            found = tf.stack([columns[one] for one in names], axis=1)
            for weights in module.weights[:-1]:
                found = tf.nn.relu(found @ weights)
            return {"score": tf.reshape(tf.sigmoid(found @ module.weights[-1]), [-1])}

        specs = {one: tf.TensorSpec([None], tf.float32, name=one) for one in names}
        signature = tf.function(predict).get_concrete_function(**specs)
        tf.saved_model.save(module, str(folder / name / "1"), signatures=signature)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
