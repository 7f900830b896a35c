"""How fast training rows come, beside how fast the model takes them: rows a second of tf.data alone and of training.

python -m benchmarks.training_input --rows var/training/flights
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click
import numpy as np

from shared_features import load_app
from training.batches import ShuffledBatches
from training.options import WideAndDeepOptions
from training.rows import open_rows
from training.statistics import compute_statistics


@click.command()
@click.option("--rows", type=click.Path(path_type=Path), default=Path("var/training/flights"), show_default=True)
@click.option("--batches", "count", default=150, show_default=True, help="Measured, after 10 that are not.")
@click.option("--batch-rows", default=1024, show_default=True)
def main(rows: Path, count: int, batch_rows: int) -> None:
    """Print rows a second, as one JSON object."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from training import fit, wide_and_deep

    opened, app = open_rows(rows), load_app("flights")
    options = WideAndDeepOptions.from_mapping(app.models[0].options, opened.numbers, opened.texts)
    batches = ShuffledBatches(opened, batch_rows=batch_rows, seed=1)
    count = min(count, batches.batches - 10)
    signature = fit.signature_of(opened)
    model = wide_and_deep.build(compute_statistics(opened), options)
    optimizer = fit.optimizer_of(options, 4 * batches.batches, batches.batches)
    step = tf.function(fit.step_of(model, optimizer, fit.ALONE), input_signature=signature)

    def rate(consume: bool, come: bool) -> float:
        """Batches come from the pipeline, or are the same one over and over; the model takes them, or nobody does."""
        source = iter(fit.batches_of(batches, 1, signature))
        kept = next(source)
        for _ in range(10):
            step(*kept) if consume else next(source)
        started = time.perf_counter()
        for _ in range(count):
            batch = next(source) if come else kept
            if consume:
                step(*batch)
        return count * batch_rows / (time.perf_counter() - started)

    found = {
        "input_rows_per_s": rate(consume=False, come=True),
        "model_rows_per_s": rate(consume=True, come=False),
        "training_rows_per_s": rate(consume=True, come=True),
    }
    found["input_per_model"] = found["input_rows_per_s"] / found["model_rows_per_s"]
    click.echo(json.dumps({name: float(np.round(value, 2)) for name, value in found.items()}))


if __name__ == "__main__":
    main()
