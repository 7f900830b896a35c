"""A small convolutional network over the last n events of a key, as features like ``last_values(speed, 16)`` hold them.

    lists of n numbers ── scaled, missing ── oldest first ── convolution ── convolution ─┬─ greatest ─┐
                                                                                         └─ mean ─────┴─ deep part

Lists of the same length go side by side, as channels; each length has a network of its own. A place of which there is
no event yet is 0 with an indicator beside it, and takes no part in the greatest and the mean.

Importing this module loads TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training.statistics import NumberStatistics

SCALED_LIMIT = 4.0


class Sequences(keras.layers.Layer):  # type: ignore[misc]
    """Numbers float32 [rows, n] to float32 [rows, steps, 2 · lists]: scaled values, then 1 where there is one.

    Args:
        columns: for each list its columns, newest first; all of one length.
        statistics: of the newest place of each list, by which all of its places are scaled.
    """

    def __init__(self, columns: Sequence[Sequence[int]], statistics: Sequence[NumberStatistics]) -> None:
        super().__init__()
        self._columns = np.array(columns, np.int64)[:, ::-1].T.copy()
        self._mean = np.array([one.mean for one in statistics], np.float32)
        self._inverse_std = np.array([1 / one.std if one.std > 0 else 0.0 for one in statistics], np.float32)

    def call(self, numbers: Any) -> Any:
        """See the class."""
        values = tf.gather(numbers, self._columns, axis=1)
        present = tf.math.is_finite(values)
        scaled = tf.clip_by_value((values - self._mean) * self._inverse_std, -SCALED_LIMIT, SCALED_LIMIT)
        return tf.concat([tf.where(present, scaled, 0.0), tf.cast(present, tf.float32)], axis=2)


class Pooled(keras.layers.Layer):  # type: ignore[misc]
    """(found [rows, steps, filters] of 0 or more, sequences) to [rows, 2 · filters]: greatest and mean over events."""

    def call(self, inputs: Any) -> Any:
        """See the class."""
        found, sequences = inputs
        lists = sequences.shape[2] // 2
        there = tf.reduce_max(sequences[:, :, lists:], axis=2, keepdims=True)
        kept = found * there
        mean = tf.math.divide_no_nan(tf.reduce_sum(kept, axis=1), tf.reduce_sum(there, axis=1))
        return tf.concat([tf.reduce_max(kept, axis=1), mean], axis=1)


def convolved(
    numbers: Any,
    names: Sequence[str],
    lists: Mapping[str, Sequence[str]],
    statistics: Mapping[str, NumberStatistics],
    filters: int,
    kernel: int,
) -> list[Any]:
    """What the networks make of all lists: float32 [rows, 2 · filters] for each length.

    Args:
        numbers: Keras tensor, float32 [rows, numbers].
        names: of its columns.
        lists: list feature to its places among ``names``, newest first.
        statistics: by number.
        filters: of each convolution.
        kernel: events that a filter sees at once.
    """
    found = []
    for length in sorted({len(places) for places in lists.values()}):
        same = [places for places in lists.values() if len(places) == length]
        columns = [[names.index(place) for place in places] for places in same]
        sequences = Sequences(columns, [statistics[places[0]] for places in same])(numbers)
        hidden = sequences
        for step in range(2):
            name = f"convolution_{length}_{step}"
            hidden = keras.layers.Conv1D(filters, kernel, padding="same", activation="relu", name=name)(hidden)
        found.append(Pooled()([hidden, sequences]))
    return found
