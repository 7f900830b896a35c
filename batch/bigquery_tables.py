"""BigQuery tables that rows are written to: made from a shape, evolved by adding columns, asked what they hold.

Their columns are flat: ``feature.delay`` is the column ``feature__delay``, and a list of three values is three columns
``…__0`` to ``…__2``. So every column can be added by ``ALTER TABLE`` and be clustered by, and no client needs to
know how to nest. `batch.tables` reads such tables as it reads nested ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc
from google.api_core import exceptions
from google.cloud import bigquery as google

from batch import bigquery
from batch import bigquery_service as service
from batch.bigquery_service import DEADLINE_S, LOAD_DEADLINE_S, Endpoints, TableName
from batch.writers import Shape
from shared_features.errors import HistoryError

SEPARATOR = "__"
PARTITIONED_BY, CLUSTERED_BY = "publish_time", "event_time"

_MOST_CLUSTER_COLUMNS = 4  # https://cloud.google.com/bigquery/docs/clustered-tables#limitations
_OLD_NAMES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}


def flat_batch(block: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of a block as the table has them; those that the block lacks are null.

    Raises:
        HistoryError: a column has a type or a name that has no counterpart, or two would have one name.
    """
    names: list[str] = []
    arrays: list[pa.Array] = []
    for field in schema:
        index = block.schema.get_field_index(field.name)
        column = block.column(index) if index >= 0 else pa.nulls(block.num_rows, field.type)
        for name, values in _spread(field.name.replace(".", SEPARATOR), column):
            if name in names:
                raise HistoryError(f"two columns would have the name {name} in BigQuery: rename {field.name}")
            names.append(name)
            arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _spread(name: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    kind = values.type
    if pa.types.is_fixed_size_list(kind):
        for place in range(kind.list_size):
            # A null list has no elements to take.
            element = (
                pc.list_element(pc.cast(values, pa.list_(kind.value_type)), place)
                if not values.null_count
                else (pa.array([None if row is None else row[place] for row in values.to_pylist()], kind.value_type))
            )
            yield from _spread(f"{name}{SEPARATOR}{place}", element)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        yield name, values.cast(pa.int64() if pa.types.is_integer(kind) else pa.float64())
    else:
        yield name, values


def prepare_table(uri: str, shape: Shape, endpoints: Endpoints) -> None:
    """Make the table, or add to it the columns that it lacks.

    Raises:
        HistoryError: it is no table, has a column of another type, or BigQuery cannot be reached or refuses.
    """
    name = TableName.parse(uri)
    wanted = [service.schema_field(uri, field) for field in flat_batch(_none(shape), shape.schema).schema]
    with service.told(f"preparing {uri}"), service.rest_client(name.project, endpoints) as client:
        try:
            table = client.get_table(name.dotted, timeout=DEADLINE_S)
        except exceptions.NotFound:
            client.create_dataset(google.DatasetReference(name.project, name.dataset), exists_ok=True)
            client.create_table(_described(name, shape, wanted), exists_ok=True, timeout=DEADLINE_S)
            table = client.get_table(name.dotted, timeout=DEADLINE_S)
        if table.table_type != "TABLE":
            raise HistoryError(f"{uri} is a {table.table_type}, wanted a table: name another one")
        there = {field.name: field for field in table.schema}
        missing = [field for field in wanted if field.name not in there]
        for field in wanted:
            if field.name in there and not _same_type(field, there[field.name]):
                raise HistoryError(
                    f"column {field.name!r} of {uri} is {there[field.name].mode} {there[field.name].field_type}, "
                    f"wanted NULLABLE {field.field_type}: write to another table"
                )
        for statement in _alterations(name, missing, one_by_one=endpoints.emulated):
            client.query(statement).result(timeout=LOAD_DEADLINE_S)
        if missing and endpoints.emulated:  # bqemulator 1.4.0 adds the columns, but does not tell its catalogue
            table.schema = [*table.schema, *missing]
            client.update_table(table, ["schema"], timeout=DEADLINE_S)


def _none(shape: Shape) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=shape.schema)


