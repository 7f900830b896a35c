"""Boosted trees as a graph of plain TensorFlow operations: all trees of all rows go down one level at a time.

Every decision is made into the same one, "is this column at most this threshold?", on a matrix with more columns than
there are features:

    0                      always 0, for leaves, which lead to themselves
    one a number           as it is: missing (NaN) is at most nothing and goes right
    one a number           with −∞ for missing, which goes left
    one a split by text    0 for the values that go left and 1 for the others, read from a table

The two children of a node stand side by side, so that the next node is the left child, or the one after it. Sums are
float64, as in the library.

Importing this module loads TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from shared_features.errors import ConfigurationError
from training.boosted_trees import BoostedTrees

Array = npt.NDArray[Any]

NODE_FIELDS = {"value", "feature_idx", "num_threshold", "missing_go_to_left", "left", "right", "is_leaf"}
NODE_FIELDS |= {"is_categorical", "bitset_idx"}


@dataclass(slots=True)
class _Nodes:
    """All nodes of all trees: the column that is asked, its threshold, the left child, the value of a leaf."""

    columns: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self) -> int:
        """A leaf of value 0; its place."""
        place = len(self.left)
        self.columns.append(0)
        self.thresholds.append(np.inf)
        self.left.append(place)
        self.values.append(0.0)
        return place


class TreeGraph:
    """A function from (numbers float32 [rows, n], texts string [rows, m]) to logits float64 [rows].

    Args:
        fitted: the trees.

    Raises:
        ConfigurationError: this version of scikit-learn keeps its trees in another way.
    """

    def __init__(self, fitted: BoostedTrees) -> None:
        self._texts = len(fitted.vocabularies)
        self._numbers = len(fitted.rows.numbers)
        self._sizes = [len(one) for one in fitted.vocabularies.values()]
        self._seen = fitted.seen
        self.tables = [_lookup(one) for one in fitted.vocabularies.values()]
        self.layers, self.variables = [self], list[Any]()  # what `training.export` asks of a model of Keras's
        self._sides: list[list[Array]] = [[] for _ in range(self._texts)]
        nodes, split_nodes = _Nodes(), list[tuple[int, int, int]]()
        roots, self._levels = [], 0
        try:
            trees = [trees for (trees,) in fitted.model._predictors]
            self._start = float(np.ravel(fitted.model._baseline_prediction)[0])
            if any(NODE_FIELDS - set(tree.nodes.dtype.names) for tree in trees):
                raise AttributeError("nodes")
            for tree in trees:
                roots.append(nodes.add())
                self._levels = max(self._levels, self._place(tree, roots[-1], nodes, split_nodes))
        except AttributeError as error:
            raise ConfigurationError(
                f"Boosted trees are exported from scikit-learn 1.7 to 1.9, but this one keeps its trees in another way "
                f"({error}): install what requirements.lock names."
            ) from error
        starts = np.cumsum([1 + 2 * self._numbers, *(len(one) for one in self._sides)])
        for place, text, split in split_nodes:
            nodes.columns[place] = int(starts[text]) + split
        self._links = np.column_stack([nodes.columns, nodes.left]).astype(np.int32)
        self._thresholds = _rounded_down(np.array(nodes.thresholds))
        self._values, self._roots = np.array(nodes.values), np.array(roots, np.int32)

    def __call__(self, features: list[Any], training: bool = False) -> Any:  # noqa: ARG002
        """See the class."""
        numbers, texts = features
        rows = tf.shape(numbers)[0]
        right = tf.where(tf.math.is_finite(numbers), numbers, np.nan)
        left = tf.where(tf.math.is_finite(numbers), numbers, -np.inf)
        asked = [tf.zeros([rows, 1]), right, left]
        for text, sides in enumerate(self._sides):
            if sides:
                places = self.tables[text].lookup(texts[:, text])
                asked.append(tf.gather(tf.constant(np.column_stack(sides)), places))
        matrix = tf.concat(asked, axis=1)
        at = tf.tile(tf.constant(self._roots)[None], [rows, 1])
        for _ in range(self._levels):
            link = tf.gather(tf.constant(self._links), at)
            value = tf.gather(matrix, link[:, :, 0], batch_dims=1)
            goes_left = value <= tf.gather(tf.constant(self._thresholds), at)
            at = link[:, :, 1] + tf.where(goes_left, 0, 1)
        return self._start + tf.reduce_sum(tf.gather(tf.constant(self._values), at), axis=1)

    def _place(self, tree: Any, root: int, nodes: _Nodes, split_nodes: list[tuple[int, int, int]]) -> int:
        """Add a tree's nodes; its number of levels below the root."""
        level, levels = [(0, root)], 0
        while level:
            below = []
            for number, place in level:
                node = tree.nodes[number]
                if node["is_leaf"]:
                    nodes.values[place] = float(node["value"])
                    continue
                feature, missing_left = int(node["feature_idx"]), bool(node["missing_go_to_left"])
                if node["is_categorical"]:
                    sides = self._side_of_each(feature, tree.raw_left_cat_bitsets[node["bitset_idx"]], missing_left)
                    split_nodes.append((place, feature, len(self._sides[feature])))
                    self._sides[feature].append(sides)
                    nodes.thresholds[place] = 0.5
                else:
                    nodes.columns[place] = 1 + feature - self._texts + (self._numbers if missing_left else 0)
                    nodes.thresholds[place] = float(node["num_threshold"])
                nodes.left[place] = nodes.add()
                below += [(int(node["left"]), nodes.left[place]), (int(node["right"]), nodes.add())]
            level, levels = below, levels + bool(below)
        return levels

    def _side_of_each(self, text: int, bits: Array, missing_left: bool) -> Array:
        """float32 [values + 1]: 0 for each value of a vocabulary that goes left, 1 for others; missing is last."""
        sides = np.full(self._sizes[text] + 1, 0.0 if missing_left else 1.0, np.float32)
        for code, value in enumerate(self._seen[text].astype(int)):  # the library numbers the values that it has seen
            sides[value] = 0.0 if bits[code // 32] >> np.uint32(code % 32) & 1 else 1.0
        return sides


def _lookup(vocabulary: list[str]) -> Any:
    content = tf.lookup.KeyValueTensorInitializer(
        tf.constant(vocabulary, tf.string), tf.range(len(vocabulary), dtype=tf.int64)
    )
    return tf.lookup.StaticHashTable(content, default_value=len(vocabulary))


def _rounded_down(thresholds: Array) -> Array:
    """The greatest float32 that is no greater: the same float32 values are at most it."""
    rounded = thresholds.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.where(rounded > thresholds, below, rounded)
