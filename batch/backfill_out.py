"""Rows of a backfill go where they belong: what is there wins, what is there with other values is counted (C7)."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batch.backfill_rows import writer_of
from batch.existing import KnownRows, absent, differing_rows
from batch.files import open_files
from batch.output_rows import KINDS, shape_of
from batch.writers import Shape, Written, open_destination
from shared_features.app import App
from shared_features.blocks import empty_block
from shared_features.errors import ConfigurationError


@dataclass(slots=True)
class Outcome:
    """What became of a run's rows.

    Attributes:
        added, there, differing: rows written; left out, for they were there; of these, with other values.
        files: written here, and their size in bytes.
    """

    added: int = 0
    there: int = 0
    differing: int = 0
    files: dict[str, int] = field(default_factory=dict)


def is_here(out: str | Path) -> bool:
    """Whether ``out`` is a folder on this machine, or one that it sees."""
    return "://" not in str(out)


def intact(out: str | Path, files: dict[str, int]) -> bool:
    """Whether the files are there as they were written; files elsewhere are taken for granted."""
    return not is_here(out) or all(_size(Path(out) / name) == size for name, size in files.items())


def predicted_files(app: App, folder: Path) -> list[Path]:
    """Files of a folder with rows that the app, as it is, predicted on: by publish date, those of a shard in order.

    Raises:
        ConfigurationError: there are none.
    """
    found = []
    for path in sorted(folder.glob("publish_date=*/*.parquet")):
        footer = pq.read_schema(path)
        fingerprint = (footer.metadata or {}).get(b"sameriver.fingerprint", b"").decode()
        if fingerprint == app.fingerprint and "prediction_id" in footer.names:
            found.append(path)
    if not found:
        raise ConfigurationError(
            f"{folder} has no predictions of app {app.name!r} with fingerprint {app.fingerprint}: wanted a folder that "
            "`sameriver backfill` wrote with models"
        )
    return found


def put_in_place(app: App, out: str | Path, staged: Path, run: str, schema: pa.Schema) -> Outcome:
    """Give the rows of all files below ``staged`` to a folder, or as predictions to ``gs://…`` or ``bq://…``.

    Elsewhere they become what `sameriver archive export --what predictions` writes: the same table may have both.

    Cut off and called again it goes on; called again once all is done it adds nothing.
    """
    shape = Shape(schema, identity=identity_of(schema), uncompared=tuple(_uncompared(schema)))
    if not is_here(out):
        return _sent(app, "predictions", str(out), staged, run)
    out, outcome = Path(out), Outcome()
    waiting = {f"{path.parent.name}/{run}-{path.name}" for path in staged.glob("publish_date=*/*.parquet")}
    for path in out.glob(f"publish_date=*/{run}-*.parquet"):  # of this run, when it was cut off here
        if path.relative_to(out).as_posix() not in waiting:
            _note(outcome, out, path, pq.read_metadata(path).num_rows)
    known: KnownRows | None = None
    others = any(not path.name.startswith(f"{run}-") for path in out.glob("publish_date=*/*.parquet"))
    for path in sorted(staged.glob("publish_date=*/*.parquet")):
        target = out / path.parent.name / f"{run}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if not others:
            rows = pq.read_metadata(path).num_rows
            path.replace(target)
        else:
            known = known or KnownRows(open_files(str(out)), shape)
            rows = _put_new(path, target, shape, known, outcome)
        if rows:
            _note(outcome, out, target, rows)
    for name in outcome.files:
        _make_durable(out / name)
    return outcome


def identity_of(schema: pa.Schema) -> str:
    """The column that tells rows apart: the prediction's id, or, where nothing is predicted, the event's."""
    return "prediction_id" if "prediction_id" in schema.names else "event_id"


def _uncompared(schema: pa.Schema) -> list[str]:
    """What may differ: where a row was folded follows from shards, the last bits of a prediction from its request."""
    places = ("epoch", "shard", "position")
    return [
        name
        for name in schema.names
        if name.startswith("prediction.") or (name.startswith("stage.") and name.rpartition(".")[2] in places)
    ]


def _put_new(path: Path, target: Path, shape: Shape, known: KnownRows, outcome: Outcome) -> int:
    """Write the rows that are not there yet; how many."""
    temporary = path.with_name(f".new-{path.name}")
    rows = 0
    with pq.ParquetFile(path) as file, writer_of(temporary, shape.schema) as writer:
        for block in file.iter_batches(65_536):
            there = known.rows(block)
            if there.num_rows:
                outcome.there += there.num_rows
                outcome.differing += differing_rows(shape, block, there)
                block = absent(block, shape.identity, there)
            if block.num_rows:
                writer.write_table(pa.Table.from_batches([block]).cast(shape.schema))
                rows += block.num_rows
    if rows:
        temporary.replace(target)
    else:
        temporary.unlink()
    path.unlink()
    return rows


def _note(outcome: Outcome, out: Path, path: Path, rows: int) -> None:
    outcome.added += rows
    outcome.files[path.relative_to(out).as_posix()] = path.stat().st_size


def _make_durable(path: Path) -> None:
    """Force a file and its name to disk: what the manifest says must be there after a power cut."""
    for place in (path, path.parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def put_reactions(app: App, to: str, staged: Path, run: str) -> Outcome:
    """Give the reactions of the rows of all files below ``staged`` to a folder, ``gs://…`` or ``bq://…``.

    They become what `sameriver archive export --what reactions` writes; before `put_in_place`, which takes the files.
    """
    return _sent(app, "reactions", to, staged, run)


def _sent(app: App, kind: str, to: str, staged: Path, run: str) -> Outcome:
    """Rows of a kind of `batch.output_rows.KINDS`, made of the rows of all files below ``staged``, once."""
    kept, rows_of = staged.parent / f"tokens-{kind}.json", KINDS[kind][0]
    paths = sorted(staged.glob("publish_date=*/*.parquet"))
    if not paths and not kept.exists():
        return Outcome()
    schema = rows_of(app, empty_block(pq.read_schema(paths[0]))).schema if paths else pa.schema([])
    destination = open_destination(to, shape_of(app, kind, schema))
    if kept.exists():
        tokens = [base64.b64decode(token) for token in json.loads(kept.read_text("ascii"))]
    else:
        destination.prepare()
        tokens = []
        for path in paths:
            with pq.ParquetFile(path) as file, destination.piece(f"{path.parent.name}/{run}-{path.stem}") as piece:
                for block in file.iter_batches(65_536):
                    piece.write(rows_of(app, block))
            tokens.append(piece.token)
        temporary = kept.with_suffix(".new")
        temporary.write_text(json.dumps([base64.b64encode(token).decode("ascii") for token in tokens]), "ascii")
        temporary.replace(kept)
    written: Written = destination.commit(tokens)
    return Outcome(written.rows, written.existing, written.differing)
