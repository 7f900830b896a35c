"""SQL over what is on disk: history, training rows and archive as tables, by DuckDB, which can read nothing else.

Its database is in memory. Before a query runs, DuckDB is told which files there are; file access beyond them,
extensions and Python's variables are turned off, and the configuration is locked. A query is one SELECT, so nothing is
written.

    history     events as Parquet, one struct column per event type: ``departed.origin``
    training    training rows, with the column ``split``
    archive     what was served: ``feature``, ``prediction``, ``reaction``, ``stage`` … as structs beside the events'
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.errors import ConfigurationError, HistoryError
from streaming import archive as archives
from streaming import archive_log
from streaming.archive_parquet import ROWS, index_path, read_index

BATCH_ROWS = 65_536
MEMORY = "2GB"

_SPLITS = ("train", "validate", "test")


@dataclass(frozen=True, slots=True)
class Table:
    """What a name stands for.

    Attributes:
        name: in SQL.
        files: Parquet files and what the column ``split`` says of each; None adds no such column.
        blocks: rows that are not Parquet yet.
    """

    name: str
    files: Sequence[tuple[Path, str | None]]
    blocks: Sequence[pa.RecordBatch] = ()


def parquet_table(name: str, where: Path) -> Table | None:
    """A folder of Parquet files, those in its sub-folders too, or one file; None if there is none."""
    return Table(name, [(path, None) for path in _parquet_files(where)]) if _parquet_files(where) else None


def training_table(folder: Path) -> Table | None:
    """Training rows, all splits; None if there are none."""
    files = [(path, split) for split in _SPLITS for path in sorted((folder / split).glob("*.parquet"))]
    return Table("training", files) if files else None


def archive_table(folder: Path) -> Table | None:
    """An archive's rows; those that are still in its log are read into memory. None if there is no archive.

    Raises:
        HistoryError: it is damaged.
    """
    if not (folder / "archive.json").is_file():
        return None
    files: list[tuple[Path, str | None]] = []
    blocks: list[pa.RecordBatch] = []
    found = archives.segments(folder)
    for path in found:
        first = int(path.stem)
        if path.suffix != ".parquet":
            try:
                with path.open("rb") as log:
                    commits = archive_log.read_segment(log, is_last=path == found[-1], published=-1)
                    blocks += [_plain(commit.block) for commit in commits if commit.block.num_rows]
                continue
            except FileNotFoundError:  # it became Parquet meanwhile
                pass
        files += [(folder / ROWS / name, None) for name, _, _ in read_index(index_path(folder, first)).files]
    return Table("archive", files, blocks)


def _plain(block: pa.RecordBatch) -> pa.RecordBatch:
    """Lists of a fixed size as lists of any size, which the archive's Parquet has, too."""
    columns = [
        column.cast(pa.list_(column.type.value_field)) if pa.types.is_fixed_size_list(column.type) else column
        for column in block.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=block.schema.names)


def _parquet_files(where: Path) -> list[Path]:
    if where.is_file():
        return [where]
    return [
        path
        for path in sorted(where.rglob("*.parquet"))
        if not any(part.startswith(("_", ".")) for part in path.relative_to(where).parts)
    ]


class Database:
    """Some tables, to be asked; made by `opened`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str]) -> None:
        self._connection, self._names = connection, names

    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """Columns and their types, by table."""
        return {
            name: [(row[0], row[1]) for row in self._connection.execute(f"DESCRIBE {quoted(name)}").fetchall()]
            for name in self._names
        }

    def query(self, sql: str) -> pa.RecordBatchReader:
        """The answer to one SELECT, some rows at a time.

        Raises:
            ConfigurationError: it is no single SELECT, or DuckDB refuses it; the message has its reason.
        """
        with self._told():
            statements = self._connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ConfigurationError(
                    f"the query has {len(statements)} statements, wanted exactly one SELECT"
                    if len(statements) != 1
                    else f"the query is a {statements[0].type.name}, wanted a SELECT: nothing is written here"
                )
            answer: pa.RecordBatchReader = self._connection.sql(statements[0].query).to_arrow_reader(BATCH_ROWS)
        return pa.RecordBatchReader.from_batches(answer.schema, self._batches(answer))

    def _batches(self, answer: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        with self._told():
            yield from answer

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, pa.ArrowException) as error:
            why = " ".join(str(error).partition("\n\nLINE")[0].split())
            raise ConfigurationError(
                f"the query cannot be answered ({why[:400]}): there are the tables {', '.join(self._names)}; "
                "`sameriver sql` alone lists their columns"
            ) from None


@contextmanager
def opened(tables: Sequence[Table]) -> Iterator[Database]:
    """A database with these tables, and nothing else that it could read or write.

    Raises:
        HistoryError: a file cannot be read as Parquet.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "memory_limit": MEMORY,
    }
    with (
        tempfile.TemporaryDirectory(prefix="sameriver-sql-") as spill,
        duckdb.connect(":memory:", config=config) as connection,
    ):
        files = [str(path.absolute()) for table in tables for path, _ in table.files]
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET allowed_paths = ?", [files])
        connection.execute("SET enable_external_access = false")
        for table in tables:
            _make_view(connection, table)
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET lock_configuration = true")
        yield Database(connection, [table.name for table in tables])


def _make_view(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    parts: list[str] = []
    columns: dict[str, None] = {}
    by_split: dict[str | None, list[Path]] = {}
    for path, split in table.files:
        by_split.setdefault(split, []).append(path)
    for split, paths in by_split.items():
        listed = ", ".join(text(str(path.absolute())) for path in paths)
        extra = "" if split is None else f", {text(split)} AS split"
        source = f"read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
        parts.append(f"SELECT *{extra} FROM {source}")  # noqa: S608 - names and texts are quoted
        for path in paths:
            columns |= dict.fromkeys(_names_of(path))
        columns |= {} if split is None else {"split": None}
    if table.blocks:
        parts_of_log = [pa.Table.from_batches([block]) for block in table.blocks]
        connection.register(f"{table.name}_log", pa.concat_tables(parts_of_log, promote_options="default"))
        parts.append(f"SELECT * FROM {quoted(table.name + '_log')}")  # noqa: S608
        columns |= dict.fromkeys(name for block in table.blocks for name in block.schema.names)
    if not parts:
        return
    united = " UNION ALL BY NAME ".join(parts)
    connection.execute(f"CREATE VIEW {quoted(table.name)} AS SELECT {_nested(columns)} FROM ({united})")  # noqa: S608


def _names_of(path: Path) -> list[str]:
    try:
        names: list[str] = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        why = (str(error) or type(error).__name__).partition("\n")[0]
        raise HistoryError(f"{path} cannot be read as Parquet ({why}): move it away") from error
    return names


def _nested(columns: Mapping[str, None]) -> str:
    """Dotted columns as fields of structs, so that ``departed.origin`` needs no quotes; others as they are.

    So is a column that others go on from: ``shadow.late``, a version, beside ``shadow.late.probability``.
    """
    begins = {name[:end] for name in columns for end, character in enumerate(name) if character == "."}
    tree: dict[str, Any] = {}
    for name in columns:
        node = tree
        *parents, leaf = [name] if name in begins else name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = quoted(name)
    return ", ".join(f"{_packed(node)} AS {quoted(name)}" for name, node in tree.items())


def _packed(node: Any) -> str:
    if isinstance(node, str):
        return node
    return f"struct_pack({', '.join(f'{quoted(name)} := {_packed(child)}' for name, child in node.items())})"


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """A text in SQL."""
    return "'" + value.replace("'", "''") + "'"
