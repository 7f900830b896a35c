"""Train a kind of model on training rows, or on a part of their rows or columns, and ask it about the test split.

What was found is kept in a folder, one array a name, so that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.baselines import GradientBoosting
from training.boosted_trees import BoostedTrees, BoostedTreesOptions
from training.options import WideAndDeepOptions
from training.recipe import rows_digest
from training.rows import ENVELOPE, LABEL, SPLITS, TrainingRows, number_column, open_rows
from training.statistics import compute_statistics

Array = npt.NDArray[Any]

LIBRARY = "HistGradientBoosting"
"""scikit-learn's, with its own defaults: what has to be beaten."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a model says of the test rows: scores float [rows], and how many numbers it has learned."""

    scores: Array
    weights: int


def learn(rows: TrainingRows, kind: str, options: Mapping[str, Any], seed: int) -> Learned:
    """Train ``kind`` (of `training.options.KINDS`, or `LIBRARY`) and ask it about the test split."""
    if kind == LIBRARY:
        library = GradientBoosting(rows, compute_statistics(rows), seed)
        return Learned(library.predict(rows.table("test")), 0)
    if kind == "boosted_trees":
        trees = BoostedTrees(rows, BoostedTreesOptions.from_mapping(options, rows.numbers), seed)
        leaves = sum(int(tree.nodes["is_leaf"].sum()) for (tree,) in trees.model._predictors)
        return Learned(trees.predict(rows.table("test")), leaves)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    from training.batches import ShuffledBatches
    from training.fit import fit

    chosen = WideAndDeepOptions.from_mapping(options, rows.numbers, rows.texts, kind)
    statistics = compute_statistics(rows, buckets=chosen.buckets, min_rows=chosen.min_rows)
    batches = ShuffledBatches(rows, batch_rows=chosen.batch_rows, seed=seed)
    model, _ = fit(rows, statistics, chosen, batches, seed, lambda *_: None, kind=kind)
    predict = tf.function(lambda numbers, texts: tf.sigmoid(model([numbers, texts], training=False)))
    scores = []
    test = rows.table("test")  # in the order that the others are asked in
    for start in range(0, len(test), 8_192):
        part = test.slice(start, 8_192)
        numbers, texts, _ = rows.packed(part).take(np.arange(len(part)))
        strings = tf.constant(texts.reshape(-1).tolist(), tf.string, shape=texts.shape)
        scores.append(predict(numbers, strings).numpy()[:, 0])
    return Learned(np.concatenate(scores), sum(int(np.prod(one.shape)) for one in model.trainable_variables))


def test_labels(rows: TrainingRows) -> Array:
    """bool [rows], in the order of `Learned.scores`."""
    return number_column(rows.table("test", [LABEL])[LABEL]).astype(bool)


@contextmanager
def part_of(
    rows: TrainingRows, *, without: Sequence[str] = (), share: float = 1.0, seed: int = 1
) -> Iterator[TrainingRows]:
    """The same rows without some features, or with a share of the training split drawn by chance."""
    with tempfile.TemporaryDirectory(prefix="sameriver-") as folder:
        kept = [name for name in dict.fromkeys(_column(rows, one.name) for one in rows.features) if name not in without]
        for split in SPLITS:
            table = pa.concat_tables([pq.read_table(path) for path in rows.shards[split]])
            metadata = table.schema.metadata
            table = table.select([*ENVELOPE, *kept, LABEL]).replace_schema_metadata(metadata)
            if split == "train" and share < 1:
                drawn = np.random.default_rng(seed).permutation(len(table))[: round(len(table) * share)]
                table = table.take(pa.array(np.sort(drawn)))
            (Path(folder) / split).mkdir()
            pq.write_table(table, Path(folder) / split / "part.parquet")
        yield open_rows(folder)


def _column(rows: TrainingRows, feature: str) -> str:
    return next((name for name, places in rows.lists.items() if feature in places), feature)


class Kept:
    """Answers by name, in a folder that belongs to the rows' bytes.

    Args:
        folder: holds a folder for each digest of rows.
        rows: the rows.
    """

    def __init__(self, folder: Path, rows: TrainingRows) -> None:
        self._folder = folder / rows_digest(rows)[:12]
        self._folder.mkdir(parents=True, exist_ok=True)

    def path(self, **what: Any) -> Path:
        """Where the answer to ``what`` is, or will be."""
        name = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()
        return self._folder / f"{name}.npz"

    def learned(self, rows: TrainingRows, kind: str, options: Mapping[str, Any], seed: int, **part: Any) -> Learned:
        """As `learn` on `part_of` the rows, or as it was found before."""
        path = self.path(kind=kind, options=options, seed=seed, part=part)
        if path.is_file():
            with np.load(path) as held:
                return Learned(held["scores"], int(held["weights"]))
        if part:
            with part_of(rows, **part) as fewer:
                found = learn(fewer, kind, options, seed)
        else:
            found = learn(rows, kind, options, seed)
        beside = path.with_name(f".{path.name}")
        with beside.open("wb") as file:
            np.savez(file, scores=found.scores, weights=np.array(found.weights))
        beside.replace(path)
        return found
