"""Gradient descent on shuffled batches, with early stopping on the validation split.

Importing this module loads TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training import wide_and_deep
from training.batches import ShuffledBatches
from training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.metrics import log_loss, rank_auc
from training.options import WideAndDeepOptions
from training.rows import TrainingRows
from training.statistics import Statistics

PROGRESS_BATCHES = 20
PREFETCHED_BATCHES = 4


def fit(
    rows: TrainingRows,
    statistics: Statistics,
    options: WideAndDeepOptions,
    batches: ShuffledBatches,
    seed: int,
    tell: Callable[[float, str], None],
    *,
    kind: str = "wide_and_deep",
    checkpoint: Path | None = None,
) -> tuple[keras.Model, list[dict[str, float]]]:
    """Train a model; sets TensorFlow's seed and deterministic operations for the whole process.

    Args:
        rows: their validation split is measured after each epoch.
        statistics: constants of the training split.
        options: of the model and of its training.
        batches: of the training split.
        seed: of weights and dropout.
        tell: called with the share done, in [0, 1], and one line for people.
        kind: of the model, see `training.wide_and_deep.build`.
        checkpoint: file that holds everything after each epoch; training goes on from it where it is there, and
            ends as if it had never been stopped.

    Returns:
        The model with the weights of the epoch of the lowest validation log loss, and what was measured after
        each epoch.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    model = wide_and_deep.build(statistics, options, kind, rows.lists)
    steps = batches.batches * options.epochs
    signature = (
        tf.TensorSpec([None, len(rows.numbers)], tf.float32),
        tf.TensorSpec([None, len(rows.texts)], tf.string),
        tf.TensorSpec([None], tf.float32),
    )
    optimizer = _optimizer(options, steps, batches.batches)
    step = tf.function(_step_of(model, optimizer), input_signature=signature)
    predict = tf.function(
        lambda numbers, texts: tf.sigmoid(model([numbers, texts], training=False)), input_signature=signature[:2]
    )
    best: tuple[float, list[npt.NDArray[Any]]] | None = None
    measured: list[dict[str, float]] = []
    worse = done = first = 0
    variables = [*model.variables, *optimizer.variables]
    if checkpoint is not None and (found := read_checkpoint(checkpoint, variables)) is not None:
        measured, worse, done, first, best = found.measured, found.worse, found.done, found.epoch, found.best
        tell(done / steps, f"going on after epoch {first} of {options.epochs}")
    for epoch in range(first + 1, options.epochs + 1):
        if worse >= options.patience:
            break
        losses = []
        for batch in _batches_of(batches, epoch, signature):
            losses.append(step(*batch))
            done += 1
            if done % PROGRESS_BATCHES == 0:
                tell(done / steps, f"epoch {epoch} of {options.epochs}")
        labels, probabilities = _validate(rows, predict)
        loss = log_loss(labels, probabilities)
        auc = rank_auc(labels, probabilities)
        train_loss = float(np.mean([one.numpy() for one in losses]))
        measured.append({"train_log_loss": train_loss, "validate_log_loss": loss, "validate_auc": auc})
        if best is None or loss < best[0]:
            best, worse = (loss, model.get_weights()), 0
        else:
            worse += 1
        if checkpoint is not None:
            write_checkpoint(checkpoint, variables, Checkpoint(epoch, done, worse, measured, best))
        tell(done / steps, f"epoch {epoch} of {options.epochs}: validation log loss {loss:.4f}, AUC {auc:.4f}")
    assert best is not None
    model.set_weights(best[1])
    return model, measured


def _optimizer(options: WideAndDeepOptions, steps: int, steps_of_epoch: int) -> keras.optimizers.Optimizer:
    warmup = min(max(1, steps_of_epoch // 2), max(1, steps - 1))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=options.learning_rate, warmup_steps=warmup
    )
    return keras.optimizers.AdamW(rate, weight_decay=options.weight_decay)


def _step_of(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Callable[..., Any]:
    optimizer.build(model.trainable_variables)

    def step(numbers: Any, texts: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tf.reshape(model([numbers, texts], training=True), [-1])
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def _batches_of(batches: ShuffledBatches, epoch: int, signature: tuple[Any, ...]) -> Any:
    dataset = tf.data.Dataset.from_generator(lambda: batches.epoch(epoch), output_signature=signature)
    return dataset.prefetch(PREFETCHED_BATCHES)


def _validate(rows: TrainingRows, predict: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    labels, probabilities = [], []
    for block in rows.blocks("validate"):
        numbers, texts, truth = rows.packed(block).take(np.arange(block.num_rows))
        strings = tf.constant(texts.reshape(-1).tolist(), tf.string, shape=texts.shape)
        labels.append(truth)
        probabilities.append(predict(numbers, strings).numpy()[:, 0])
    return np.concatenate(labels), np.concatenate(probabilities)
