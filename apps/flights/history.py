"""Write the flights' events of 2013 as a history (see `shared_features.history`): 13 Parquet files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from apps.flights import clocks, source
from apps.flights import events as derivation
from shared_features import history, timezones
from shared_features.history import Progress, complete_manifest, digest, month_of, total_bytes, write_months
from shared_features.schema import EventSchema

SCHEMAS: dict[str, EventSchema] = {
    name: EventSchema(name, Path(__file__).parent / "schemas" / f"{name}.avsc", time=time, id="event_id")
    for name, time in (("departed", "departed_at"), ("arrived", "arrived_at"), ("weather", "observed_at"))
}
"""The event types of the history, in the order of its columns."""

SPLITS = {
    "start": datetime(2013, 1, 1, tzinfo=UTC),
    "validate_from": datetime(2013, 10, 1, tzinfo=UTC),
    "test_from": datetime(2013, 11, 1, tzinfo=UTC),
    "end": datetime(2014, 1, 1, tzinfo=UTC),
}
"""Train January to September, validate October, test November and December; see `batch.splits.Splits`."""


@dataclasses.dataclass(frozen=True)
class HistorySummary:
    """What a history holds, and what was met in making it.

    Attributes:
        folder: where the Parquet files are.
        reused: whether a complete history was found there and nothing was written.
        events: rows per event type.
        missing: nulls per ``<type>.<field>``, where there are any, in rows of that type.
        counts: cancelled flights, clock disagreements and the like; see `Counts`.
        first_publish, last_publish: ISO 8601, UTC.
        files, bytes: Parquet files and their size together.
    """

    folder: str
    reused: bool
    events: dict[str, int]
    missing: dict[str, int]
    counts: derivation.Counts
    first_publish: str
    last_publish: str
    files: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON-able values; the counts stand beside the other entries."""
        whole = dataclasses.asdict(self)
        return {**whole.pop("counts"), **whole}


def history_is_complete(folder: str | Path) -> bool:
    """Whether ``folder`` holds the whole history as this code, on this data, would write it again."""
    return complete_manifest(Path(folder), _origin()) is not None


def write_history(folder: str | Path, progress: Progress | None = None) -> HistorySummary:
    """Write the history to ``folder``, or find that it is there already, and sum it up.

    Takes about 6 s on one core. The result depends on the data package, the zones' edition and the code
    only; two runs write the same bytes.

    Raises:
        HistoryError: the data package is missing, of another version or altered; ``folder`` has other
            Parquet files in it, which a reader would take for history.
        ConfigurationError: ``folder`` cannot be written.
    """
    folder = Path(folder)
    report = progress or _silent
    report(0.0, "look for a history already there")
    manifest = complete_manifest(folder, _origin())
    if manifest is not None:
        report(1.0, "reused")
        return _summary(folder, manifest, reused=True)
    report(0.05, "read the CSV files")
    tables = source.read(source.locate())
    report(0.2, "derive the events")
    derived, counts = derivation.derive(tables)
    del tables
    manifest = _write(folder, derived, counts, report)
    report(1.0, "written")
    return _summary(folder, manifest, reused=False)


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""


def assemble(derived: dict[str, pa.Table]) -> pa.Table:
    """One table of all events, in the columns and the order of a history.

    ``derived`` has per event type a table with ``event_id``, ``event_time``, ``publish_time`` and the fields
    of its schema but those of identity and time.
    """
    envelope = ("event_id", "event_time", "publish_time")
    names = list(SCHEMAS)
    columns: dict[str, pa.ChunkedArray] = {
        "event_type": pa.chunked_array([pa.repeat(name, derived[name].num_rows) for name in names])
    }
    for column in envelope:
        columns[column] = pa.chunked_array(
            [chunk for name in names for chunk in derived[name][column].chunks],
            derived[names[0]][column].type,
        )
    for name in names:
        fields = [pa.field(f.name.split(".", 1)[1], f.type) for f in SCHEMAS[name].block_fields]
        own = derived[name].select([field.name for field in fields]).cast(pa.schema(fields))
        struct = own.to_struct_array().combine_chunks()
        columns[name] = pa.chunked_array(
            [struct if other == name else pa.nulls(derived[other].num_rows, struct.type) for other in names]
        )
    table = pa.table(columns).combine_chunks()
    order = [("publish_time", "ascending"), ("event_type", "ascending"), ("event_id", "ascending")]
    return table.take(pc.sort_indices(table, sort_keys=order))


def _write(folder: Path, derived: dict[str, pa.Table], counts: derivation.Counts, report: Progress) -> dict[str, Any]:
    month = {name: month_of(table["publish_time"]) for name, table in derived.items()}
    months = sorted(set().union(*(values.unique().to_pylist() for values in month.values())))

    def rows_of(name: str) -> pa.Table:
        return assemble({kind: table.filter(pc.equal(month[kind], name)) for kind, table in derived.items()})

    published = [pc.min_max(table["publish_time"]).as_py() for table in derived.values()]
    facts = {
        "events": {name: table.num_rows for name, table in derived.items()},
        "missing": dict(_missing(derived)),
        "counts": dataclasses.asdict(counts),
        "first_publish": min(each["min"] for each in published).isoformat(),
        "last_publish": max(each["max"] for each in published).isoformat(),
    }
    return write_months(folder, _origin(), months, rows_of, facts, report)


def _missing(derived: dict[str, pa.Table]) -> Iterator[tuple[str, int]]:
    for name, table in derived.items():
        for field, values in zip(table.column_names, table.columns, strict=True):
            if values.null_count:
                yield f"{name}.{field}", values.null_count


def _origin() -> dict[str, Any]:
    """What decides the bytes of a history: data, zones, code."""
    here = Path(__file__).parent
    code = [Path(module.__file__ or "") for module in (clocks, derivation, source, timezones, history)]
    code += [here / "history.py", *sorted((here / "schemas").glob("*.avsc"))]
    return {
        "history": "flights",
        "package": f"{source.PACKAGE} {source.VERSION}",
        "sources": dict(source.DIGESTS),
        "time_zones": timezones.EDITION,
        "code": digest(b"\0".join(path.read_bytes() for path in code)),
    }


def _summary(folder: Path, manifest: dict[str, Any], *, reused: bool) -> HistorySummary:
    return HistorySummary(
        folder=str(folder),
        reused=reused,
        events=manifest["events"],
        missing=manifest["missing"],
        counts=derivation.Counts(**manifest["counts"]),
        first_publish=manifest["first_publish"],
        last_publish=manifest["last_publish"],
        files=len(manifest["files"]),
        bytes=total_bytes(manifest),
    )
