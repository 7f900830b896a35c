"""Training rows that go elsewhere: to ``gs://bucket/folder``, or to a BigQuery table.

They are made in a folder of this machine first, as `batch.traindata` makes them, and then put where they go; a run that
was killed finds what it has made.

At ``gs://`` the files lie as in a folder; ``_training.json`` comes last, and with it the rows count as whole. A folder
that holds rows of something else is refused: objects have no rename that could replace a folder at one moment.

In BigQuery, rows of many makings stand in one table, side by side: ``training`` names what made a row (app, history and
its content, splits, label), ``split`` says what it is for, ``row_id`` is its identity. All rows of one making are seen
at one moment, and making the same again adds none.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.files import CHUNK_BYTES, Files, open_files
from batch.traindata import MANIFEST, TrainingSummary, make_training_rows
from batch.writers import Shape, open_destination
from shared_features.app import App
from shared_features.errors import ConfigurationError

_BATCH_ROWS = 65_536
_COLUMNS = ("row_id", "training", "split")


def put_training_rows(app: App, history: str, out: str, *, work: Path, **options: Any) -> TrainingSummary:
    """Make training rows and put them to ``out``; further arguments as for `make_training_rows`.

    Args:
        work: folder in which they are made, gone from there at the end.

    Raises:
        HistoryError: as there, or ``out`` cannot be reached or written.
        ConfigurationError: as there, or ``out`` holds something else or takes Parquet only.
    """
    to_table = out.startswith("bq://")
    if to_table and options.get("file_format", "parquet") != "parquet":
        raise ConfigurationError(f"rows in {out} have no file format: leave --format out")
    folder = work / "rows"
    summary = make_training_rows(app, history, folder, **options)
    origin = json.loads((folder / MANIFEST).read_bytes())["origin"]
    reused = _to_table(folder, out, origin) if to_table else _to_bucket(folder, out, origin)
    shutil.rmtree(folder)
    return replace(summary, folder=out, reused=reused)


def _to_bucket(folder: Path, out: str, origin: dict[str, Any]) -> bool:
    """Whether the rows were there already."""
    files = open_files(out)
    names = files.names()
    if MANIFEST in names:
        with files.open(MANIFEST) as file:
            held = json.loads(file.read()).get("origin")
        if held == origin and origin["history_version"] is not None:
            return True
        if held != origin:
            raise ConfigurationError(f"{out} holds training rows of something else: name an empty folder")
        files.remove(MANIFEST)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        _upload(files, path, path.relative_to(folder).as_posix())
    _upload(files, folder / MANIFEST, MANIFEST)
    return False


def _upload(files: Files, path: Path, name: str) -> None:
    with path.open("rb") as source, files.create(name) as target:
        while chunk := source.read(CHUNK_BYTES):
            target.write(chunk)


def _to_table(folder: Path, out: str, origin: dict[str, Any]) -> bool:
    """Whether the rows were there already."""
    training = hashlib.blake2b(json.dumps(origin, sort_keys=True).encode(), digest_size=8).hexdigest()
    paths = sorted(folder.rglob("*.parquet"))
    schema = pa.schema([*((name, pa.string()) for name in _COLUMNS), *pq.read_schema(paths[0])])
    destination = open_destination(out, Shape(schema, "row_id"))
    destination.prepare()
    tokens = []
    for path in paths:
        with pq.ParquetFile(path) as file, destination.piece(path.stem) as piece:
            for batch in file.iter_batches(_BATCH_ROWS):
                piece.write(_named(batch, schema, training, path.parent.name))
        tokens.append(piece.token)
    return destination.commit(tokens).rows == 0


def _named(batch: pa.RecordBatch, schema: pa.Schema, training: str, split: str) -> pa.RecordBatch:
    ids = [f"{training}/{event_id}" for event_id in batch.column("event_id").to_pylist()]
    said = [ids, [training] * batch.num_rows, [split] * batch.num_rows]
    return pa.RecordBatch.from_arrays([*(pa.array(one, pa.string()) for one in said), *batch.columns], schema=schema)
