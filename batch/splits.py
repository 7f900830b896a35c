"""Which rows train, which validate and which test: ranges of event time, never chance.

Rows of one day resemble each other; drawn by chance into training and test they would flatter the model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batch.bigquery import StreamSpec
from batch.bigquery_tables import time_span
from batch.parquet_files import opened
from batch.tables import History
from shared_features.errors import ConfigurationError
from shared_features.schema import TIMESTAMP

FOREVER_US = 2**62

TRAIN_SHARE, VALIDATE_SHARE = 0.70, 0.15
"""Of the time that a history covers, where nobody says more; the rest tests."""


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
        inner = [microseconds(self.validate_from, 0), microseconds(self.test_from, 0)]
        ends = [microseconds(self.start, -FOREVER_US), *inner, microseconds(self.end, FOREVER_US)]
        return list(zip(("train", "validate", "test"), ends[:-1], ends[1:], strict=True))

    def as_dict(self) -> dict[str, str | None]:
        """ISO 8601 in UTC, or None."""
        return {
            field.name: None if (bound := getattr(self, field.name)) is None else bound.astimezone(UTC).isoformat()
            for field in dataclasses.fields(self)
        }

    @staticmethod
    def from_dict(bounds: Mapping[str, Any]) -> Splits:
        """The splits of `as_dict`, or of the same with datetimes."""
        return Splits(
            **{name: datetime.fromisoformat(at) if isinstance(at, str) else at for name, at in bounds.items()}
        )


def by_share(source: History) -> Splits:
    """Of the time from the first event to the last one the first 70 % train, 15 % validate and 15 % test.

    Raises:
        ConfigurationError: the history cannot say which time it covers without being decoded (a Pub/Sub
            subscription's table), or covers none.
    """
    ends: list[datetime] = []
    for split in source.splits:
        piece = json.loads(split)
        if "path" not in piece:
            ends = _of_table(source, StreamSpec.decode(piece["stream"].encode()), messages="flat" not in piece)
            break
        with opened(piece["path"]) as file:
            times = file.read_row_groups(piece["row_groups"], columns=["event_time"])["event_time"]
        found = pc.min_max(times.cast(TIMESTAMP))
        ends += [end.as_py() for end in (found["min"], found["max"]) if end.is_valid]
    if not ends or min(ends) == max(ends):
        raise ConfigurationError(
            f"history {source.uri} covers no time that could be split: give the splits, --validate-from and --test-from"
        )
    first, whole = min(ends), max(ends) - min(ends)
    return Splits(
        *((first + share * whole).replace(microsecond=0) for share in (TRAIN_SHARE, TRAIN_SHARE + VALIDATE_SHARE))
    )


def _of_table(source: History, stream: StreamSpec, *, messages: bool) -> list[datetime]:
    if messages:
        raise ConfigurationError(
            f"history {source.uri} does not say which time it covers: give the splits, --validate-from and --test-from"
        )
    return time_span(stream.uri, "event_time", stream.endpoints)


def microseconds(bound: datetime | None, otherwise: int) -> int:
    """A time in microseconds since 1970, or what stands for none."""
    return otherwise if bound is None else int(pa.scalar(bound, TIMESTAMP).value)
