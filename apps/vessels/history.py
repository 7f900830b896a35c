"""Write a simulated world as a history (see `shared_features.history`): positions as received, and ratings of some.

Nothing in it is real: the vessels, what they do and what is heard of them come from `apps.vessels.world`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from apps.vessels.world.fleet import KINDS, Fleet, World
from apps.vessels.world.reception import UNITS_PER_DEGREE, Reports, is_fishing
from shared_features import history
from shared_features.errors import ConfigurationError
from shared_features.history import Progress, complete_manifest, digest, total_bytes, write_months
from shared_features.schema import EventSchema

POSITION = EventSchema(
    "position", Path(__file__).parent / "schemas" / "position.avsc", time="reported_at", id="event_id"
)
RATED = EventSchema("rated", Path(__file__).parent / "schemas" / "rated.avsc", time="rated_at", id="event_id")

START = datetime(2024, 6, 15, tzinfo=UTC)
VESSELS, HOURS, RATED_SHARE = 300, 144.0, 0.25
SPLITS = {
    "start": START + timedelta(days=1),
    "validate_from": START + timedelta(days=4),
    "test_from": START + timedelta(days=4, hours=12),
    "end": START + timedelta(days=6),
}
"""Of the default history: windows fill for a day; three days train, half a day validates, a day and a half tests."""

REPLAY = {"days": 1.0, "quick_days": 1 / 24}
"""What `sameriver demo` replays from ``test_from`` on."""

RATED_AFTER_S = 900
NEVER_RATED = 5
"""Of every so many vessels one is never rated: nothing is learnt of it."""

MOST_ROWS_A_FILE = 2_000_000
IDENTITY_EPOCH_S = 1_577_836_800
"""2020-01-01."""

INSTANT = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class HistorySummary:
    """What a simulated history holds.

    Attributes:
        folder: where the Parquet files are.
        reused: whether it was found there and nothing was written.
        simulated: always True.
        events: rows per event type.
        counts: vessels per kind, positions by satellite, second copies, and so on.
        first_publish, last_publish: ISO 8601, UTC.
        files, bytes: Parquet files and their size together.
    """

    folder: str
    reused: bool
    simulated: bool
    events: dict[str, int]
    counts: dict[str, int]
    first_publish: str
    last_publish: str
    files: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


def write_history(
    folder: str | Path,
    progress: Progress | None = None,
    *,
    vessels: int = VESSELS,
    hours: float = HOURS,
    seed: int = 1,
    rated: float = RATED_SHARE,
) -> HistorySummary:
    """Simulate a world and write what is received of it, or find it there.

    Args:
        folder: where to.
        progress: told as it goes.
        vessels: size of the fleet; 60,000 is the world's.
        hours: how long.
        seed: the same settings and seed give the same bytes.
        rated: share of positions that somebody rates a quarter of an hour later, of four vessels in five.

    Raises:
        ConfigurationError: a setting is out of range, or ``folder`` cannot be written.
        HistoryError: ``folder`` has other Parquet files in it.
    """
    if not (1 <= vessels <= 900_000 and 0 < hours <= 2_400 and 0 <= rated <= 1):
        raise ConfigurationError(
            f"a world of {vessels} vessels, {hours} hours and a share of {rated} rated cannot be simulated: wanted 1 "
            "to 900,000 vessels, up to 2,400 hours, and a share from 0 to 1"
        )
    folder, report = Path(folder), progress or _silent
    world = World(vessels=vessels, hours=hours, start=START, seed=seed)
    origin = _origin(world, rated)
    manifest = complete_manifest(folder, origin)
    reused = manifest is not None
    if manifest is None:
        report(0.0, f"simulate {vessels:,} vessels")
        manifest = _write(folder, world, rated, origin, report)
    report(1.0, "reused" if reused else "written")
    facts = {name: manifest[name] for name in ("events", "counts", "first_publish", "last_publish")}
    return HistorySummary(
        folder=str(folder), reused=reused, simulated=True, **facts, files=len(manifest["files"]),
        bytes=total_bytes(manifest),
    )  # fmt: skip


def _write(folder: Path, world: World, rated: float, origin: dict[str, Any], report: Progress) -> dict[str, Any]:
    fleet = world.fleet()
    chunks: list[Reports] = []
    for first, reports in world.reports(fleet):
        order = np.argsort(_published_ms(reports), kind="stable")
        chunks.append(reports.take(order))
        report(0.5 * first / world.vessels, f"{sum(map(len, chunks)):,} positions")
    total = sum(map(len, chunks))
    most_a_day = total / world.hours * 24
    hours_a_file = 24 if most_a_day <= MOST_ROWS_A_FILE else 1
    last_ms = max(int(_published_ms(chunk)[-1]) for chunk in chunks if len(chunk))
    last_s = max(last_ms // 1000, int(world.hours * 3600) + RATED_AFTER_S if rated else 0)
    names = [
        f"{world.start + timedelta(hours=number * hours_a_file):%Y-%m-%dT%H}"
        for number in range(last_s // 3600 // hours_a_file + 1)
    ]
    tables = Tables(world, fleet, chunks, rated, hours_a_file)
    counts = {
        "vessels": {name: int((fleet.kind == number).sum()) for number, name in enumerate(KINDS)},
        "by_satellite": sum(int(chunk.satellite.sum()) for chunk in chunks),
        "fishing": sum(int(is_fishing(chunk).sum()) for chunk in chunks),
        "second_copies": sum(int(chunk.again.sum()) for chunk in chunks),
    }
    facts = {
        "events": {"position": total, **({"rated": sum(int(rows.sum()) for rows in tables.rated)} if rated else {})},
        "counts": {**{f"vessels_{kind}": count for kind, count in counts.pop("vessels").items()}, **counts},  # type: ignore[attr-defined]
        "first_publish": world.start.isoformat(),
        "last_publish": (world.start + timedelta(milliseconds=last_ms)).isoformat(),
    }
    return write_months(folder, origin, names, lambda name: tables.of(names.index(name)), facts, report)


def _published_ms(reports: Reports) -> np.ndarray:
    published: np.ndarray = reports.time_s.astype(np.int64) * 1000 + reports.delay_ms
    return published


class Tables:
    """A world's reports as tables of a history, one for each stretch of publish time.

    Args:
        world, fleet: whose they are.
        chunks: of the fleet; the reports of each by publish time.
        rated: share of positions that get a rating.
        hours: length of a stretch.
    """

    def __init__(self, world: World, fleet: Fleet, chunks: list[Reports], rated: float, hours: int) -> None:
        self._world, self._fleet, self._chunks, self._hours = world, fleet, chunks, hours
        self.rated = [self._rated(chunk, rated) for chunk in chunks]

    def of(self, number: int) -> pa.Table:
        """The rows of a stretch, by (publish time, event type, identity)."""
        begin, end = (place * self._hours * 3_600_000 for place in (number, number + 1))
        positions, ratings = [], []
        for chunk, rated in zip(self._chunks, self.rated, strict=True):
            published = _published_ms(chunk)
            positions.append(chunk.take(slice(*np.searchsorted(published, (begin, end)))))
            if rated.any():
                late_ms = chunk.time_s.astype(np.int64) * 1000 + RATED_AFTER_S * 1000
                ratings.append(chunk.take(rated & (late_ms >= begin) & (late_ms < end)))
        parts = list(self._tables(positions, ratings))
        names = ["event_type", "event_id", "event_time", "publish_time"]
        order = [("publish_time", "ascending"), ("event_type", "ascending"), ("event_id", "ascending")]
        schema = pa.schema(
            [*((name, parts[0].schema.field(name).type) for name in names)]
            + [(one.name, _struct_type(one)) for one in (POSITION, RATED)]
        )
        table = pa.concat_tables([_filled(part, schema) for part in parts]).combine_chunks()
        return table.take(pc.sort_indices(table.select(names), sort_keys=order))

    def _tables(self, positions: list[Reports], ratings: list[Reports]) -> Iterator[pa.Table]:
        reports = Reports.concatenate(positions)
        mmsi = self._fleet.mmsi[reports.vessel]
        ship_type = self._fleet.ship_type[reports.vessel]
        published_us = self._world.start_us + _published_ms(reports) * 1000
        columns = {
            "vessel": pa.array(mmsi),
            "latitude": pa.array(reports.latitude / UNITS_PER_DEGREE),
            "longitude": pa.array(reports.longitude / UNITS_PER_DEGREE),
            "speed": pa.array(reports.speed / 10),
            "course": pa.array(reports.course / 10),
            "ship_type": pa.array(ship_type.astype(np.int64)),
            "transponder": _choice(self._fleet.class_b[reports.vessel], "A", "B"),
            "receiver": _choice(reports.satellite, "shore", "satellite"),
        }
        yield self._table(POSITION, columns, self._identity(reports, mmsi), reports.time_s, published_us)
        if ratings:
            reports = Reports.concatenate(ratings)
            identity = self._identity(reports, self._fleet.mmsi[reports.vessel])
            kinds = pa.DictionaryArray.from_arrays(pa.array(self._fleet.kind[reports.vessel]), list(KINDS))
            columns = {
                "position_id": identity,
                "fishing": pa.array(is_fishing(reports)),
                "gear": kinds.cast(pa.string()),
            }
            time_s = reports.time_s.astype(np.int64) + RATED_AFTER_S
            at_us = self._world.start_us + time_s * 1_000_000
            yield self._table(RATED, columns, pc.binary_join_element_wise(identity, "-rated", ""), time_s, at_us)

    def _table(
        self, schema: EventSchema, columns: dict[str, pa.Array], identity: pa.Array, time_s: Any, published_us: Any
    ) -> pa.Table:
        struct = pa.StructArray.from_arrays(
            [columns[f.name] for f in _struct_type(schema)], fields=_struct_type(schema)
        )
        time_us = self._world.start_us + time_s.astype(np.int64) * 1_000_000
        return pa.table(
            {
                "event_type": pa.repeat(schema.name, len(identity)),
                "event_id": identity,
                "event_time": pa.array(time_us, INSTANT),
                "publish_time": pa.array(published_us, INSTANT),
                schema.name: struct,
            }
        )

    def _identity(self, reports: Reports, mmsi: Any) -> pa.Array:
        since_s = self._world.start_us // 1_000_000 - IDENTITY_EPOCH_S + reports.time_s.astype(np.int64)
        return pc.cast(pa.array(mmsi * 1_000_000_000 + since_s), pa.string())

    def _rated(self, reports: Reports, share: float) -> np.ndarray:
        """Which are rated, whatever the other settings: by a hash of vessel and time."""
        mixed = (
            reports.vessel.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + reports.time_s.astype(np.uint64)
        ) * (np.uint64(0xD1B54A32D192ED03))
        drawn = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
        found: np.ndarray = (drawn < share) & ~reports.again & (reports.vessel % NEVER_RATED != 0)
        return found


def _choice(chosen: np.ndarray, no: str, yes: str) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(chosen.astype(np.int8)), [no, yes]).cast(pa.string())


def _struct_type(schema: EventSchema) -> pa.StructType:
    return pa.struct([pa.field(field.name.split(".", 1)[1], field.type) for field in schema.block_fields])


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    rows = table.num_rows
    columns = [table[f.name] if f.name in table.column_names else pa.nulls(rows, f.type) for f in schema]
    return pa.table(columns, schema=schema)


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""


def _origin(world: World, rated: float) -> dict[str, Any]:
    """What decides the bytes of a history."""
    here = Path(__file__).parent
    code = [here / "history.py", *sorted((here / "world").glob("*.py")), *sorted((here / "schemas").glob("*.avsc"))]
    code.append(Path(history.__file__))
    settings = {**dataclasses.asdict(world), "start": world.start.isoformat(), "rated": rated}
    return {
        "history": "vessels, simulated",
        "settings": settings,
        "numpy": np.__version__,
        "code": digest(b"\0".join([*(path.read_bytes() for path in code), json.dumps(settings).encode()])),
    }
