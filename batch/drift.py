"""Whether features are what they were in training: ranges, missing values, and two measures of distance.

What training saw is what an exported model says of it: sketches of numbers, counts of texts (`training.sketches`). New
numbers are counted between 128 quantiles of training's sketch. Counts are integers: they merge in any order, and the
same rows give the same figures, which two sketches drawn by chance would not.

Population stability index (PSI)
    The sum over bins of (now - then) ln(now / then), of the bin's shares; bins are some tenths of training, its
    most frequent texts, and one for what is missing. Below 0.1 little has changed, above 0.25 much (Siddiqi, Credit
    Risk Scorecards, 2006). Chance alone makes it about (bins - 1)(1 / rows then + 1 / rows now).
Kolmogorov and Smirnov's distance (KS), of numbers
    The greatest difference, at the quantiles, between the shares of values at or below. Chance alone stays below
    1.36 sqrt(1 / rows then + 1 / rows now) in 95 of 100 cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.lists import spread

TEXTS = 20
"""So many of the most frequent texts are bins of their own; the others share one."""

QUANTILES = 128
"""Numbers are counted between so many quantiles of training, fewer where values repeat."""

BIN_SHARE = 0.1
"""A bin of the index has at least this share of training's numbers."""

_LEAST_SHARE = 1e-4
_FEWEST_ROWS = 100


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a feature violates.

    Attributes:
        psi: of the index, after chance is taken off.
        outside: share of values out of training's range, or texts that training has not seen.
    """

    psi: float = 0.25
    outside: float = 0.01


@dataclass(frozen=True, slots=True)
class FieldDrift:
    """One feature, now and in training.

    Attributes:
        feature: its name; a place of a list is ``recent[0]``.
        rows: looked at.
        missing, trained_missing: share of nulls, now and then.
        outside: share of values below training's least or above its greatest; of texts that it did not know.
        low, high: of numbers now. trained_low, trained_high: of training.
        psi: the index; None where there are too few rows to say.
        chance: what it would be about without any drift.
        ks: Kolmogorov and Smirnov's distance in [0, 1]; None for texts and for too few rows.
        ks_chance: what it would rarely exceed without any drift.
        violations: what is beyond the limits, in words; empty if nothing is.
    """

    feature: str
    rows: int
    missing: float
    trained_missing: float
    outside: float
    low: float | None
    high: float | None
    trained_low: float | None
    trained_high: float | None
    psi: float | None
    chance: float
    ks: float | None = None
    ks_chance: float = 0.0
    violations: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


class Drift:
    """Counts features against the statistics of a model; memory does not grow with the rows.

    Args:
        statistics: what an exported model says of its training, see `training.sketches.read_reference`.
        names: features to look at, places of lists by themselves; others are left out.
        limits: from where on a feature violates.
    """

    def __init__(self, statistics: Mapping[str, Any], names: Iterable[str], limits: Limits) -> None:
        wanted = set(names)
        numbers = {name: one for name, one in statistics["numbers"].items() if name in wanted}
        texts = {name: one for name, one in statistics["texts"].items() if name in wanted}
        self._counters: dict[str, _Numbers | _Texts] = {name: _Numbers(name, one) for name, one in numbers.items()}
        self._counters |= {name: _Texts(name, one) for name, one in texts.items()}
        self._limits = limits

    @property
    def features(self) -> list[str]:
        """What is looked at."""
        return list(self._counters)

    def add(self, features: Mapping[str, pa.Array]) -> None:
        """Count some rows: feature name to values; lists are spread, names that are not looked at passed over."""
        for name, values in spread(dict(features)).items():
            if name in self._counters:
                self._counters[name].add(values)

    def result(self) -> list[FieldDrift]:
        """Each feature, in the order of the model's statistics."""
        return [counter.result(self._limits) for counter in self._counters.values()]


class _Numbers:
    def __init__(self, name: str, said: Mapping[str, Any]) -> None:
        self._name, self._said, self._sketch = name, said, said["sketch"]
        self._edges, at_most = np.zeros(0), np.zeros(0)
        if not self._sketch.is_empty():
            quantiles = self._sketch.get_quantiles(np.linspace(0, 1, QUANTILES + 1))
            # The sketch may have let go of the least and the greatest value, but knows them.
            ends = self._sketch.get_min_value(), self._sketch.get_max_value()
            self._edges = np.unique([*quantiles, *ends])
            at_most = np.array(self._sketch.get_cdf(self._edges, inclusive=True))[:-1]
        self._at_most = at_most
        self._now = np.zeros(len(self._edges) + 1, np.int64)  # the last one: above all that training has seen
        self._rows = self._missing = self._outside = 0
        self._low, self._high = np.inf, -np.inf

    def add(self, values: pa.Array) -> None:
        self._rows += len(values)
        numbers = values.cast(pa.float64()).drop_null().to_numpy(zero_copy_only=False)
        numbers = numbers[~np.isnan(numbers)]
        self._missing += len(values) - len(numbers)
        if not len(numbers):
            return
        self._low, self._high = min(self._low, float(numbers.min())), max(self._high, float(numbers.max()))
        places = np.searchsorted(self._edges, numbers, side="left")
        self._now += np.bincount(places, minlength=len(self._now))
        below = int((numbers < self._edges[0]).sum()) if len(self._edges) else 0
        self._outside += below + int((places == len(self._edges)).sum())

    def result(self, limits: Limits) -> FieldDrift:
        there, known = self._low <= self._high, len(self._edges) > 0
        least = self._sketch.get_min_value() if known else None
        greatest = self._sketch.get_max_value() if known else None
        counts = (self._rows, self._missing, self._outside)
        ends = (self._low if there else None, self._high if there else None, least, greatest)
        last = _bins(self._at_most)
        then = np.append(np.diff(self._at_most[last], prepend=0.0), 0.0)
        now = np.diff(np.append(np.cumsum(self._now)[last], self._now.sum()), prepend=0)
        beyond = f"outside of training's {least} to {greatest}"
        drift = _drift(self._name, self._said, counts, (then, now), ends, limits, beyond)
        present, before = self._rows - self._missing, self._sketch.n
        if present < _FEWEST_ROWS or not before:
            return drift
        apart = np.abs(np.cumsum(self._now)[:-1] / present - self._at_most)
        return replace(drift, ks=float(apart.max()), ks_chance=1.36 * (1 / present + 1 / before) ** 0.5)


