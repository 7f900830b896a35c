"""Parquet files that are there to be read, in a folder here or at ``gs://``, by their full names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch.files import open_files, told
from shared_features.errors import HistoryError

_DIGEST_BYTES = 1 << 22


def parquet_files(uri: str) -> tuple[str, list[str]]:
    """A folder, and the names of all files in it and below that do not lie under ``_…`` or ``.…``; or one file.

    Raises:
        HistoryError: nothing is there.
    """
    if uri.startswith("gs://") and uri.endswith(".parquet"):
        return uri.rpartition("/")[0], [uri]
    if not uri.startswith("gs://"):
        path = Path(uri)
        if path.is_file():
            return str(path.parent), [str(path)]
        if not path.is_dir():
            raise HistoryError(
                f"history {path} does not exist: wanted a folder or file of Parquet; make one with `sameriver data`"
            )
    names = [
        name
        for name in open_files(uri).names()
        if name.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in name.split("/"))
    ]
    if not names:
        raise HistoryError(f"history {uri} has no Parquet file: wanted at least one; make them with `sameriver data`")
    root = uri.rstrip("/") if uri.startswith("gs://") else str(Path(uri))
    return root, [f"{root}/{name}" for name in names]


@contextmanager
def opened(path: str) -> Iterator[pq.ParquetFile]:
    """One file, open for reading.

    Raises:
        HistoryError: it cannot be reached. What is wrong with its content is Arrow's to say.
    """
    if not path.startswith("gs://"):
        with pq.ParquetFile(path) as file:
            yield file
        return
    folder, _, name = path.rpartition("/")
    with told(f"reading {path}"), open_files(folder).open(name) as raw, pq.ParquetFile(raw) as file:
        yield file


def content(path: str, root: str) -> dict[str, Any]:
    """What identifies a file and its content: its name below ``root`` and a digest; at ``gs://`` the service's own."""
    if path.startswith("gs://"):
        folder, _, name = path.rpartition("/")
        return {"file": path.removeprefix(f"{root}/"), "crc32c": open_files(folder).checksum(name)}
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_DIGEST_BYTES):
            digest.update(chunk)
    name = Path(path).relative_to(root).as_posix()
    return {"file": name, "bytes": Path(path).stat().st_size, "sha256": digest.hexdigest()}


def read_row_groups(path: str, groups: list[int], columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Some columns of some row groups, in batches of at most so many rows.

    Raises:
        HistoryError: the file has changed or gone.
    """
    try:
        with opened(path) as file:
            yield from file.iter_batches(rows, row_groups=groups, columns=columns)
    except (pa.ArrowException, OSError, IndexError) as error:
        first = (str(error) or type(error).__name__).partition("\n")[0]
        raise HistoryError(f"{path} cannot be read any more ({first}): run again") from error
