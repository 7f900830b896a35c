"""The wide & deep model (Cheng et al., 2016, arXiv:1606.07792) with everything a raw feature needs inside.

    numbers ─┬─ quantile steps, missing ──────────────┐
             ├─ piecewise linear, scaled, missing ─┐  │
    texts ───┼─ embeddings ────────────────────────┴──┼── dense layers, residual ── deep ─┐
             ├─ one weight a value ───────────────────┼── wide ──────────────────────────┴─ logit
             └─ crosses ──────────────────────────────┘

Numbers go into the deep part by the piecewise linear encoding of Gorishniy, Rubachev and Babenko (2022,
arXiv:2203.05556): between two quantiles the encoding moves from 0 to 1, so that a network of plain dense
layers bends where the data is; it is flat outside the range seen in training, so nothing is extrapolated.

Importing this module loads TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from shared_features.errors import ConfigurationError
from training.options import WideAndDeepOptions
from training.sequences import convolved
from training.statistics import NumberStatistics, Statistics, TextStatistics

MISSING_TEXT, UNSEEN_TEXT, FIRST_TEXT = 0, 1, 2
SCALED_LIMIT = 4.0
MOST = 1e38
"""Of a quantile, so that the difference of two is a float32, too."""


class NumberEncoding(keras.layers.Layer):  # type: ignore[misc]
    """Encode numbers [rows, n] (float32; NaN or infinite is missing) by constants of the training split.

    A missing number takes the mean; where training saw missing values, an indicator says so.

    Returns from ``call``:
        steps: float32 [rows, sum of buckets], 1 where the value is at or above a quantile.
        dense: float32 [rows, …], piecewise linear encoding, scaled values in [-4, 4], indicators.
        places: int64 [rows, n], quantile bucket from 1, 0 where missing.
    """

    def __init__(self, statistics: list[NumberStatistics]) -> None:
        super().__init__(name="number_encoding")
        edges = [_edges(one.quantiles) for one in statistics]
        self.sizes = [max(len(one) - 1, 0) + 2 for one in edges]
        self._count = count = len(edges)
        bent = np.repeat(np.arange(count), [size - 2 for size in self.sizes])
        nullable = np.array([i for i, one in enumerate(statistics) if one.missing > 0], np.int64)
        lower, upper = _upright([one[:-1] for one in edges]), _upright([one[1:] for one in edges])
        flags = np.ones((len(nullable), 1), np.float32)
        inverse_std = _upright([[1 / one.std if one.std > 0 else 0.0] for one in statistics])
        limit = np.full((count, 1), SCALED_LIMIT, np.float32)
        self._mean = _upright([[one.mean] for one in statistics])
        self._bends, self._step_rows = len(bent), np.concatenate([bent, count + nullable])
        self._step_at = np.concatenate([upper, flags])
        self._dense_rows = np.concatenate([bent, np.arange(count), count + nullable])
        self._origin = np.concatenate([lower, self._mean, 0 * flags])
        self._slope = np.concatenate([1 / (upper - lower), inverse_std, flags])
        self._least = np.concatenate([0 * lower, -limit, 0 * flags])
        self._most = np.concatenate([0 * lower + 1, limit, flags])

    def call(self, numbers: Any) -> tuple[Any, Any, Any]:
        """See the class. Works on columns that lie as rows: TensorFlow gathers those whole, others value by value."""
        columns = tf.transpose(numbers)
        present = tf.math.is_finite(columns)
        filled = tf.where(present, columns, self._mean)
        known = tf.concat([filled, 1 - tf.cast(present, tf.float32)], axis=0)
        steps = tf.cast(tf.gather(known, self._step_rows) >= self._step_at, tf.float32)
        dense = (tf.gather(known, self._dense_rows) - self._origin) * self._slope
        dense = tf.clip_by_value(dense, self._least, self._most)
        bends = self._step_rows[: self._bends]
        passed = tf.cast(tf.math.unsorted_segment_sum(steps[: self._bends], bends, self._count), tf.int64)
        return tf.transpose(steps), tf.transpose(dense), tf.transpose(tf.where(present, 1 + passed, 0))


class TextPlaces(keras.layers.Layer):  # type: ignore[misc]
    """Look texts [rows, n] up: 0 for "" (missing), 1 for unseen or rare values, from 2 the vocabulary.

    Not ``keras.layers.StringLookup``: it refuses an empty vocabulary and one that contains its "[UNK]".
    """

    def __init__(self, statistics: list[TextStatistics]) -> None:
        super().__init__(name="text_places")
        self.sizes = [len(one.vocabulary) + FIRST_TEXT for one in statistics]
        self.tables = [_lookup(one) for one in statistics]

    def call(self, texts: Any) -> Any:
        """See the class; int64 [rows, n]."""
        columns = [table.lookup(texts[:, column]) for column, table in enumerate(self.tables)]
        return tf.stack(columns, axis=1)


class CrossPlaces(keras.layers.Layer):  # type: ignore[misc]
    """Combine pairs of places [rows, n]: int64 [rows, crosses], shared by remainder beyond a size.

    Args:
        pairs: columns to combine.
        sizes: number of places of each column.
        hash_buckets: greatest number of places of a cross (best a prime).
    """

    def __init__(self, pairs: list[tuple[int, int]], sizes: list[int], hash_buckets: int) -> None:
        super().__init__(name="cross_places")
        self._pairs = pairs
        self._all_sizes = sizes
        self.sizes = [min(sizes[a] * sizes[b], hash_buckets) for a, b in pairs]

    def call(self, places: Any) -> Any:
        """See the class."""
        crossed = [
            tf.math.floormod(places[:, a] * self._all_sizes[b] + places[:, b], size)
            for (a, b), size in zip(self._pairs, self.sizes, strict=True)
        ]
        return tf.stack(crossed, axis=1)


class Column(keras.layers.Layer):  # type: ignore[misc]
    """One column of a matrix: [rows, n] to [rows]."""

    def __init__(self, column: int) -> None:
        super().__init__()
        self._column = column

    def call(self, matrix: Any) -> Any:
        """See the class."""
        return matrix[:, self._column]


class Columns(keras.layers.Layer):  # type: ignore[misc]
    """Some columns of a matrix: [rows, n] to [rows, columns]."""

    def __init__(self, columns: Sequence[int]) -> None:
        super().__init__()
        self._columns = np.array(columns, np.int64)

    def call(self, matrix: Any) -> Any:
        """See the class."""
        return tf.gather(matrix, self._columns, axis=1)


class OneHot(keras.layers.Layer):  # type: ignore[misc]
    """Places [rows] to float32 [rows, size], 1 at the place."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def call(self, places: Any) -> Any:
        """See the class."""
        return tf.one_hot(places, self._size)


