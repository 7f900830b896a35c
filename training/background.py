"""Rows that a prediction is compared with: a few of the training rows, kept with the model.

They are those whose identities hash lowest, so that it does not matter how the split was sharded. Features only: no
identity, no time, no label; and no text that training has seen too seldom to know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared_features.errors import ConfigurationError
from shared_features.hashing import hash_column
from training.export import SUMMARY
from training.rows import ENVELOPE, LABEL, ROWS_PER_BLOCK, TrainingRows

FILE = SUMMARY.with_name("background.parquet")
ROWS = 256


def write_background(folder: Path, rows: TrainingRows, texts: Mapping[str, Any], *, count: int = ROWS) -> None:
    """Put some rows of the training split into a version's folder, a column for each feature.

    Args:
        folder: of the version.
        rows: whose ``train`` split is read once.
        texts: of the model's statistics: a text that is not in its ``vocabulary`` is left out, as null.
        count: rows to keep, at most.
    """
    held, hashes = None, np.empty(0, np.uint64)
    for path in rows.shards["train"]:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name not in (*ENVELOPE, LABEL)]
            for block in file.iter_batches(ROWS_PER_BLOCK, columns=["event_id", *names]):
                found = hash_column(block["event_id"])
                lowest = np.argsort(found, kind="stable")[:count]
                plain = {name: _plain(block[name].take(pa.array(lowest)), texts.get(name)) for name in names}
                more = pa.table(plain)
                held = more if held is None else pa.concat_tables([held, more])
                hashes = np.concatenate([hashes, found[lowest]])
                lowest = np.argsort(hashes, kind="stable")[:count]
                held, hashes = held.take(pa.array(lowest)), hashes[lowest]
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    pq.write_table(held, path)


def _plain(column: pa.Array, known: Mapping[str, Any] | None) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if known is None:
        return column
    vocabulary = pa.array([value for value, _ in known["vocabulary"]], column.type)
    return pc.if_else(pc.is_in(column, value_set=vocabulary), column, pa.scalar(None, column.type))


def read_background(path: Path) -> pa.Table:
    """Rows to compare with, from a version's folder, or from a Parquet file with a column for each feature.

    Args:
        path: of the folder or the file.

    Raises:
        ConfigurationError: there are none, or they cannot be read.
    """
    if path.is_dir():
        path = path / FILE
        if not path.is_file():
            raise ConfigurationError(
                f"model {path.parent.parent} keeps no training rows to compare with: give a file of them as "
                "--background, or train it again"
            )
    try:
        found = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(
            f"background {path} must be a Parquet file of rows with features, but cannot be read ({error})"
        ) from None
    if not found.num_rows:
        raise ConfigurationError(f"background {path} has no rows: wanted some of the training rows")
    return found
