"""Write the flights' events of 2013 as a history: a folder of Parquet files, the same bytes every time.

    <folder>/2013-01.parquet … 2014-01.parquet   one file per month (UTC) of publish time
    <folder>/_history.json                       written last: what made the files, digests, counts

Rows are sorted by (publish_time, event_type, event_id). Columns: ``event_type``, ``event_id``,
``event_time``, ``publish_time``, none of them null, then one struct column per event type, null on rows of
other types.
A file comes into being under another name and is renamed; without a matching ``_history.json`` a folder is no
history yet, so that a run that was cut off is simply run again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apps.flights import clocks, source
from apps.flights import events as derivation
from shared_features import timezones
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.schema import EventSchema

SCHEMAS: dict[str, EventSchema] = {
    name: EventSchema(name, Path(__file__).parent / "schemas" / f"{name}.avsc", time=time, id="event_id")
    for name, time in (("departed", "departed_at"), ("arrived", "arrived_at"), ("weather", "observed_at"))
}
"""The event types of the history, in the order of its columns."""

MANIFEST = "_history.json"
"""The name begins with ``_`` so that readers of the folder as a Parquet data set pass it over."""

ROW_GROUP_ROWS = 32_768

Progress: TypeAlias = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and the step that begins."""


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
    return _complete_manifest(Path(folder)) is not None


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
    manifest = _complete_manifest(folder)
    if manifest is not None:
        report(1.0, "reused")
        return _summary(folder, manifest, reused=True)
    report(0.05, "read the CSV files")
    tables = source.read(source.locate())
    report(0.2, "derive the events")
    derived, counts = derivation.derive(tables)
    del tables
    try:
        manifest = _write(folder, derived, counts, report)
    except OSError as error:
        raise ConfigurationError(
            f"the history cannot be written to {folder} ({error.strerror or error}): "
            "make the folder writable, free space or name another folder"
        ) from error
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
    month = {name: _month(table["publish_time"]) for name, table in derived.items()}
    months = sorted(set().union(*(values.unique().to_pylist() for values in month.values())))
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_strangers(folder, {f"{name}.parquet" for name in months})
    (folder / MANIFEST).unlink(missing_ok=True)
    files: dict[str, Any] = {}
    for number, name in enumerate(months):
        report(0.5 + 0.5 * number / len(months), f"write {name}")
        rows = {kind: table.filter(pc.equal(month[kind], name)) for kind, table in derived.items()}
        sink = pa.BufferOutputStream()
        pq.write_table(assemble(rows), sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
        data = sink.getvalue().to_pybytes()
        _replace(folder / f"{name}.parquet", data)
        files[f"{name}.parquet"] = {
            "rows": sum(table.num_rows for table in rows.values()),
            "bytes": len(data),
            "sha256": _digest(data),
        }
    published = [pc.min_max(table["publish_time"]).as_py() for table in derived.values()]
    manifest = {
        **_origin(),
        "pyarrow": pa.__version__,
        "files": files,
        "events": {name: table.num_rows for name, table in derived.items()},
        "missing": dict(_missing(derived)),
        "counts": dataclasses.asdict(counts),
        "first_publish": min(each["min"] for each in published).isoformat(),
        "last_publish": max(each["max"] for each in published).isoformat(),
    }
    _replace(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def _month(instants: pa.ChunkedArray) -> pa.ChunkedArray:
    """Month in UTC, as YYYY-MM."""
    return pc.utf8_slice_codeunits(instants.cast(pa.date32()).cast(pa.string()), 0, 7)


def _missing(derived: dict[str, pa.Table]) -> Iterator[tuple[str, int]]:
    for name, table in derived.items():
        for field, values in zip(table.column_names, table.columns, strict=True):
            if values.null_count:
                yield f"{name}.{field}", values.null_count


def _refuse_strangers(folder: Path, names: set[str]) -> None:
    manifest = _read_manifest(folder)
    known = names | set(manifest["files"] if manifest else ())
    for path in sorted(folder.glob("*.parquet")):
        if path.name not in known:
            raise HistoryError(
                f"{folder} has a file {path.name} that is no part of the flights' history and would be read "
                "with it: move it away or name another folder"
            )
    for name in sorted(known - names):
        (folder / name).unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all, also after a power cut."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _origin() -> dict[str, Any]:
    """What decides the bytes of a history: data, zones, code."""
    here = Path(__file__).parent
    code = [Path(module.__file__ or "") for module in (clocks, derivation, source, timezones)]
    code += [here / "history.py", *sorted((here / "schemas").glob("*.avsc"))]
    return {
        "history": "flights",
        "package": f"{source.PACKAGE} {source.VERSION}",
        "sources": dict(source.DIGESTS),
        "time_zones": timezones.EDITION,
        "code": _digest(b"\0".join(path.read_bytes() for path in code)),
    }


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    good = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    return manifest if good else None


def _complete_manifest(folder: Path) -> dict[str, Any] | None:
    manifest = _read_manifest(folder)
    if manifest is None or any(manifest.get(key) != value for key, value in _origin().items()):
        return None
    if {path.name for path in folder.glob("*.parquet")} != set(manifest["files"]):
        return None
    for name, file in manifest["files"].items():
        if _digest((folder / name).read_bytes()) != file["sha256"]:
            return None
    return manifest


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
        bytes=sum(file["bytes"] for file in manifest["files"].values()),
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