class Bias(keras.layers.Layer):  # type: ignore[misc]
    """Adds one trained number to logits [rows, 1].

    Args:
        start: what it is before training.
    """

    def __init__(self, start: float) -> None:
        super().__init__(name="bias")
        self._bias = self.add_weight(shape=(1,), initializer=keras.initializers.Constant(start), name="bias")

    def call(self, logits: Any) -> Any:
        """See the class."""
        return logits + self._bias


def build(
    statistics: Statistics,
    options: WideAndDeepOptions,
    kind: str = "wide_and_deep",
    lists: Mapping[str, Sequence[str]] | None = None,
) -> keras.Model:
    """The untrained model: (numbers float32 [rows, n], texts string [rows, m]) to logits float32 [rows, 1].

    Columns are in the order of ``statistics.numbers`` and ``statistics.texts``. Of the kind ``deep`` it has the deep
    part only, of the kind ``logistic`` the wide one, of the kind ``cnn`` the deep one with what `training.sequences`
    makes of ``lists`` (list feature to the names of its numbers) in place of the lists' numbers.

    Raises:
        ConfigurationError: a ``cnn`` without lists.
    """
    lists = dict(lists or {}) if kind == "cnn" else {}
    if kind == "cnn" and not lists:
        raise ConfigurationError(
            "A model of the kind cnn needs features that are lists, but there are none: add one to the app, such as "
            "last_values(value, 16, by=key, over=...)."
        )
    names = [*statistics.numbers, *statistics.texts]
    numbers = keras.Input((len(statistics.numbers),), dtype="float32", name="numbers")
    texts = keras.Input((len(statistics.texts),), dtype="string", name="texts")
    wide, deep, places, sizes = [], [], [], []
    listed = {place for name in lists for place in lists[name]}
    plain = [column for column, name in enumerate(statistics.numbers) if name not in listed]
    if plain:
        encoding = NumberEncoding([statistics.numbers[names[column]] for column in plain])
        steps, dense, buckets = encoding(Columns(plain)(numbers) if lists else numbers)
        wide.append(keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="wide")(steps))
        deep.append(dense)
        places.append(buckets)
        sizes += encoding.sizes
    if lists:
        deep += convolved(numbers, names, lists, statistics.numbers, options.filters, options.kernel)
    if statistics.texts:
        lookup = TextPlaces(list(statistics.texts.values()))
        found = lookup(texts)
        places.append(found)
        for column, (name, size) in enumerate(zip(statistics.texts, lookup.sizes, strict=True)):
            place = Column(column)(found)
            if options.embeddings is None or name in options.embeddings:
                width = min(options.embedding, (size + 1) // 2)
                deep.append(keras.layers.Embedding(size, width, name=f"embedding_{column}")(place))
            else:
                deep.append(OneHot(size)(place))
            wide.append(_weight_of_each(size, f"wide_text_{column}")(place))
        sizes += lookup.sizes
    if options.crosses:
        pairs = [(names.index(a), names.index(b)) for a, b in options.crosses]
        cross = CrossPlaces(pairs, sizes, options.cross_hash_buckets)
        crossed = cross(keras.layers.Concatenate()(places) if len(places) > 1 else places[0])
        for column, size in enumerate(cross.sizes):
            wide.append(_weight_of_each(size, f"wide_cross_{column}")(Column(column)(crossed)))
    start = keras.initializers.Constant(_log_odds(statistics.positives))
    if kind == "logistic":
        logit = keras.layers.Add()(wide) if len(wide) > 1 else wide[0]
        return keras.Model([numbers, texts], Bias(_log_odds(statistics.positives))(logit), name=kind)
    hidden = keras.layers.Concatenate()(deep) if len(deep) > 1 else deep[0]
    for units in options.units:
        layer = keras.layers.Dense(units, activation="relu")(hidden)
        layer = keras.layers.Dropout(options.dropout)(layer)
        hidden = keras.layers.Add()([layer, hidden]) if hidden.shape[-1] == units else layer
    logit = keras.layers.Dense(1, bias_initializer=start, name="deep")(hidden)
    if kind in ("deep", "cnn"):
        return keras.Model([numbers, texts], logit, name=kind)
    wide.append(logit)
    return keras.Model([numbers, texts], keras.layers.Add(name="logit")(wide), name="wide_and_deep")


def _weight_of_each(size: int, name: str) -> keras.layers.Layer:
    return keras.layers.Embedding(size, 1, embeddings_initializer="zeros", name=name)


def _edges(quantiles: tuple[float, ...]) -> npt.NDArray[np.float32]:
    edges = np.unique(np.clip(quantiles, -MOST, MOST).astype(np.float32))
    if len(edges) < 2:
        return edges
    apart = np.diff(edges) > np.finfo(np.float32).tiny * 8  # closer ones would have an infinite slope
    kept: npt.NDArray[np.float32] = edges[np.concatenate([[True], apart])]
    return kept


def _upright(parts: Sequence[Sequence[float] | npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Numbers one after the other as a column, float32 [n, 1]."""
    return np.concatenate([np.zeros(0, np.float32), *parts], dtype=np.float32)[:, None]


def _lookup(statistics: TextStatistics) -> Any:
    keys = ["", *(value for value, _ in statistics.vocabulary)]
    places = [MISSING_TEXT, *range(FIRST_TEXT, FIRST_TEXT + len(statistics.vocabulary))]
    content = tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.string), tf.constant(places, tf.int64))
    return tf.lookup.StaticHashTable(content, default_value=UNSEEN_TEXT)


def _log_odds(share: float) -> float:
    inside = min(max(share, 1e-6), 1 - 1e-6)
    return float(np.log(inside / (1 - inside)))
