"""Histories in BigQuery: tables, views, results of queries, and tables that a Pub/Sub subscription writes.

``bq://project.dataset.table``
    A table: of columns nested by event type (``departed.delay`` is ``delay`` in the record ``departed``), or flat as
    exports write them (``departed__delay``).
``bq://project.dataset.view``, ``bq://project?query=SELECT …``
    The Storage Read API reads tables only: the query runs first, and its result is read, which BigQuery keeps for a
    day.
A table with ``message_id``, ``publish_time``, ``data`` and ``attributes``
    What a BigQuery subscription of Pub/Sub writes: its messages are decoded, and refused, by the code of the live job.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from google.api_core import exceptions
from google.cloud import bigquery as google

from batch import bigquery_service as service
from batch.bigquery_service import Endpoints, TableName
from batch.bigquery_tables import SEPARATOR
from shared_features.app import App
from shared_features.errors import HistoryError
from shared_features.schema import TIMESTAMP
from streaming.intake import Intake
from streaming.topics import Message

MESSAGES = pa.schema(
    [("message_id", pa.string()), ("publish_time", TIMESTAMP), ("data", pa.binary()), ("attributes", pa.string())]
)
"""Columns of a subscription's table that are read, and of the blocks of messages that are made of them."""

RESULTS = "sameriver_results"
"""Dataset of query results at an emulator, which does not keep them by itself."""

_QUERY = "?query="


def readable(uri: str, wanted: Sequence[str]) -> tuple[TableName, dict[str, Any] | None]:
    """The table to read for a history, and what identifies its content (None where that cannot be told).

    Args:
        wanted: columns that are asked of a view, as far as it has them.

    Raises:
        HistoryError: it is not there, the query fails, or BigQuery cannot be reached.
    """
    endpoints = Endpoints.from_environment()
    if _QUERY in uri:
        project, _, query = uri.removeprefix("bq://").partition(_QUERY)
        service.check_project(uri, project)
        return _result(uri, project, query, endpoints), None
    name = TableName.parse(uri)
    with service.told(f"reading {uri}"), service.rest_client(name.project, endpoints) as client:
        try:
            table = client.get_table(name.dotted, timeout=service.DEADLINE_S)
        except exceptions.NotFound:
            raise HistoryError(f"no such table: {uri}; {_found_instead(name, client)}") from None
    if table.table_type not in ("TABLE", "SNAPSHOT", "CLONE"):
        return _result(uri, name.project, _select(name, table, wanted), endpoints), None
    if table.streaming_buffer is not None or table.modified is None:
        return name, None
    return name, {"modified": table.modified.isoformat(), "rows": table.num_rows, "bytes": table.num_bytes}


def _found_instead(name: TableName, client: google.Client) -> str:
    """What is there in place of a table that is not."""
    try:
        client.get_dataset(f"{name.project}.{name.dataset}", timeout=service.DEADLINE_S)
        tables = [table.table_id for table in client.list_tables(f"{name.project}.{name.dataset}", max_results=20)]
        return f"dataset {name.dataset} has {', '.join(tables) or 'no tables'}: name one that is there"
    except exceptions.GoogleAPIError:
        pass
    try:
        datasets = [dataset.dataset_id for dataset in client.list_datasets(name.project, max_results=20)]
    except exceptions.GoogleAPIError as error:
        return f"project {name.project} cannot be looked into ({service.one_line(error)}): check its name"
    return f"project {name.project} has no dataset {name.dataset}, but {', '.join(datasets) or 'none'}: check the names"


def _select(name: TableName, view: google.Table, wanted: Sequence[str]) -> str:
    columns = [field.name for field in view.schema if field.name in wanted]
    return f"SELECT {', '.join(f'`{column}`' for column in columns) or '*'} FROM `{name.dotted}`"  # noqa: S608


def _result(uri: str, project: str, query: str, endpoints: Endpoints) -> TableName:
    """Run a query; the table that holds its result."""
    with service.told(f"running the query of {uri}"), service.rest_client(project, endpoints) as client:
        if not endpoints.emulated:
            job = client.query(query, timeout=service.DEADLINE_S)
            job.result(max_results=0, timeout=service.LOAD_DEADLINE_S)
            return TableName(job.destination.project, job.destination.dataset_id, job.destination.table_id)
        # bqemulator 1.4.0 names a table of results, but keeps none.
        client.create_dataset(google.DatasetReference(project, RESULTS), exists_ok=True)
        kept = TableName(project, RESULTS, hashlib.blake2b(query.encode(), digest_size=8).hexdigest())
        client.query(f"CREATE OR REPLACE TABLE `{kept.dotted}` AS {query}").result(timeout=service.LOAD_DEADLINE_S)
        return kept


def restriction(since_us: int | None, until_us: int | None) -> str:
    """Publish times in [since, until) as a GoogleSQL condition; rows without one come along and are judged here."""
    bounds = [(">=", since_us), ("<", until_us)]
    given = [f"publish_time {sign} TIMESTAMP_MICROS({int(us)})" for sign, us in bounds if us is not None]
    return f"publish_time IS NULL OR ({' AND '.join(given)})" if given else ""


def flat_names(names: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Of the columns that are there, those that are a wanted dotted column under its flat name."""
    dotted = {name.replace(".", SEPARATOR): name for name in wanted if "." in name}
    return {name: dotted[name] for name in names if name in dotted}


def is_messages(names: Sequence[str]) -> bool:
    """Whether a table with these columns is one that a Pub/Sub subscription writes."""
    return set(MESSAGES.names) <= set(names) and "event_type" not in names


def decode_messages(app: App, block: pa.RecordBatch) -> tuple[pa.RecordBatch, Counter[str]]:
    """A block of `MESSAGES` as events, by the live job's own code, and how many it refuses, by reason."""
    microseconds = block.column("publish_time").cast(pa.int64()).fill_null(0).to_pylist()
    messages = [
        Message(data or b"", _attributes(attributes), message_id or "", at, "")
        for message_id, at, data, attributes in zip(
            block.column("message_id").to_pylist(),
            microseconds,
            block.column("data").to_pylist(),
            block.column("attributes").to_pylist(),
            strict=True,
        )
    ]
    taken = Intake(app.event_types).take(messages)
    return taken.block, Counter(refused.reason for refused in taken.refused)


def _attributes(text: str | None) -> dict[str, str]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def renamed(batch: pa.RecordBatch, names: dict[str, str]) -> pa.RecordBatch:
    """The batch with flat columns under their dotted names."""
    return batch.rename_columns([names.get(name, name) for name in batch.schema.names]) if names else batch


def message_block(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    """Rows of a subscription's table as a block of `MESSAGES`."""
    arrays = []
    for field in MESSAGES:
        column = batch.column(field.name)
        if column.type != field.type:
            try:
                column = pc.cast(column, field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise HistoryError(
                    f"column {field.name!r} of {where} is {column.type}, wanted {field.type} as a Pub/Sub "
                    f"subscription writes it ({error})"
                ) from error
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=MESSAGES)
