"""Training rows on disk: sharded Parquet made by the batch job, one folder per split, read as a stream.

    <folder>/train/*.parquet  <folder>/validate/*.parquet  <folder>/test/*.parquet

Columns: ``event_id``, ``event_time``, ``publish_time``, ``label`` (bool, never null) and one per feature.
Which features there are, and of which type, is read from the schema, never from a list in this package;
which definitions they were computed by is read from the schema's metadata and goes into the model.

A list of n numbers (a fixed-size list column) counts as n numbers here, ``name[0]`` to ``name[n-1]``; it becomes one
list again where the model is exported, as an input of shape [rows, n].
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared_features.errors import FingerprintError, HistoryError
from shared_features.lists import place_names, spread

SPLITS = ("train", "validate", "test")
ENVELOPE = ("event_id", "event_time", "publish_time")
LABEL = "label"
ROWS_PER_BLOCK = 65_536

Kind = Literal["number", "text"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature as the model sees it: ``number`` (int64, float64 and bool columns) or ``text``."""

    name: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows as arrays, in the order of the file.

    Attributes:
        numbers: float32 [rows, numbers]; null is NaN, false and true are 0 and 1.
        texts: one (codes int32 [rows], values object [distinct]) per text feature; null is "".
        labels: float32 [rows], 0 or 1.
    """

    numbers: npt.NDArray[np.float32]
    texts: tuple[tuple[npt.NDArray[np.int32], npt.NDArray[np.object_]], ...]
    labels: npt.NDArray[np.float32]

    def take(self, index: npt.NDArray[np.int64]) -> Batch:
        """The rows at ``index``, with strings in place of codes."""
        texts = np.empty((len(index), len(self.texts)), dtype=object)
        for column, (codes, values) in enumerate(self.texts):
            texts[:, column] = values[codes[index]]
        return self.numbers[index], texts, self.labels[index]


Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.object_], npt.NDArray[np.float32]]
"""(numbers float32 [rows, numbers], texts object [rows, texts], labels float32 [rows])"""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """A folder of training rows whose shards have been checked against each other.

    Attributes:
        folder: where they are.
        app: the app's name.
        fingerprint: of the definitions that computed the features.
        definitions: canonical JSON of these definitions, exactly as written by the batch job.
        features: in the order of the columns, those of a list one after the other.
        shards: split -> files, by name.
        counts: split -> rows.
        lists: list feature -> the names of its numbers among ``features``.
    """

    folder: Path
    app: str
    fingerprint: str
    definitions: str
    features: tuple[Feature, ...]
    shards: Mapping[str, tuple[Path, ...]]
    counts: Mapping[str, int]
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the number features."""
        return tuple(feature.name for feature in self.features if feature.kind == "number")

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text features."""
        return tuple(feature.name for feature in self.features if feature.kind == "text")

    def blocks(
        self,
        split: str,
        columns: Sequence[str] | None = None,
        *,
        shards: Sequence[Path] | None = None,
        rows_per_block: int = ROWS_PER_BLOCK,
    ) -> Iterator[pa.RecordBatch]:
        """Stream a split, shard by shard in the order of their names (or of ``shards``).

        Args:
            split: train, validate or test.
            columns: those to read; features and label where None.
            shards: files of the split to read instead of all, in this order.
            rows_per_block: greatest number of rows in a block; what is in memory at a time.
        """
        wanted = list(columns) if columns is not None else [f.name for f in self.features] + [LABEL]
        list_of = {place: name for name, names in self.lists.items() for place in names}
        read = list(dict.fromkeys(list_of.get(name, name) for name in wanted))
        for path in self.shards[split] if shards is None else shards:
            try:
                with pq.ParquetFile(path) as file:
                    for block in file.iter_batches(batch_size=rows_per_block, columns=read):
                        yield _spread(block, wanted) if self.lists else block
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from error

    def table(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A whole split in memory, sorted by ``event_id``: the same table however the split was sharded."""
        everything = [*ENVELOPE, *(feature.name for feature in self.features), LABEL]
        wanted = everything if columns is None else list(columns)
        read = list(dict.fromkeys(["event_id", *wanted]))
        table = pa.Table.from_batches(list(self.blocks(split, read)))
        return table.sort_by("event_id").select(wanted)

    def packed(self, data: pa.Table | pa.RecordBatch) -> Packed:
        """Turn columns into the arrays that models and baselines take."""
        numbers = np.empty((data.num_rows, len(self.numbers)), dtype=np.float32)
        for column, name in enumerate(self.numbers):
            numbers[:, column] = number_column(data[name])
        texts = tuple(_text_codes(data[name]) for name in self.texts)
        labels = _flat(data[LABEL]).cast(pa.float32()).to_numpy(zero_copy_only=False)
        return Packed(numbers, texts, labels)

    def time_range(self, split: str) -> tuple[str, str]:
        """First and last event time of a split, ISO 8601 in UTC."""
        low: Any = None
        high: Any = None
        for block in self.blocks(split, ["event_time"]):
            ends = pc.min_max(block["event_time"]).as_py()
            low = ends["min"] if low is None else min(low, ends["min"])
            high = ends["max"] if high is None else max(high, ends["max"])
        return low.isoformat(), high.isoformat()

    def require_fingerprint(self, fingerprint: str | None) -> None:
        """Refuse rows that were computed by other definitions than the caller's.

        Raises:
            FingerprintError: the rows carry another fingerprint; None asks for nothing.
        """
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise FingerprintError(
                f"Training rows in {self.folder} were made by the features {self.fingerprint[:12]}, but app "
                f"{self.app} now defines {fingerprint[:12]}: run `sameriver traindata` again."
            )


