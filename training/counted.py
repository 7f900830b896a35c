"""What was counted of a training split, as a file of plain arrays beside the rows.

It holds no statistics but what they are computed from, so that any number of buckets can be made of it. It counts for
the shards whose names and sizes it tells.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared_features.errors import ConfigurationError
from training.checkpoint import DAMAGED
from training.rows import TrainingRows
from training.statistics import NumberAccumulator, SplitAccumulator, TextAccumulator

FORMAT = 1
FILE = "_statistics.npz"
HEADER = "header"


def held_counts(rows: TrainingRows) -> SplitAccumulator | None:
    """What a pass over all of the training split has left beside the rows; None if none has, or over other shards.

    Raises:
        ConfigurationError: the file is damaged.
    """
    path = rows.folder / FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            header = json.loads(bytes(held[HEADER]))
        return read_counted(path) if [header["format"], header["shards"]] == [FORMAT, shards_of(rows)] else None
    except DAMAGED as error:
        raise ConfigurationError(f"{path} is damaged ({error}): remove it, and the rows are counted anew.") from error


def shards_of(rows: TrainingRows) -> list[list[Any]]:
    """Names and sizes of the training split's files."""
    return [[path.name, path.stat().st_size] for path in rows.shards["train"]]


def write_counted(path: Path, counted: SplitAccumulator, shards: list[list[Any]]) -> None:
    """Put what is counted into a file of arrays: sorted runs and values of each number, the rest as JSON.

    Args:
        path: of the file; it is there whole or not at all.
        counted: what is written.
        shards: that were counted, see `shards_of`.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    numbers = []
    for place, (name, one) in enumerate(counted.numbers.items()):
        levels = {level: len(runs) for level, runs in one.runs.items()}
        ends = [one.least, one.greatest] if one.count else []
        numbers.append([name, one.rows, one.count, one.mean, one.squares, ends, list(levels.items())])
        arrays[f"{place}.values"] = np.concatenate([np.empty(0), *one.values])
        arrays |= {f"{place}.{level}": np.stack(runs) for level, runs in one.runs.items() if runs}
    header = {
        "format": FORMAT,
        "shards": shards,
        "rows": counted.rows,
        "positives": counted.positives,
        "numbers": numbers,
        "texts": [[name, one.rows, list(one.counts.items())] for name, one in counted.texts.items()],
    }
    arrays[HEADER] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def read_counted(path: Path) -> SplitAccumulator:
    """What `write_counted` wrote."""
    with np.load(path, allow_pickle=False) as held:
        header = json.loads(bytes(held[HEADER]))
        numbers = {}
        for place, (name, rows, count, mean, squares, ends, levels) in enumerate(header["numbers"]):
            runs = {level: list(held[f"{place}.{level}"]) if runs else [] for level, runs in levels}
            least, greatest = ends or (np.inf, -np.inf)
            values = [held[f"{place}.values"]]
            numbers[name] = NumberAccumulator(rows, count, mean, squares, least, greatest, values, runs)
    texts = {name: TextAccumulator(rows, Counter(dict(counts))) for name, rows, counts in header["texts"]}
    return SplitAccumulator(numbers, texts, header["rows"], header["positives"])
