"""`sameriver sql`: questions to history, training rows and archive, or to BigQuery."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands import options, output
from commands.options import app_option, folder_option, json_option

if TYPE_CHECKING:
    import pyarrow as pa

    from batch.sql import Table
    from shared_features.app import App

SHOWN = 50
"""Rows of a table for people, unless --rows says otherwise."""

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("query", required=False, metavar="[SELECT …]", help="In DuckDB's SQL, or in GoogleSQL.")
@app_option
@folder_option("--archive", "the job's archive: the table archive", "var/archive/<app>")
@folder_option("--history", "the history: the table history", "var/history/<app>")
@folder_option("--training", "training rows: the table training", "var/training/<app>")
@click.option("--table", "more", multiple=True, metavar="NAME=PATH", help="One more table: a Parquet file or folder.")
@click.option("--bigquery", metavar="PROJECT", help="Ask BigQuery, in GoogleSQL, and bill this project.")
@click.option("--dataset", help="With --bigquery: the dataset of tables that name none.")
@click.option(
    "--most-gb", default=10.0, type=click.FloatRange(min=0.01), help="With --bigquery: refuse to read more than this."
)
@click.option(
    "--rows", type=click.IntRange(0), show_default=f"{SHOWN} in tables, all in JSON", help="How many to show."
)
@click.option("--csv", "csv_folder", type=_PATH, help="Write the answer to this new folder as CSV files.")
@click.option("--csv-mb", default=100.0, type=click.FloatRange(min=0.001), help="Size of each CSV file.")
@click.option(
    "--plot", type=_PATH, help="Write a PNG: the histogram of the first column, by the second column if there is one."
)
@json_option
def sql(
    query: str | None,
    app_name: str,
    archive: Path | None,
    history: Path | None,
    training: Path | None,
    more: tuple[str, ...],
    bigquery: str | None,
    dataset: str | None,
    most_gb: float,
    rows: int | None,
    csv_folder: Path | None,
    csv_mb: float,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Answer a SELECT over the tables history, training and archive; without one, list them with their columns.

    DuckDB answers, from these files alone; or BigQuery, with --bigquery.
    """
    if csv_folder is not None and plot is not None:
        raise click.UsageError("--csv and --plot do not go together: ask twice")
    if query is None and (csv_folder or plot or bigquery):
        raise click.UsageError("a query is missing: sameriver sql 'SELECT …'")
    if dataset is not None and bigquery is None:
        raise click.UsageError("--dataset goes with --bigquery")
    with ExitStack() as stack:
        if bigquery is not None:
            from batch.sql_bigquery import asked

            assert query is not None
            most_bytes = int(most_gb * 1e9)
            answer = stack.enter_context(asked(bigquery, query, most_bytes=most_bytes, dataset=dataset))
        else:
            from batch.sql import opened

            app = options.load(app_name)
            database = stack.enter_context(opened(_tables(app, archive, history, training, more)))
            if query is None:
                _list(database.tables(), as_json=as_json)
                return
            answer = database.query(query)
        if csv_folder is not None:
            _write(answer, csv_folder, int(csv_mb * 1e6), as_json=as_json)
        elif plot is not None:
            _plot(answer, plot, str(query), as_json=as_json)
        else:
            _show(answer, rows, as_json=as_json)


def _tables(
    app: App, archive: Path | None, history: Path | None, training: Path | None, more: tuple[str, ...]
) -> list[Table]:
    from batch.sql import archive_table, parquet_table, training_table
    from shared_features.errors import ConfigurationError, HistoryError

    found = {
        "history": parquet_table("history", history or options.history_folder(app)),
        "training": training_table(training or options.training_folder(app)),
        "archive": archive_table(archive or options.archive_folder(app)),
    }
    for name, given in (("history", history), ("training", training), ("archive", archive)):
        if given is not None and found[name] is None:
            raise HistoryError(f"{name} {given} has no rows to ask: give the folder that has them")
    for one in more:
        name, _, where = one.partition("=")
        if not name.isidentifier() or not where:
            raise ConfigurationError(f"--table {one!r} cannot be read: wanted NAME=PATH")
        if found.get(name) is not None:
            raise ConfigurationError(f"--table names {name!r}, which is a table already: give another name")
        found[name] = parquet_table(name, Path(where))
        if found[name] is None:
            raise HistoryError(f"table {name!r}: {where} is no Parquet file and has none in it")
    tables = [table for table in found.values() if table is not None and (table.files or table.blocks)]
    if not tables:
        raise HistoryError(
            f"there is nothing to ask for app {app.name!r}: make a history with `sameriver data {app.name}`, or name "
            "folders with --history, --training, --archive or --table"
        )
    return tables


def _list(tables: Mapping[str, list[tuple[str, str]]], *, as_json: bool) -> None:
    if as_json:
        output.print_json({"tables": {name: dict(columns) for name, columns in tables.items()}})
        return
    for name, columns in tables.items():
        click.echo(name)
        for column, kind in columns:
            click.echo(f"  {column:24} {kind if len(kind) <= 200 else kind[:197] + '...'}")


def _show(answer: pa.RecordBatchReader, most: int | None, *, as_json: bool) -> None:
    from batch.sql_output import rows_of, shown_cell

    names = answer.schema.names
    found, count = rows_of(answer, SHOWN if most is None and not as_json else most)
    if as_json:
        output.print_json({"columns": names, "rows": [_plain(row) for row in found], "count": count})
        return
    output.print_table(names, [[shown_cell(row[name]) for name in names] for row in found])
    if count > len(found):
        click.echo(f"… and {count - len(found):,} more rows (--rows shows more, --csv writes all)")


def _plain(value: Any) -> Any:
    """A value as JSON; NaN and infinity, which JSON has not, as text."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def _write(answer: pa.RecordBatchReader, folder: Path, most_bytes: int, *, as_json: bool) -> None:
    from batch.sql_output import write_csv

    parts = write_csv(answer, folder, most_bytes=most_bytes)
    size = sum(path.stat().st_size for path in parts)
    if as_json:
        output.print_json({"files": [str(path) for path in parts], "bytes": size})
    else:
        click.echo(f"{len(parts)} file{'s' if len(parts) > 1 else ''}, {size / 1e6:,.1f} MB, in {folder}")


def _plot(answer: pa.RecordBatchReader, path: Path, query: str, *, as_json: bool) -> None:
    os.environ.setdefault("MPLBACKEND", "Agg")
    from batch.sql_output import histogram, plot

    found = histogram(answer)
    title = " ".join(query.split())
    plot(found, path, title if len(title) <= 90 else title[:87] + "…")
    if as_json:
        counts = {group: counts.tolist() for group, counts in found.counts.items()}
        output.print_json(
            {"file": str(path), "edges": found.edges.tolist(), "counts": counts, "missing": dict(found.missing)}
        )
    else:
        click.echo(f"{path}: {found.value} of {sum(int(one.sum()) for one in found.counts.values()):,} rows")