def number_column(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float64]:
    """A number or bool column as float64 [rows], null as NaN."""
    values: npt.NDArray[np.float64] = _flat(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def open_rows(folder: Path | str) -> TrainingRows:
    """Open a folder of training rows and check every shard's schema and metadata.

    Raises:
        HistoryError: a split or metadata is missing, shards differ, a column has a type no feature can
            have, or a label is null.
    """
    folder = Path(folder)
    shards: dict[str, tuple[Path, ...]] = {}
    counts: dict[str, int] = {}
    first: tuple[Path, pa.Schema, tuple[str, str, str]] | None = None
    for split in SPLITS:
        files = tuple(sorted((folder / split).glob("*.parquet")))
        if not files:
            raise HistoryError(
                f"Training rows in {folder} need Parquet files in {split}/, but there are none: "
                "run `sameriver traindata`."
            )
        counts[split] = 0
        for path in files:
            schema, rows = _schema_of(path)
            origin = _origin_of(path, schema)
            if first is None:
                first = (path, schema, origin)
            elif origin != first[2] or not schema.equals(first[1], check_metadata=False):
                raise HistoryError(
                    f"Training rows must all come from one run, but {path} has another schema, app or "
                    f"fingerprint than {first[0]}: run `sameriver traindata` into an empty folder."
                )
            counts[split] += rows
        if counts[split] == 0:
            raise HistoryError(f"{folder / split} holds no rows: widen the history's time range.")
        shards[split] = files
    assert first is not None
    features, lists = _features_of(first[0], first[1])
    app, fingerprint, definitions = first[2]
    return TrainingRows(folder, app, fingerprint, definitions, features, shards, counts, lists)


def _schema_of(path: Path) -> tuple[pa.Schema, int]:
    try:
        with pq.ParquetFile(path) as file:
            _require_labels(path, file)
            return file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> HistoryError:
    return HistoryError(
        f"Training rows must be Parquet, but {path} cannot be read ({error}): run `sameriver traindata` again."
    )


def _require_labels(path: Path, file: pq.ParquetFile) -> None:
    names = file.schema_arrow.names
    missing = [name for name in (*ENVELOPE, LABEL) if name not in names]
    if missing:
        raise HistoryError(
            f"Training rows need the columns {', '.join((*ENVELOPE, LABEL))}, but {path} has no "
            f"{', '.join(missing)}: run `sameriver traindata` again."
        )
    if not pa.types.is_boolean(file.schema_arrow.field(LABEL).type):
        raise HistoryError(
            f"The label must be bool, but {path} has {file.schema_arrow.field(LABEL).type}: make the app's "
            "Label a comparison."
        )
    if any(block.column(0).null_count for block in file.iter_batches(columns=[LABEL])):
        raise HistoryError(
            f"Every training row needs a label, but {path} has rows without: run "
            "`sameriver traindata` again, which leaves these out."
        )


def _origin_of(path: Path, schema: pa.Schema) -> tuple[str, str, str]:
    metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
    keys = ("sameriver.app", "sameriver.fingerprint", "sameriver.definitions")
    missing = [key for key in keys if not metadata.get(key)]
    if missing:
        raise HistoryError(
            f"Training rows carry what made them, but {path} lacks {', '.join(missing)} in its metadata: "
            "write it with `sameriver traindata`."
        )
    try:
        json.loads(metadata["sameriver.definitions"])
    except json.JSONDecodeError as error:
        raise HistoryError(
            f"sameriver.definitions in {path} must be JSON, but is not ({error}): run `sameriver traindata` again."
        ) from error
    return metadata[keys[0]], metadata[keys[1]], metadata[keys[2]]


def _features_of(path: Path, schema: pa.Schema) -> tuple[tuple[Feature, ...], dict[str, tuple[str, ...]]]:
    features: list[Feature] = []
    lists: dict[str, tuple[str, ...]] = {}
    for column in schema:
        if column.name in (*ENVELOPE, LABEL):
            continue
        plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_string(plain) or pa.types.is_large_string(plain):
            features.append(Feature(column.name, "text"))
        elif _is_number(plain):
            features.append(Feature(column.name, "number"))
        elif pa.types.is_fixed_size_list(plain) and _is_number(plain.value_type):
            lists[column.name] = tuple(place_names(column.name, plain))
            features += [Feature(name, "number") for name in lists[column.name]]
        else:
            raise HistoryError(
                f"A feature to train on must be int64, float64, bool, string or a list of numbers, but {column.name} "
                f"in {path} is {column.type}: change its definition."
            )
    if not features:
        raise HistoryError(f"Training needs at least one feature, but {path} has none: add one to the app.")
    return tuple(features), lists


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _spread(block: pa.RecordBatch, wanted: Sequence[str]) -> pa.RecordBatch:
    columns = spread(dict(zip(block.schema.names, block.columns, strict=True)))
    return pa.RecordBatch.from_arrays([columns[name] for name in wanted], names=list(wanted))


def _flat(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _text_codes(column: pa.Array | pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.object_]]:
    plain = pc.fill_null(_flat(column).cast(pa.string()), "")
    encoded = plain.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return codes, np.array(encoded.dictionary.to_pylist(), dtype=object)
