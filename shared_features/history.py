"""A history on disk: events as Parquet files, one per month of publish time (UTC), the same bytes every time.

    <folder>/2013-01.parquet …   rows by (publish_time, event_type, event_id), which is fold order
    <folder>/_history.json       written last: what made the files, digests, counts

Columns: ``event_type``, ``event_id``, ``event_time``, ``publish_time``, none of them null, then one struct column
per event type, null on rows of other types. A file comes into being under another name and is renamed; without a
``_history.json`` that matches, a folder is no history yet, so that a run that was cut off is simply run again.

An app says where its example history comes from in ``history.py`` beside its ``app.py``: one function,
``write_history(folder, progress)``, called by `sameriver data`, `train` and `demo`. For events that are Python
objects, `write_events` does the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared_features.app import App
from shared_features.blocks import block_schema, nest
from shared_features.decode import Decoder
from shared_features.errors import ConfigurationError, HistoryError

MANIFEST = "_history.json"
"""The name begins with ``_`` so that readers of the folder as a Parquet data set pass it over."""

ROW_GROUP_ROWS = 32_768
CHUNK = 5_000
FORMAT_VERSION = 1

Progress: TypeAlias = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and the step that begins."""


@dataclass(frozen=True)
class HistorySummary:
    """What a history holds.

    Attributes:
        folder: where the Parquet files are.
        reused: whether a complete history was found there and nothing was written.
        events: rows per event type.
        first_publish, last_publish: ISO 8601, UTC.
        files, bytes: Parquet files and their size together.
    """

    folder: str
    reused: bool
    events: dict[str, int]
    first_publish: str
    last_publish: str
    files: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


def write_events(
    app: App,
    events: Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    made_by: str | Path | Sequence[str | Path],
    progress: Progress | None = None,
) -> HistorySummary:
    """Write events as a history, or find that they are there already, and sum them up.

    Args:
        app: whose events these are.
        events: each as it would be published, with its ``event_type``: fields by name, an absent one is null, a
            timestamp is a datetime with a zone or an integer in the schema's unit. In any order. Not read at all
            if the history is there. They are taken to be published at their event time.
        folder: where to; made if it is not there.
        made_by: the files that decide the events (the code, usually ``__file__``): when one of them or a schema
            changes, the history is written again.
        progress: called with the share done, which is not known here before the end, and the step.

    Raises:
        HistoryError: an event is one that the job would refuse (the message has its number, from 1 on), there
            are none, or ``folder`` has other Parquet files in it.
        ConfigurationError: ``folder`` cannot be written.
    """
    folder, report = Path(folder), progress or _silent
    files = [made_by] if isinstance(made_by, str | Path) else list(made_by)
    code = [Path(file).read_bytes() for file in files]
    schemas = {name: event_type.canonical for name, event_type in app.event_types.items()}
    origin = {
        "history": app.name,
        "format_version": FORMAT_VERSION,
        "code": digest(b"\0".join([*code, json.dumps(schemas, sort_keys=True).encode()])),
    }
    manifest = complete_manifest(folder, origin)
    reused = manifest is not None
    if manifest is None:
        report(0.05, "make the events")
        table = _decoded(app, events, report)
        months = month_of(table["publish_time"])
        names = sorted(months.unique().to_pylist())
        counts = table["event_type"].value_counts().to_pylist()
        ends = pc.min_max(table["publish_time"]).as_py()
        facts = {
            "events": {one["values"]: one["counts"] for one in sorted(counts, key=lambda one: str(one["values"]))},
            "first_publish": ends["min"].isoformat(),
            "last_publish": ends["max"].isoformat(),
        }
        manifest = write_months(
            folder, origin, names, lambda name: nest(table.filter(pc.equal(months, name))), facts, report
        )
    report(1.0, "reused" if reused else "written")
    return HistorySummary(
        folder=str(folder),
        reused=reused,
        events=manifest["events"],
        first_publish=manifest["first_publish"],
        last_publish=manifest["last_publish"],
        files=len(manifest["files"]),
        bytes=total_bytes(manifest),
    )


class _Message(NamedTuple):
    """An event as the decoder takes it."""

    data: bytes
    attributes: dict[str, str]
    message_id: str = ""
    publish_time_us: int = 0


