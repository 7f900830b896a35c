"""A history whose texts carry what external models say about them, made of one whose texts do not.

Batch jobs ask nobody: what a model says could be another number tomorrow, or beside other texts, and training rows,
backfill and snapshot would no longer be of one history. So a history is asked about once, here, by the code and the
rules of the live job, and what comes of it is a history like any other: rows with answers of the app's version keep
them. An archive has them already.

    <folder>/part-00000.parquet …   one for each split of the history
    <folder>/_asked.json            written first: what is asked about what; and at the end what came of it
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.bigquery_history import decode_messages, is_messages
from batch.tables import event_schema, open_history, read_split, used_types
from shared_features.app import App
from shared_features.blocks import nest
from shared_features.clean import clean_block
from shared_features.errors import ConfigurationError, HistoryError
from shared_features.external import Ask, External, Said, answered, has_externals
from shared_features.plan import make_plan
from shared_features.whole_files import replace_text

MANIFEST = "_asked.json"
EXAMPLES = 20


@dataclass(slots=True)
class Asked:
    """What came of it.

    Attributes:
        folder: with the new history.
        rows: in it.
        texts: that were put to a model; each once in a block of some ten thousand rows.
        left_out: rows that are not in it, by reason.
        examples: event ids of some of them, and why.
    """

    folder: str
    rows: int
    texts: int
    left_out: dict[str, int]
    examples: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return asdict(self)


def ask_history(app: App, history: str | Path, folder: Path, ask: Ask, progress: Callable[[float, str], None]) -> Asked:
    """Write a history with answers; a run that was cut off goes on where it was.

    Args:
        app: whose event types name the models.
        history: as for `batch.tables.open_history`.
        folder: of the new history.
        ask: puts texts to the models.
        progress: told the share done and the step.

    Raises:
        ConfigurationError: the app has no external model, or the folder holds something else or cannot be written.
        HistoryError: the history cannot be read.
    """
    if not has_externals(app.event_types):
        raise ConfigurationError(f"app {app.name!r} has no external model: give its event types external=[…] first")
    source = open_history(history, make_plan(app))
    origin = {
        "history": str(history),
        "version": source.version,
        "models": {name: [one.definition for one in of.external] for name, of in app.event_types.items()},
    }
    _begin(folder, json.loads(json.dumps(origin)))
    total = Asked(str(folder), 0, 0, {}, {})
    left_out: Counter[str] = Counter()
    for number, split in enumerate(source.splits):
        progress(number / len(source.splits), f"part {number + 1} of {len(source.splits)}")
        path = folder / f"part-{number:05}.parquet"
        if not path.exists():
            _write_part(app, split, path, ask)
        told = json.loads(pq.read_metadata(path).metadata[b"sameriver.asked"])
        total.rows += told["rows"]
        total.texts += told["texts"]
        left_out.update(told["left_out"])
        total.examples |= dict(list(told["examples"].items())[: EXAMPLES - len(total.examples)])
    total.left_out = dict(left_out)
    replace_text(folder / MANIFEST, json.dumps({**origin, "done": total.as_dict()}, indent=1) + "\n")
    return total


def _begin(folder: Path, origin: dict[str, Any]) -> None:
    """Make the folder, or find in it what is going on there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if any(before.get(name) != value for name, value in origin.items()):
                raise ConfigurationError(
                    f"{folder} holds answers of other models or about another history: give another --out, or remove it"
                )
            return
        if any(folder.glob("*.parquet")):
            raise ConfigurationError(f"{folder} holds other Parquet files: give another --out")
        replace_text(folder / MANIFEST, json.dumps(origin, indent=1) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written ({error.strerror}): give another --out") from error
    except ValueError as error:
        raise HistoryError(f"{folder / MANIFEST} is damaged ({error}): remove the folder and run again") from error


def _write_part(app: App, split: bytes, path: Path, ask: Ask) -> None:
    """The rows of a split with answers, as a file that is there whole or not at all."""
    told: dict[str, Any] = {"rows": 0, "texts": 0, "left_out": Counter(), "examples": {}}

    def counting(external: External, texts: Any) -> Said:
        told["texts"] += len(texts)
        return ask(external, texts)

    beside = path.with_name(f".{path.name}.part")
    writer: pq.ParquetWriter | None = None
    try:
        with beside.open("wb") as file:
            for block in read_split(split):
                rows = nest(_answered(app, block, counting, told))
                writer = writer or pq.ParquetWriter(file, rows.schema, compression="zstd")
                writer.write_batch(rows)
                told["rows"] += rows.num_rows
            writer = writer or pq.ParquetWriter(file, nest(_none(app)).schema)
            writer.add_key_value_metadata({"sameriver.asked": json.dumps(told)})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written ({error.strerror}): free space or give another --out"
        ) from error


def _answered(app: App, block: pa.RecordBatch, ask: Ask, told: dict[str, Any]) -> pa.RecordBatch:
    """A block with answers, without the rows that have none; whether rows are good otherwise is for later jobs."""
    if is_messages(block.schema.names):
        block, refused = decode_messages(app, block)
        told["left_out"].update(refused)
        block = block.select(event_schema(app).names)
    types = {name: app.event_types[name] for name in used_types(app)}
    block, unsaid = answered(clean_block(block, types.values()), types, ask)
    if not unsaid:
        return block
    told["left_out"]["external_refused"] += len(unsaid)
    ids = block.column("event_id")
    for row, why in list(unsaid.items())[:EXAMPLES]:
        told["examples"].setdefault(str(ids[row]), why)
    keep = np.ones(block.num_rows, bool)
    keep[list(unsaid)] = False
    return block.filter(pa.array(keep))


def _none(app: App) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=event_schema(app))
