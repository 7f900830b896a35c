"""What a model must know of its features, from one pass over the training split and nothing else.

Vocabularies, mean, standard deviation, quantiles, share of missing values. The accumulators take blocks and
merge, so that shards can be counted apart and joined; moments are rounded to nine significant digits, more
than the model's float32 holds, so that the order of the rows does not show.

Quantiles are exact up to ``EXACT_VALUES`` values a feature; beyond, sorted runs are thinned two into one
(Munro and Paterson, 1980; Manku, Rajagopalan and Lindsay, 1998), which bounds memory and costs a rank error
of at most (levels / 2) / ``RUN_VALUES``: under 0.0001 of the rows at 22 million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.rows import TrainingRows, number_column

EXACT_VALUES = 1 << 20
RUN_VALUES = 1 << 16


@dataclass(frozen=True, slots=True)
class NumberStatistics:
    """Constants of a number feature over the rows where it is not missing.

    Attributes:
        rows: of the training split.
        missing: share of rows where it is null, in [0, 1].
        mean, std: population standard deviation; 0 where there are no values.
        quantiles: smallest values with at least q of the rows at or below them, at evenly spaced levels
            from 0 (minimum) to 1 (maximum); repeated values are kept; empty where there are no values.
    """

    rows: int
    missing: float
    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Constants of a text feature.

    Attributes:
        rows: of the training split.
        missing: share of rows where it is null or "", in [0, 1].
        distinct: values seen, rare ones included.
        vocabulary: (value, rows) of the values frequent enough, most frequent first, ties by value.
    """

    rows: int
    missing: float
    distinct: int
    vocabulary: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Constants of all features of the training split, by name.

    Attributes:
        rows: of the training split.
        positives: share of rows whose label is true.
    """

    rows: int
    positives: float
    numbers: Mapping[str, NumberStatistics]
    texts: Mapping[str, TextStatistics]

    def summary(self) -> dict[str, Any]:
        """The same, ready for JSON."""
        return {
            "rows": self.rows,
            "positives": self.positives,
            "numbers": {name: asdict(one) for name, one in self.numbers.items()},
            "texts": {name: asdict(one) for name, one in self.texts.items()},
        }


@dataclass(slots=True)
class NumberAccumulator:
    """Count, mean, sum of squared deviations (merged as in Chan, Golub and LeVeque, 1979), ends and sorted runs."""

    rows: int = 0
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = np.inf
    greatest: float = -np.inf
    values: list[npt.NDArray[np.float64]] = field(default_factory=list)
    runs: dict[int, list[npt.NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Count values [rows]; NaN is missing."""
        present = values[~np.isnan(values)]
        self.rows += len(values)
        if len(present):
            mean = float(present.mean())
            self._add_moments(len(present), mean, float(np.square(present - mean).sum()))
            self._add_ends(float(present.min()), float(present.max()))
            self.values.append(present)
            self._thin()

    def merge(self, other: NumberAccumulator) -> None:
        """Take in what ``other`` has counted."""
        self.rows += other.rows
        if other.count:
            self._add_moments(other.count, other.mean, other.squares)
            self._add_ends(other.least, other.greatest)
            self.values.extend(other.values)
            for level, runs in other.runs.items():
                self.runs.setdefault(level, []).extend(runs)
            self._thin()

    def result(self, buckets: int) -> NumberStatistics:
        """Constants, with ``buckets`` + 1 quantiles."""
        return NumberStatistics(
            rows=self.rows,
            missing=_nine_digits(1 - self.count / self.rows) if self.rows else 0.0,
            mean=_nine_digits(self.mean),
            std=_nine_digits((self.squares / self.count) ** 0.5) if self.count else 0.0,
            quantiles=self._quantiles(buckets),
        )

    def _add_moments(self, count: int, mean: float, squares: float) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.mean += apart * count / total
        self.squares += squares + apart * apart * self.count * count / total
        self.count = total

    def _add_ends(self, least: float, greatest: float) -> None:
        self.least, self.greatest = min(self.least, least), max(self.greatest, greatest)

    def _thin(self) -> None:
        held = sum(map(len, self.values))
        if held <= EXACT_VALUES and not self.runs:
            return
        if held >= RUN_VALUES:
            pending = np.concatenate(self.values)
            whole = len(pending) // RUN_VALUES * RUN_VALUES
            self.runs.setdefault(0, []).extend(np.sort(pending[:whole]).reshape(RUN_VALUES, -1).T)
            self.values = [pending[whole:]]
        level = 0
        while level in self.runs:
            while len(self.runs[level]) >= 2:
                pair = np.sort(np.concatenate([self.runs[level].pop(), self.runs[level].pop()]))
                self.runs.setdefault(level + 1, []).append(pair[level % 2 :: 2])
            level += 1

    def _quantiles(self, buckets: int) -> tuple[float, ...]:
        if not self.count:
            return ()
        kept = [*self.values]
        weights = [np.ones(len(run), np.int64) for run in self.values]
        for level, runs in self.runs.items():
            kept += runs
            weights += [np.full(len(run), 1 << level, np.int64) for run in runs]
        values = np.concatenate(kept)
        order = np.argsort(values, kind="stable")
        below = np.cumsum(np.concatenate(weights)[order])
        ranks = -(-np.arange(buckets + 1) * int(below[-1]) // buckets)  # integers: no level is rounded
        found = values[order][np.searchsorted(below, np.maximum(ranks, 1))]
        found[[0, -1]] = self.least, self.greatest  # thinning may have lost them
        return tuple(map(float, found))


@dataclass(slots=True)
class TextAccumulator:
    """Rows by value; null counts as ""."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, column: pa.Array) -> None:
        """Count a string column."""
        self.rows += len(column)
        counted = pc.value_counts(pc.fill_null(column.cast(pa.string()), ""))
        values, counts = counted.field("values").to_pylist(), counted.field("counts").to_pylist()
        self.counts.update(dict(zip(values, counts, strict=True)))

    def merge(self, other: TextAccumulator) -> None:
        """Take in what ``other`` has counted."""
        self.rows += other.rows
        self.counts.update(other.counts)

    def result(self, min_rows: int, max_values: int) -> TextStatistics:
        """Constants; the vocabulary leaves out values seen in fewer than ``min_rows`` rows."""
        seen = {value: rows for value, rows in self.counts.items() if value}
        frequent = [(value, rows) for value, rows in seen.items() if rows >= min_rows]
        frequent.sort(key=lambda pair: (-pair[1], pair[0]))
        return TextStatistics(
            rows=self.rows,
            missing=_nine_digits(self.counts[""] / self.rows) if self.rows else 0.0,
            distinct=len(seen),
            vocabulary=tuple(frequent[:max_values]),
        )


@dataclass(slots=True)
class SplitAccumulator:
    """What has been counted of a split: rows, true labels, and every feature by name."""

    numbers: dict[str, NumberAccumulator]
    texts: dict[str, TextAccumulator]
    rows: int = 0
    positives: int = 0

    @staticmethod
    def of(rows: TrainingRows) -> SplitAccumulator:
        """One that has counted nothing."""
        return SplitAccumulator(
            {name: NumberAccumulator() for name in rows.numbers}, {name: TextAccumulator() for name in rows.texts}
        )

    def add(self, block: pa.RecordBatch) -> None:
        """Count a block of features and labels."""
        for name, number in self.numbers.items():
            number.add(number_column(block[name]))
        for name, text in self.texts.items():
            text.add(block[name])
        self.rows += block.num_rows
        self.positives += pc.sum(block["label"]).as_py() or 0

    def merge(self, other: SplitAccumulator) -> None:
        """Take in what ``other`` has counted."""
        for name, number in self.numbers.items():
            number.merge(other.numbers[name])
        for name, text in self.texts.items():
            text.merge(other.texts[name])
        self.rows += other.rows
        self.positives += other.positives

    def result(self, buckets: int, min_rows: int, max_values: int) -> Statistics:
        """Constants of all features, see `compute_statistics`."""
        return Statistics(
            rows=self.rows,
            positives=_nine_digits(self.positives / self.rows) if self.rows else 0.0,
            numbers={name: one.result(buckets) for name, one in self.numbers.items()},
            texts={name: one.result(min_rows, max_values) for name, one in self.texts.items()},
        )


def compute_statistics(
    rows: TrainingRows, *, buckets: int = 24, min_rows: int = 20, max_values: int = 50_000
) -> Statistics:
    """Constants of every feature over the training split, by what `training.statistics_job` counted or in one pass.

    Args:
        rows: whose ``train`` split is read; validate and test are never looked at.
        buckets: quantile buckets of a number.
        min_rows: rows in which a text value must occur to have a place in the vocabulary; rarer ones
            share the place that unseen values will take, which is thereby trained.
        max_values: greatest length of a vocabulary.
    """
    from training.counted import held_counts

    counted = held_counts(rows)
    if counted is None:
        counted = SplitAccumulator.of(rows)
        for block in rows.blocks("train"):
            counted.add(block)
    return counted.result(buckets, min_rows, max_values)


def _nine_digits(value: float) -> float:
    return float(f"{value:.9g}")
