"""Gradient descent on shuffled batches, averaged weights, and early stopping on the validation split.

Importing this module loads TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from shared_features.errors import ConfigurationError
from training import wide_and_deep
from training.batches import ShuffledBatches
from training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from training.event_log import UNLOGGED, EventLog
from training.metrics import log_loss, rank_auc
from training.options import WideAndDeepOptions
from training.rows import TrainingRows
from training.statistics import Statistics
from training.together import Alone, Together

PROGRESS_BATCHES = 20
PREFETCHED_BATCHES = 4
ALONE = Alone()


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
    log: EventLog = UNLOGGED,
    workers: Together = ALONE,
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
        log: takes figures, of the last batch now and then and of every epoch.
        workers: that train this model together, each with batches of its rows; the first writes the checkpoint,
            which all must see.

    Returns:
        The model with the averaged weights (see `optimizer_of`) of the epoch of the lowest validation log loss, and
        what was measured of them after each epoch.

    Raises:
        ConfigurationError: workers do not see the same checkpoint.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    model = wide_and_deep.build(statistics, options, kind, rows.lists)
    steps = batches.batches * options.epochs
    signature = signature_of(rows)
    optimizer = optimizer_of(options, steps, batches.batches)
    step = tf.function(step_of(model, optimizer, workers), input_signature=signature)
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
    _require_same_beginning(workers, first)
    for epoch in range(first + 1, options.epochs + 1):
        if worse >= options.patience:
            break
        losses = []
        for batch in batches_of(batches, epoch, signature):
            losses.append(step(*batch))
            done += 1
            if done % PROGRESS_BATCHES == 0:
                tell(done / steps, f"epoch {epoch} of {options.epochs}")
                log(done, {"batch/train_log_loss": losses[-1]})
        trained = model.get_weights()
        optimizer.finalize_variable_values(model.trainable_variables)
        averaged = model.get_weights()
        labels, probabilities = _validate(rows, predict, workers)
        model.set_weights(trained)
        loss = log_loss(labels, probabilities)
        auc = rank_auc(labels, probabilities)
        train_loss = float(np.mean([one.numpy() for one in losses]))
        measured.append({"train_log_loss": train_loss, "validate_log_loss": loss, "validate_auc": auc})
        log(done, {f"epoch/{name}": value for name, value in measured[-1].items()})
        if best is None or loss < best[0]:
            best, worse = (loss, averaged), 0
        else:
            worse += 1
        if checkpoint is not None and workers.rank == 0:
            write_checkpoint(checkpoint, variables, Checkpoint(epoch, done, worse, measured, best))
        tell(done / steps, f"epoch {epoch} of {options.epochs}: validation log loss {loss:.4f}, AUC {auc:.4f}")
    assert best is not None
    model.set_weights(best[1])
    return model, measured


def signature_of(rows: TrainingRows) -> tuple[Any, Any, Any]:
    """Of a batch: numbers, texts and labels."""
    return (
        tf.TensorSpec([None, len(rows.numbers)], tf.float32),
        tf.TensorSpec([None, len(rows.texts)], tf.string),
        tf.TensorSpec([None], tf.float32),
    )


def optimizer_of(options: WideAndDeepOptions, steps: int, steps_of_epoch: int) -> keras.optimizers.Optimizer:
    """AdamW with a rate that rises and falls, and with a moving average of the weights (Polyak and Juditsky, 1992).

    The average is what is judged. Early stopping compares epochs of which the first are trained at a high rate: by
    their last weights one of them wins that fits the validation split by luck. The average reaches back an epoch, or a
    quarter of a short training.
    """
    warmup = min(max(1, steps_of_epoch // 2), max(1, steps - 1))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=options.learning_rate, warmup_steps=warmup
    )
    reach = max(1, min(steps_of_epoch, steps // 4))
    return keras.optimizers.AdamW(rate, weight_decay=options.weight_decay, use_ema=True, ema_momentum=1 - 1 / reach)


def _require_same_beginning(workers: Together, epoch: int) -> None:
    """Refuse workers of which some begin from a checkpoint and others do not: they would train different models."""
    if (
        not isinstance(workers, Alone)
        and float(workers.add_up(tf.constant([epoch], tf.float32))[0]) != epoch * workers.workers
    ):
        raise ConfigurationError(
            f"worker {workers.rank + 1} of {workers.workers} goes on after epoch {epoch}, others after another: give "
            "all the same folder of models, on storage that they share"
        )


def step_of(model: keras.Model, optimizer: keras.optimizers.Optimizer, workers: Together) -> Callable[..., Any]:
    variables, alone = model.trainable_variables, isinstance(workers, Alone)
    optimizer.build(variables)

    def step(numbers: Any, texts: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tf.reshape(model([numbers, texts], training=True), [-1])
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
            # Of several workers each has a part of the batch, which may be empty: sums add up, means do not.
            loss = tf.reduce_mean(losses) if alone else tf.reduce_sum(losses)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        if not alone:
            *sums, rows = _added_up([*gradients, loss, tf.cast(tf.size(labels), tf.float32)], workers)
            *gradients, loss = [_divided(total, rows) for total in sums]
        optimizer.apply(gradients, variables)
        return loss

    return step


def _divided(total: Any, by: Any) -> Any:
    if isinstance(total, tf.IndexedSlices):
        return tf.IndexedSlices(total.values / by, total.indices, total.dense_shape)
    return total / by


def _added_up(tensors: Sequence[Any], workers: Together) -> list[Any]:
    """The sums of all workers' tensors, by one call.

    The gradient of an embedding is that of the rows that the batch names; Keras's optimizer leaves the other rows and
    their moments alone. So it is told which rows the whole batch names, each once. (Of one worker Keras 3.15 gets a
    row as often as the batch names it, and squares each part by itself: its second moment is then smaller.)
    """
    parts = []
    for one in tensors:
        parts.append(tf.convert_to_tensor(one))
        if isinstance(one, tf.IndexedSlices):
            named = tf.ones_like(one.indices, tf.float32)
            parts.append(tf.math.unsorted_segment_sum(named, one.indices, parts[-1].shape[0]))
    total = workers.add_up(tf.concat([tf.reshape(one, [-1]) for one in parts], 0))
    sums = iter(
        tf.reshape(part, one.shape)
        for part, one in zip(tf.split(total, [one.shape.num_elements() for one in parts]), parts, strict=True)
    )
    found: list[Any] = []
    for one in tensors:
        added = next(sums)
        if isinstance(one, tf.IndexedSlices):
            rows = tf.where(next(sums) > 0)[:, 0]
            added = tf.IndexedSlices(tf.gather(added, rows), rows, tf.shape(added))
        found.append(added)
    return found


def batches_of(batches: ShuffledBatches, epoch: int, signature: tuple[Any, ...]) -> Any:
    dataset = tf.data.Dataset.from_generator(lambda: batches.epoch(epoch), output_signature=signature)
    return dataset.prefetch(PREFETCHED_BATCHES)


def _validate(rows: TrainingRows, predict: Any, workers: Together) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Labels and predictions of the validation split; several workers take its blocks in turn and add zeros."""
    labels, probabilities = [], []
    for number, block in enumerate(rows.blocks("validate")):
        numbers, texts, truth = rows.packed(block).take(np.arange(block.num_rows))
        labels.append(truth)
        if number % workers.workers != workers.rank:
            probabilities.append(np.zeros(block.num_rows, np.float32))
            continue
        strings = tf.constant(texts.reshape(-1).tolist(), tf.string, shape=texts.shape)
        probabilities.append(predict(numbers, strings).numpy()[:, 0])
    predicted = workers.add_up(tf.constant(np.concatenate(probabilities)))
    return np.concatenate(labels), predicted.numpy()
