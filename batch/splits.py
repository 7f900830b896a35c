"""Which rows train, which validate and which test: ranges of event time, never chance.

Rows of one day resemble each other; drawn by chance into training and test they would flatter the model.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pyarrow as pa

from shared_features.errors import ConfigurationError
from shared_features.schema import TIMESTAMP


@dataclasses.dataclass(frozen=True)
class Splits:
    """Which rows train, which validate and which test, by event time: three neighbouring ranges.

    ``start <= train < validate_from <= validate < test_from <= test < end``; aware datetimes. Rows before
    ``start`` or from ``end`` on are left out and counted; None leaves that side open.
    """

    validate_from: datetime
    test_from: datetime
    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.start, self.validate_from, self.test_from, self.end) if bound is not None]
        if any(bound.tzinfo is None for bound in bounds) or bounds != sorted(set(bounds)):
            raise ConfigurationError(
                f"splits {', '.join(map(str, bounds))} cannot be used: wanted rising times, each with its zone"
            )

    def bounds_us(self) -> list[tuple[str, int, int]]:
        """(split, from, to) in microseconds since 1970, half-open."""
        ends = [_us(self.start, -(2**62)), _us(self.validate_from, 0), _us(self.test_from, 0), _us(self.end, 2**62)]
        return list(zip(("train", "validate", "test"), ends[:-1], ends[1:], strict=True))

    def as_dict(self) -> dict[str, str | None]:
        """ISO 8601 in UTC, or None."""
        return {
            field.name: None if (bound := getattr(self, field.name)) is None else bound.astimezone(UTC).isoformat()
            for field in dataclasses.fields(self)
        }


SPLITS_2013 = Splits(
    start=datetime(2013, 1, 1, tzinfo=UTC),
    validate_from=datetime(2013, 10, 1, tzinfo=UTC),
    test_from=datetime(2013, 11, 1, tzinfo=UTC),
    end=datetime(2014, 1, 1, tzinfo=UTC),
)
"""The flights: train January to September, validate October, test November and December."""


def _us(bound: datetime | None, otherwise: int) -> int:
    return otherwise if bound is None else int(pa.scalar(bound, TIMESTAMP).value)
