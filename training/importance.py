"""Permutation importance (Breiman, 2001): what a model loses where one feature tells nothing any more.

The values of one feature are dealt out anew among the test rows, the others stay; then the model is asked again. Two
features that say the same cover for each other, and both look unimportant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.metrics import log_loss, rank_auc
from training.rows import LABEL, number_column

Array = npt.NDArray[Any]

IMPORTANCE_ROWS = 5_000
REPEATS = 2


def permutation_importance(
    predict: Callable[[pa.Table], Array],
    test: pa.Table,
    features: Sequence[str],
    *,
    rows: int = IMPORTANCE_ROWS,
    repeats: int = REPEATS,
    seed: int = 1,
    tell: Callable[[float, str], None] = lambda _done, _feature: None,
) -> list[dict[str, Any]]:
    """Loss of AUC and gain of log loss by feature, the most important one first.

    Args:
        predict: probabilities of a table's rows.
        test: rows with the features and the label.
        features: to try.
        rows: use so many of the test rows, drawn once; none, and nothing is tried.
        repeats: of each feature's shuffle.
        seed: of both draws.
        tell: told the share done and the feature at work.

    Returns:
        ``feature``, ``auc_lost`` (mean over the repeats), ``auc_lost_std``, ``log_loss_gained``.
    """
    if not rows:
        return []
    random = np.random.default_rng(seed)
    if len(test) > rows:
        test = test.take(np.sort(random.permutation(len(test))[:rows]))
    labels = number_column(test[LABEL]) > 0.5
    whole = predict(test)
    auc, loss = rank_auc(labels, whole), log_loss(labels, whole)
    found = []
    for number, feature in enumerate(features):
        tell(number / len(features), feature)
        place = test.column_names.index(feature)
        lost, gained = [], []
        for _ in range(repeats):
            shuffled = test[feature].combine_chunks().take(pa.array(random.permutation(len(test))))
            said = predict(test.set_column(place, test.field(place), shuffled))
            lost.append(auc - rank_auc(labels, said))
            gained.append(log_loss(labels, said) - loss)
        found.append(
            {
                "feature": feature,
                "auc_lost": float(np.mean(lost)),
                "auc_lost_std": float(np.std(lost)),
                "log_loss_gained": float(np.mean(gained)),
            }
        )
    return sorted(found, key=lambda one: -float(one["auc_lost"]))
