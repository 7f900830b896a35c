"""What an app may set about a model: ``Model("wide_and_deep", crosses=[("origin", "carrier")], units=[64, 64])``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from shared_features.errors import ConfigurationError

KINDS = ("wide_and_deep", "deep", "logistic", "cnn", "boosted_trees", "polynomial_logistic")
"""What a model can be. A model is of the kind that its name says, unless its option ``kind`` names one.

``deep`` is the deep part of wide & deep alone, a plain network; ``logistic`` the wide part alone, a logistic regression
on buckets of numbers, values of texts and crosses; ``cnn`` the deep part with a convolutional network over lists, see
`training.sequences`.
"""

WITHOUT: Mapping[str, tuple[str, ...]] = {
    "wide_and_deep": ("filters", "kernel"),
    "deep": ("crosses", "cross_hash_buckets", "filters", "kernel"),
    "logistic": ("embeddings", "embedding", "units", "dropout", "filters", "kernel"),
    "cnn": ("crosses", "cross_hash_buckets"),
}
"""Options that a kind of model does not have."""


@dataclass(frozen=True, slots=True)
class WideAndDeepOptions:
    """Options of the wide & deep model and of its parts, with defaults tuned on the flights of 2013.

    Attributes:
        crosses: pairs of features whose combinations each get a weight of their own in the wide part; a
            number takes part by its quantile bucket.
        embeddings: texts that enter the deep part as embedded vectors, all where None; the others enter one-hot.
        baseline: number to predict from alone in reports; nothing here depends on it.
        buckets: quantile buckets of a number.
        embedding: greatest width of an embedded text.
        units: widths of the deep part's layers; a layer as wide as the one before adds to it (residual).
        dropout: share of a deep layer's outputs that is dropped while training.
        cross_hash_buckets: weights of a cross with more combinations than these are shared by hash.
        filters: of each of the two convolutions over lists.
        kernel: events of a list that a filter sees at once.
        min_rows: rows in which a text value must occur to have a place of its own.
        learning_rate: greatest rate of AdamW, warmed up in half an epoch and let down along a cosine.
        weight_decay: of AdamW.
        batch_rows: rows in a batch.
        epochs: at most; ``patience`` epochs without a better log loss on the validation split end it early,
            and the best epoch's weights, averaged over an epoch's batches, are kept.
    """

    crosses: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] | None = None
    baseline: str | None = None
    buckets: int = 24
    embedding: int = 8
    units: tuple[int, ...] = (128, 128, 128)
    dropout: float = 0.1
    cross_hash_buckets: int = 20_011
    filters: int = 16
    kernel: int = 3
    min_rows: int = 20
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_rows: int = 1024
    epochs: int = 4
    patience: int = 2

    @staticmethod
    def from_mapping(
        options: Mapping[str, Any], numbers: Sequence[str], texts: Sequence[str], kind: str = "wide_and_deep"
    ) -> WideAndDeepOptions:
        """Check options given as a plain mapping (from an app file or JSON).

        Args:
            options: by name; pairs and widths may be lists or tuples.
            numbers: features that are numbers or bools.
            texts: features that are texts.
            kind: of the model, one of ``WITHOUT``.

        Raises:
            ConfigurationError: an unknown name, a value of another type or out of range, or a name
                that is no feature of the kind it must be.
        """
        known = {field.name: field for field in fields(WideAndDeepOptions) if field.name not in WITHOUT[kind]}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigurationError(
                f"Model {kind} has no option {unknown[0]!r}; it has {', '.join(known)}: correct the app file."
            )
        values = {name: _checked(name, value, numbers, texts) for name, value in options.items()}
        return WideAndDeepOptions(**values)

    def summary(self, kind: str = "wide_and_deep") -> dict[str, Any]:
        """The options that a kind of model has, ready for JSON and for `from_mapping`."""
        return {name: value for name, value in asdict(self).items() if name not in WITHOUT[kind]}


def _checked(name: str, value: Any, numbers: Sequence[str], texts: Sequence[str]) -> Any:
    if name == "crosses":
        if not isinstance(value, list | tuple):
            raise _wrong(name, "a list of pairs of features", value)
        return tuple(_checked_cross(pair, [*numbers, *texts]) for pair in value)
    if name == "embeddings":
        if value is None or (isinstance(value, list | tuple) and all(one in texts for one in value)):
            return None if value is None else tuple(value)
        raise _wrong(name, f"a list out of the texts {', '.join(texts)}", value)
    if name == "baseline":
        if value is None or value in numbers:
            return value
        raise _wrong(name, f"one of the numbers {', '.join(numbers)}", value)
    if name == "units":
        if isinstance(value, list | tuple) and all(_whole(width) and width > 0 for width in value):
            return tuple(value)
        raise _wrong(name, "a list of whole numbers above 0", value)
    if name == "dropout":
        if isinstance(value, int | float) and 0 <= value < 1:
            return float(value)
        raise _wrong(name, "a number from 0 to below 1", value)
    if name in ("learning_rate", "weight_decay"):
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return float(value)
        raise _wrong(name, "a number of 0 or more", value)
    least = 2 if name == "cross_hash_buckets" else 1
    if _whole(value) and value >= least:
        return value
    raise _wrong(name, f"a whole number of {least} or more", value)


def _checked_cross(pair: Any, features: Sequence[str]) -> tuple[str, str]:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] == pair[1]:
        raise _wrong("crosses", "pairs of two different features", pair)
    for name in pair:
        if name not in features:
            raise ConfigurationError(
                f"A cross of wide_and_deep needs features, but {name!r} is none of {', '.join(features)}: "
                "correct the app file."
            )
    return pair[0], pair[1]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(name: str, wanted: str, value: Any) -> ConfigurationError:
    return ConfigurationError(
        f"Option {name} of model wide_and_deep must be {wanted}, but is {value!r}: correct the app file."
    )