def _described(name: TableName, shape: Shape, columns: list[google.SchemaField]) -> google.Table:
    table = google.Table(name.dotted, schema=columns)
    names = [column.name for column in columns]
    if PARTITIONED_BY in names:
        table.time_partitioning = google.TimePartitioning(field=PARTITIONED_BY)
    cluster = [*shape.keys[: _MOST_CLUSTER_COLUMNS - 1], CLUSTERED_BY]
    table.clustering_fields = [column for column in cluster if column in names] or None
    return table


def _same_type(wanted: google.SchemaField, there: google.SchemaField) -> bool:
    found = _OLD_NAMES.get(there.field_type, there.field_type)
    return bool(there.mode == "NULLABLE" and _OLD_NAMES.get(wanted.field_type, wanted.field_type) == found)


def _alterations(name: TableName, missing: list[google.SchemaField], *, one_by_one: bool) -> Iterator[str]:
    """Statements that add columns; the names are checked identifiers. bqemulator takes one column a statement."""
    clauses = [
        f"ADD COLUMN IF NOT EXISTS `{field.name}` {_OLD_NAMES.get(field.field_type, field.field_type)}"
        for field in missing
    ]
    for group in [[clause] for clause in clauses] if one_by_one else [clauses] if clauses else []:
        yield f"ALTER TABLE `{name.dotted}` {', '.join(group)}"


def rows_there(uri: str, identity: str, batch: pa.RecordBatch, endpoints: Endpoints) -> pa.Table:
    """The table's rows whose identity is in the batch.

    Identities are compared here, not by a query with all of them as parameters: a stream brings millions a second, and
    only of the partitions that the batch's publish times name.

    Args:
        batch: as `flat_batch` gives it.
    """
    where = ""
    if PARTITIONED_BY in batch.schema.names and not batch.column(PARTITIONED_BY).null_count:
        ends = pc.min_max(batch.column(PARTITIONED_BY).cast(pa.int64()))
        low, high = (f"TIMESTAMP_MICROS({int(ends[end].as_py())})" for end in ("min", "max"))
        where = f"{PARTITIONED_BY} >= {low} AND {PARTITIONED_BY} <= {high}"
    ids = batch.column(identity)

    def found(columns: list[str]) -> Iterator[pa.RecordBatch]:
        for stream in bigquery.streams(uri, columns, where, endpoints, max_streams=1):
            for rows in bigquery.read_stream(stream):
                known = rows.filter(pc.is_in(rows.column(identity), ids))
                if known.num_rows:
                    yield known

    if next(found([identity]), None) is None:
        return pa.Table.from_batches([batch.slice(0, 0)])
    return pa.Table.from_batches(found(batch.schema.names))


def greatest(uri: str, column: str, where: dict[str, str], there: str, endpoints: Endpoints) -> int | None:
    """The greatest integer of a column among rows with these texts in others, and a value in ``there``; or None."""
    name = TableName.parse(uri)
    parameters = [google.ScalarQueryParameter(f"p{i}", "STRING", text) for i, text in enumerate(where.values())]
    conditions = " AND ".join(f"`{field}` = @p{i}" for i, field in enumerate(where))
    statement = f"SELECT MAX(`{column}`) AS greatest FROM `{name.dotted}` WHERE {conditions} AND `{there}` IS NOT NULL"  # noqa: S608
    with service.told(f"reading {uri}"), service.rest_client(name.project, endpoints) as client:
        job = client.query(statement, job_config=google.QueryJobConfig(query_parameters=parameters))
        (row,) = job.result(timeout=LOAD_DEADLINE_S)
    return None if row.greatest is None else int(row.greatest)


def time_span(uri: str, column: str, endpoints: Endpoints) -> list[datetime]:
    """The first and the last of a column of times; empty if it has none."""
    name = TableName.parse(uri)
    statement = f"SELECT MIN(`{column}`) AS low, MAX(`{column}`) AS high FROM `{name.dotted}`"  # noqa: S608
    with service.told(f"reading {uri}"), service.rest_client(name.project, endpoints) as client:
        (row,) = client.query(statement).result(timeout=LOAD_DEADLINE_S)
    return [end for end in (row.low, row.high) if end is not None]
