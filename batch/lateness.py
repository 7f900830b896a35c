"""Lateness of arrival, drawn from an archive's own, for a history that has none.

A table of what happened says when, not when it came. Rows made of it as if everything had come at once promise a model
more than it will see live: there, part of each window is still on its way. So events are given the delays that a
live job has seen: each event the delay that its identity draws among those of its type, so that the same history and
archive give the same rows, whatever the splits and shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.tables import used_types
from shared_features.app import App
from shared_features.errors import HistoryError
from shared_features.hashing import hash_columns
from shared_features.schema import TIMESTAMP
from streaming.archive import read_commits

STEPS = 1_000
"""Into so many equal parts the delays of a type are divided; each part is drawn as its middle."""

_SEED = 0x1A7E


@dataclasses.dataclass(frozen=True)
class Lateness:
    """How late events come.

    Attributes:
        delays_us: by event type, ascending: publish time less event time, microseconds, `STEPS` quantiles.
    """

    delays_us: Mapping[str, tuple[int, ...]]

    @property
    def digest(self) -> str:
        """Names it in what is made with it."""
        text = repr(sorted(self.delays_us.items())).encode()
        return hashlib.blake2b(text, digest_size=8).hexdigest()

    def quantiles_s(self, shares: Sequence[float] = (0.5, 0.9, 0.99, 1.0)) -> dict[str, list[float]]:
        """Delays by type, seconds, at some shares of its events."""
        return {
            name: [delays[min(len(delays) - 1, int(share * len(delays)))] / 1e6 for share in shares]
            for name, delays in self.delays_us.items()
        }


def lateness_of(app: App, archive: Path) -> Lateness:
    """The delays of an archive's events, by type.

    Raises:
        HistoryError: there is no archive, or it has no event of a type that the app uses.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in used_types(app)}
    for commit in read_commits(archive):
        if not commit.block.num_rows:
            continue
        types, delays = commit.block.column("event_type"), _delays_us(commit.block)
        for name, parts in found.items():
            mine = np.asarray(pc.equal(types, name)) & np.asarray(delays.is_valid())
            parts.append(delays.fill_null(0).to_numpy()[mine])
    return Lateness({name: _quantiles(archive, name, parts) for name, parts in found.items()})


def _delays_us(block: pa.RecordBatch) -> pa.Array:
    return pc.subtract(*(block.column(name).cast(pa.int64()) for name in ("publish_time", "event_time")))


def _quantiles(archive: Path, name: str, parts: list[np.ndarray]) -> tuple[int, ...]:
    delays = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
    if not len(delays):
        raise HistoryError(
            f"archive {archive} has no event of type {name!r}, so that nothing says how late such events come: wanted "
            "an archive with events of all types that the app uses"
        )
    middles = (np.arange(STEPS) * 2 + 1) * len(delays) // (2 * STEPS)
    return tuple(delays[middles].tolist())


def arriving(block: pa.RecordBatch, lateness: Lateness) -> pa.RecordBatch:
    """The block with publish times: event time and the delay that the event's identity draws.

    Raises:
        HistoryError: a row says already that it was published at another time than it happened.
    """
    own = _delays_us(block).fill_null(0)
    if own.null_count < len(own) and pc.any(pc.not_equal(own, 0)).as_py():
        raise HistoryError(
            "this history has publish times of its own: wanted one whose events are published as they happen; leave "
            "--lateness out"
        )
    drawn = hash_columns([block.column("event_type"), block.column("event_id")], seed=_SEED)
    delays = np.zeros(block.num_rows, np.int64)
    for name, steps in lateness.delays_us.items():
        mine = np.asarray(pc.equal(block.column("event_type"), name).fill_null(False))
        place = ((drawn[mine] >> np.uint64(32)) * np.uint64(len(steps))) >> np.uint64(32)
        delays[mine] = np.array(steps, np.int64)[place.astype(np.int64)]
    times = pc.add(block.column("event_time").cast(pa.int64()), pa.array(delays))
    index = block.schema.get_field_index("publish_time")
    return block.set_column(index, "publish_time", times.cast(TIMESTAMP))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What lateness does to the features of training rows.

    Attributes:
        rows: with a label, both with and without delays.
        rows_differing: with at least one feature that is another one.
        features: by name: share of rows in which it is another one, and the mean of the absolute difference over
            all rows where it is a number both ways.
    """

    rows: int
    rows_differing: int
    features: dict[str, tuple[float, float | None]]


def cost_of(app: App, pairs: Iterable[tuple[pa.Table, pa.Table]]) -> Cost:
    """Compare rows of the same events without delays and with them, both in the same order, some at a time."""
    rows = different = 0
    differing = dict.fromkeys(app.features, 0)
    errors: dict[str, tuple[float, int]] = {}
    for at_once, late in pairs:
        if not at_once["event_id"].equals(late["event_id"]):
            raise HistoryError("rows with and without delays are of different events: wanted the same history twice")
        any_differs = np.zeros(at_once.num_rows, np.bool_)
        for name in app.features:
            ours, theirs = at_once[name].combine_chunks(), late[name].combine_chunks()
            differs = _differs(ours, theirs)
            any_differs |= differs
            differing[name] += int(differs.sum())
            if pa.types.is_floating(ours.type) or pa.types.is_integer(ours.type):
                apart = pc.abs(pc.subtract(ours.cast(pa.float64()), theirs.cast(pa.float64())))
                total, both = errors.get(name, (0.0, 0))
                errors[name] = total + (pc.sum(apart).as_py() or 0.0), both + len(apart) - apart.null_count
        rows, different = rows + at_once.num_rows, different + int(any_differs.sum())
    means = {name: total / both for name, (total, both) in errors.items() if both}
    return Cost(rows, different, {name: (differing[name] / max(1, rows), means.get(name)) for name in app.features})


def _differs(ours: pa.Array, theirs: pa.Array) -> np.ndarray:
    if pa.types.is_nested(ours.type):
        return np.array([a != b for a, b in zip(ours.to_pylist(), theirs.to_pylist(), strict=True)], np.bool_)
    nulls = np.asarray(ours.is_valid()) != np.asarray(theirs.is_valid())
    found: np.ndarray = nulls | np.asarray(pc.not_equal(ours, theirs).fill_null(False))
    return found