def _decoded(app: App, events: Iterable[Mapping[str, Any]], report: Progress) -> pa.Table:
    """The events, checked as the job checks them, in fold order, in flat columns."""
    decoder, blocks, done = Decoder(app.event_types), [], 0
    for chunk in _chunks(events):
        decoded = decoder.decode([_message(event) for event in chunk])
        if decoded.rejected:
            bad = decoded.rejected[0]
            raise HistoryError(f"event {done + bad.index + 1} of the history of app {app.name!r}: {bad.detail}")
        blocks.append(decoded.block)
        done += len(chunk)
        report(0.1, f"{done:,} events made")
    if not blocks:
        raise HistoryError(f"the history of app {app.name!r} has no events: wanted at least one")
    table = pa.Table.from_batches(blocks, schema=block_schema(app.event_types)).drop_columns("message_id")
    place = table.schema.get_field_index("publish_time")
    table = table.set_column(place, "publish_time", table["event_time"])
    return table.sort_by([(name, "ascending") for name in ("publish_time", "event_type", "event_id")]).combine_chunks()


def _chunks(events: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    rest = iter(events)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _message(event: Mapping[str, Any]) -> _Message:
    fields = {name: value for name, value in event.items() if name != "event_type"}
    attributes = {"event_type": str(event["event_type"])} if "event_type" in event else {}
    return _Message(json.dumps(fields, default=_plain).encode(), attributes)


def _plain(value: object) -> object:
    """NumPy scalars as Python's own, datetimes as text."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, datetime):
        return value.isoformat()
    raise HistoryError(f"an event of the history has a {type(value).__name__}: wanted a number, text, bool or datetime")


# -- the folder ---------------------------------------------------------------------------------------------
def complete_manifest(folder: Path, origin: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest, if ``folder`` holds the whole history that ``origin`` makes, else None.

    Args:
        folder: of the history.
        origin: all that decides the bytes of the files, as plain JSON values.
    """
    manifest = _read_manifest(folder)
    if manifest is None or any(manifest.get(key) != value for key, value in origin.items()):
        return None
    if {path.name for path in folder.glob("*.parquet")} != set(manifest["files"]):
        return None
    for name, file in manifest["files"].items():
        if digest((folder / name).read_bytes()) != file["sha256"]:
            return None
    return manifest


def write_months(
    folder: Path,
    origin: Mapping[str, Any],
    months: Sequence[str],
    rows_of: Callable[[str], pa.Table],
    facts: Mapping[str, Any],
    report: Progress,
) -> dict[str, Any]:
    """Write the files of a history, then its manifest, which is returned.

    Args:
        folder: of the history; made if it is not there.
        origin: see `complete_manifest`.
        months: as ``YYYY-MM``, in order.
        rows_of: the rows of a month, in the columns and the order of a history.
        facts: what else the manifest holds, as plain JSON values.
        report: told of each month, with shares from 0.5 on.

    Raises:
        HistoryError: ``folder`` has other Parquet files in it, which a reader would take for history.
        ConfigurationError: ``folder`` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_strangers(folder, {f"{name}.parquet" for name in months})
        (folder / MANIFEST).unlink(missing_ok=True)
        files: dict[str, Any] = {}
        for number, name in enumerate(months):
            report(0.5 + 0.5 * number / len(months), f"write {name}")
            rows, sink = rows_of(name), pa.BufferOutputStream()
            pq.write_table(rows, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS)
            data = sink.getvalue().to_pybytes()
            _replace(folder / f"{name}.parquet", data)
            files[f"{name}.parquet"] = {"rows": rows.num_rows, "bytes": len(data), "sha256": digest(data)}
        manifest = {**origin, "pyarrow": pa.__version__, "files": files, **facts}
        _replace(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigurationError(
            f"the history cannot be written to {folder} ({error.strerror or error}): "
            "make the folder writable, free space or name another folder"
        ) from error
    return manifest


def month_of(instants: pa.ChunkedArray) -> pa.ChunkedArray:
    """Month in UTC, as YYYY-MM."""
    return pc.utf8_slice_codeunits(instants.cast(pa.date32()).cast(pa.string()), 0, 7)


def total_bytes(manifest: Mapping[str, Any]) -> int:
    """Size of the Parquet files together, in bytes."""
    return sum(int(file["bytes"]) for file in manifest["files"].values())


def digest(data: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    good = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    return manifest if good else None


def _refuse_strangers(folder: Path, names: set[str]) -> None:
    manifest = _read_manifest(folder)
    known = names | set(manifest["files"] if manifest else ())
    for path in sorted(folder.glob("*.parquet")):
        if path.name not in known:
            raise HistoryError(
                f"{folder} has a file {path.name} that is no part of this history and would be read with it: "
                "move it away or name another folder"
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


def _silent(share: float, step: str) -> None:
    """The progress of someone who does not look."""