def _bins(at_most: np.ndarray) -> list[int]:
    """Where bins end that have `BIN_SHARE` each, the last one at the end; ``at_most`` rises to 1."""
    ends: list[int] = []
    for place, share in enumerate(at_most.tolist()):
        if share - (at_most[ends[-1]] if ends else 0.0) >= BIN_SHARE:
            ends.append(place)
    if len(at_most) and (not ends or ends[-1] != len(at_most) - 1):
        ends = [*ends[:-1], len(at_most) - 1]
    return ends


class _Texts:
    def __init__(self, name: str, said: Mapping[str, Any]) -> None:
        self._name, self._said = name, said
        vocabulary = [(str(text), int(rows)) for text, rows in said["vocabulary"]]
        self._known = pa.array([text for text, _ in vocabulary], pa.string())
        frequent = vocabulary[:TEXTS]
        self._frequent = pa.array([text for text, _ in frequent], pa.string())
        present = max(1.0, said["rows"] * (1 - said["missing"]))
        shares = [rows / present for _, rows in frequent]
        self._then = np.array([*shares, max(0.0, 1 - sum(shares))])
        self._now = np.zeros(len(self._then), np.int64)
        self._rows = self._missing = self._outside = 0

    def add(self, values: pa.Array) -> None:
        self._rows += len(values)
        texts = values.cast(pa.string())
        texts = texts.filter(pc.not_equal(texts, "").fill_null(False))
        self._missing += len(values) - len(texts)
        self._outside += len(texts) - int(pc.sum(pc.is_in(texts, value_set=self._known)).as_py() or 0)
        places = pc.index_in(texts, value_set=self._frequent).fill_null(len(self._frequent)).to_numpy()
        self._now += np.bincount(places, minlength=len(self._now))

    def result(self, limits: Limits) -> FieldDrift:
        # Texts that were too rare in training for a place in the vocabulary are unknown here, too.
        unknown = self._said["rows"] - sum(rows for _, rows in self._said["vocabulary"])
        rare = max(0.0, unknown / max(1, self._said["rows"]) - self._said["missing"])
        counts = (self._rows, self._missing, self._outside)
        ends = (None, None, None, None)
        return _drift(
            self._name, self._said, counts, (self._then, self._now), ends, limits, "unknown to training", usual=rare
        )


def _drift(
    name: str,
    said: Mapping[str, Any],
    counts: tuple[int, int, int],
    bins: tuple[np.ndarray, np.ndarray],
    ends: tuple[float | None, float | None, float | None, float | None],
    limits: Limits,
    beyond: str,
    usual: float = 0.0,
) -> FieldDrift:
    rows, missing, outside = counts
    then, now = bins
    present = rows - missing
    psi, chance = None, 0.0
    if rows >= _FEWEST_ROWS:
        expected = np.append(then * (1 - said["missing"]), said["missing"])
        found = np.append(now / rows, missing / rows)
        psi = population_stability_index(expected, found)
        chance = (len(expected) - 1) * (1 / rows + 1 / max(1, said["rows"]))
    share = outside / present if present else 0.0
    violations = []
    if psi is not None and psi - chance > limits.psi:
        violations.append(f"PSI {psi:.3f} is above {limits.psi:g}")
    if share - usual > limits.outside:
        violations.append(f"{share:.1%} of the values are {beyond}")
    low, high, trained_low, trained_high = ends
    return FieldDrift(
        feature=name,
        rows=rows,
        missing=missing / rows if rows else 0.0,
        trained_missing=said["missing"],
        outside=share,
        low=low,
        high=high,
        trained_low=trained_low,
        trained_high=trained_high,
        psi=psi,
        chance=chance,
        violations=violations,
    )


def population_stability_index(then: np.ndarray, now: np.ndarray) -> float:
    """The index of two distributions over the same bins; a share below 0.0001 counts as that.

    >>> population_stability_index(np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    0.0
    >>> round(population_stability_index(np.array([0.5, 0.5]), np.array([0.9, 0.1])), 3)
    0.879
    """
    then, now = np.maximum(then, _LEAST_SHARE), np.maximum(now, _LEAST_SHARE)
    return float(np.sum((now - then) * np.log(now / then)))
