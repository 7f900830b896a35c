"""SQL over BigQuery, by Google's client: one SELECT, with a bound on what it may cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from google.cloud import bigquery

from batch.bigquery_service import DEADLINE_S, Endpoints, check_project, rest_client, retrying, told
from shared_features.errors import ConfigurationError


@contextmanager
def asked(
    project: str, sql: str, *, most_bytes: int, dataset: str | None = None, endpoints: Endpoints | None = None
) -> Iterator[pa.RecordBatchReader]:
    """The answer to one SELECT, some rows at a time, while the block runs.

    Args:
        project: that is billed, and whose tables need no project before their names.
        sql: in GoogleSQL.
        most_bytes: BigQuery refuses a query that would read more.
        dataset: whose tables need no dataset before their names.
        endpoints: where BigQuery is; from the environment if not given.

    Raises:
        HistoryError: BigQuery refuses the query or cannot be reached; the message has its reason.
        ConfigurationError: it is no SELECT.
    """
    check_project(project, project)
    endpoints = Endpoints.from_environment() if endpoints is None else endpoints
    config = bigquery.QueryJobConfig(maximum_bytes_billed=most_bytes, use_legacy_sql=False)
    if dataset is not None:
        config.default_dataset = f"{project}.{dataset}"
    doing = f"the query on BigQuery in project {project}"
    with told(doing), rest_client(project, endpoints) as client:
        look = bigquery.QueryJobConfig(dry_run=True, use_legacy_sql=False)
        look.default_dataset = config.default_dataset
        looked = client.query(sql, job_config=look, retry=retrying(DEADLINE_S), timeout=DEADLINE_S)
        if looked.statement_type not in (None, "SELECT"):
            raise ConfigurationError(
                f"the query is a {looked.statement_type}, wanted a SELECT: nothing is written here"
            )
        job = client.query(sql, job_config=config, retry=retrying(DEADLINE_S), timeout=DEADLINE_S)
        rows = job.result(timeout=DEADLINE_S)
        if job.statement_type not in (None, "SELECT"):
            raise ConfigurationError(f"the query was a {job.statement_type}, wanted a SELECT")
        batches = iter(rows.to_arrow_iterable())
        first = next(batches, None)
        schema = first.schema if first is not None else rows.to_arrow(create_bqstorage_client=False).schema

        def all_batches() -> Iterator[pa.RecordBatch]:
            if first is not None:
                yield first
                yield from batches

        yield pa.RecordBatchReader.from_batches(schema, all_batches())
