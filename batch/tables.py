"""Where history comes from: Parquet files or a BigQuery table, as blocks of the columns that an app needs.

A history is named by a URI: a folder or file of Parquet, here or at ``gs://``, or ``bq://project.dataset.table``. It is
checked once, by `open_history`, against the app's schemas; what is read is handed out as *splits*, small pieces
of JSON that any worker can read by itself with `read_split`.

All fields of the event types in use are read, also those that no feature names: an event with a NaN in any of
its fields is refused live, so it must be refused here (contract C4). Event types that the app does not use are
not read at all.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batch import bigquery
from batch.bigquery_history import MESSAGES, flat_names, is_messages, message_block, readable, renamed, restriction
from batch.bigquery_tables import SEPARATOR
from batch.parquet_files import content, opened, parquet_files, read_row_groups
from shared_features.app import App
from shared_features.blocks import concat_blocks, flatten
from shared_features.errors import HistoryError
from shared_features.external import filled_columns
from shared_features.plan import Plan, make_plan
from shared_features.reactions import remembers
from shared_features.schema import ENVELOPE
from streaming.archive_parquet import COMMIT_COLUMN, ROW_COLUMN

SPLIT_ROWS = 131_072
"""Rows of a Parquet file that one worker reads at a time, rounded up to whole row groups."""

BLOCK_ROWS = 65_536
"""Rows of a block as it enters the pipeline: Beam's cost is paid per block, memory per row."""

MESSAGE_ROWS = 4_096
"""Messages of a block of them."""

ARCHIVED_AT = pa.schema([(COMMIT_COLUMN, pa.int64()), (ROW_COLUMN, pa.int32())])
"""Where a row stands in its archive."""

_BATCH_ROWS = 32_768


@dataclass(frozen=True, slots=True)
class History:
    """A history that has been found, with the columns that the app needs.

    Attributes:
        uri: as given.
        schema: columns of the blocks that `read_split` gives: the envelope without ``message_id``, every field
            of the event types in use, and ``stage.<S>.epoch`` and ``.position`` where the history has them; where
            reactions remember also `ARCHIVED_AT`.
        splits: JSON; read together, by `read_split`, they give each row once.
        rows: rows in the splits, before any time range; None where the source does not say.
        version: what identifies the content (files with digests, or a table with its time of change); None if
            it cannot be told, for example of a view.
    """

    uri: str
    schema: pa.Schema
    splits: list[bytes]
    rows: int | None
    version: dict[str, Any] | None

    @property
    def archived(self) -> bool:
        """Whether rows carry the positions that a live job gave them: then they are free of duplicates (C5)."""
        return any(name.startswith("stage.") for name in self.schema.names)


@dataclass(frozen=True, slots=True)
class _Range:
    """Half-open range of the time that orders the history, microseconds since 1970; None is open."""

    since_us: int | None = None
    until_us: int | None = None

    def misses(self, low_us: int, high_us: int) -> bool:
        """Whether nothing in [low_us, high_us] lies in the range."""
        return (self.since_us is not None and high_us < self.since_us) or (
            self.until_us is not None and low_us >= self.until_us
        )


def used_types(app: App) -> list[str]:
    """The event types that decide features or labels, in the app's order."""
    used = {app.predict_on.name, *(name for stage in make_plan(app).stages for name in stage.key.fields)}
    if app.label is not None:
        used.add(app.label.event_type)
    return [name for name in app.event_types if name in used]


def event_schema(app: App) -> pa.Schema:
    """Columns of a history block: the envelope without ``message_id``, then the fields of the types in use."""
    fields = [field for name in used_types(app) for field in app.event_types[name].block_fields]
    return pa.schema([field for field in ENVELOPE if field.name != "message_id"] + fields)


def open_history(
    uri: str | Path, plan: Plan, *, since: datetime | None = None, until: datetime | None = None
) -> History:
    """Find a history and check that it has what the app needs, without reading rows.

    Args:
        uri: a folder with Parquet files, here or at ``gs://`` (in sub-folders too; names that begin with ``_`` or
            ``.`` are passed over), one Parquet file, ``bq://project.dataset.table`` (or a view), or
            ``bq://project?query=SELECT …``.
        since, until: read only rows of [since, until) by publish time, or by event time where that is null;
            aware datetimes.

    Raises:
        HistoryError: nothing is there, a column is missing or has a type that cannot become the wanted one.
    """
    text = str(uri)
    wanted = event_schema(plan.app)
    between = _Range(_microseconds(since), _microseconds(until))
    if text.startswith("bq://"):
        return _open_bigquery(text, wanted, plan, between)
    if "://" in text and not text.startswith("gs://"):
        raise HistoryError(
            f"history {text!r} names a source that is not known: wanted a folder or file of Parquet, here or at gs://, "
            "or bq://project.dataset.table"
        )
    return _open_parquet(text, wanted, plan, between)


def read_split(split: bytes) -> Iterator[pa.RecordBatch]:
    """The rows of one split as blocks of about `BLOCK_ROWS` rows, in the columns of `History.schema`.

    Of a table that a Pub/Sub subscription wrote they are messages; `batch.admission.admit` makes events of them.

    Raises:
        HistoryError: the file or table has changed or gone since `open_history`.
    """
    parts = json.loads(split)
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(parts["schema"])))
    between = _Range(**parts["range"])
    if "stream" in parts:
        stream = bigquery.StreamSpec.decode(parts["stream"].encode())
        batches, where = bigquery.read_stream(stream), stream.uri
        if is_messages(schema.names):
            yield from _messages(batches, where, between)
            return
        batches = (renamed(batch, parts["flat"]) for batch in batches)
    else:
        where = parts["path"]
        batches = read_row_groups(where, parts["row_groups"], parts["columns"], _BATCH_ROWS)
    yield from _coalesced(_inside(_conformed(batch, schema, where), between) for batch in batches)


def _messages(batches: Iterator[pa.RecordBatch], where: str, between: _Range) -> Iterator[pa.RecordBatch]:
    """Rows of a subscription's table, few at a time: each may bring a block of many events."""
    for batch in batches:
        block = _inside(message_block(batch, where), between)
        for start in range(0, block.num_rows, MESSAGE_ROWS):
            yield block.slice(start, MESSAGE_ROWS)


# -- Parquet ------------------------------------------------------------------------------------------------
def _open_parquet(uri: str, wanted: pa.Schema, plan: Plan, between: _Range) -> History:
    root, paths = parquet_files(uri)
    splits: list[bytes] = []
    manifest: list[dict[str, Any]] = []
    rows = 0
    schema: pa.Schema | None = None
    for path in paths:
        try:
            with opened(path) as file:
                found, metadata = _flat(file.schema_arrow), file.metadata
        except (pa.ArrowException, OSError) as error:
            raise HistoryError(f"{path} cannot be read as Parquet ({_first_line(error)}): move it away") from error
        own = _checked(path, found, wanted, plan)
        if schema is not None and own != schema:
            raise HistoryError(f"{path} has other columns of stage positions than {paths[0]}: wanted one archive")
        schema = own
        columns = [name for name in own.names if name in found]
        for groups in _row_groups(metadata, between):
            splits.append(_split(own, between, path=path, row_groups=groups, columns=columns))
        rows += metadata.num_rows
        manifest.append({**content(path, root), "rows": metadata.num_rows})
    assert schema is not None
    return History(uri, schema, splits, rows, {"files": manifest})


def _row_groups(metadata: pq.FileMetaData, between: _Range) -> Iterator[list[int]]:
    """Row groups that may hold rows of the range, neighbours together up to `SPLIT_ROWS`."""
    names = (
        [metadata.row_group(0).column(i).path_in_schema for i in range(metadata.num_columns)]
        if (metadata.num_row_groups)
        else []
    )
    column = names.index("publish_time") if "publish_time" in names else None
    held: list[int] = []
    rows = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        if column is not None and _outside(row_group.column(column), between):
            continue
        held.append(group)
        rows += row_group.num_rows
        if rows >= SPLIT_ROWS:
            yield held
            held, rows = [], 0
    if held:
        yield held


def _outside(column: pq.ColumnChunkMetaData, between: _Range) -> bool:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
        return False
    low, high = (_microseconds(bound) for bound in (statistics.min, statistics.max))
    return low is not None and high is not None and between.misses(low, high)


# -- BigQuery -----------------------------------------------------------------------------------------------
def _open_bigquery(uri: str, wanted: pa.Schema, plan: Plan, between: _Range) -> History:
    places = [f"stage.{stage.name}.{name}" for stage in plan.stages for name in ("epoch", "position")]
    dotted = [*wanted.names, *places, *ARCHIVED_AT.names]
    tops = [name.partition(".")[0] for name in dotted] + [name.replace(".", SEPARATOR) for name in dotted]
    table, version = readable(uri, [*tops, *MESSAGES.names])
    found = bigquery.read_schema(str(table))
    if is_messages(found.names):
        streams = bigquery.streams(str(table), MESSAGES.names, restriction(between.since_us, between.until_us))
        splits = [_split(MESSAGES, between, stream=stream.encode().decode()) for stream in streams]
        return History(uri, wanted, splits, None, version)
    flat = flat_names(found.names, dotted)
    schema = _checked(uri, {flat.get(name, name): kind for name, kind in _flat(found).items()}, wanted, plan)
    back = {name: column for column, name in flat.items()}
    columns = list(dict.fromkeys(back.get(name, name.partition(".")[0]) for name in schema.names))
    columns = [name for name in columns if name in found.names]
    where = restriction(between.since_us, between.until_us) if "publish_time" in columns else ""
    streams = bigquery.streams(str(table), columns, where)
    splits = [_split(schema, between, stream=stream.encode().decode(), flat=flat) for stream in streams]
    return History(uri, schema, splits, None, version)


# -- columns ------------------------------------------------------------------------------------------------
def _split(schema: pa.Schema, between: _Range, **parts: Any) -> bytes:
    packed = base64.b64encode(schema.serialize().to_pybytes()).decode()
    return json.dumps({**parts, "schema": packed, "range": asdict(between)}).encode()


def _flat(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Column names to types, struct columns spread as `flatten` does."""
    found: dict[str, pa.DataType] = {}

    def spread(name: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            for i in range(kind.num_fields):
                spread(f"{name}.{kind.field(i).name}", kind.field(i).type)
        else:
            found[name] = kind

    for field in schema:
        spread(field.name, field.type)
    return found


def _checked(where: str, found: dict[str, pa.DataType], wanted: pa.Schema, plan: Plan) -> pa.Schema:
    """The columns that blocks will have: those wanted, and places in an archive where there are any."""
    fields = list(wanted)
    for stage in plan.stages:
        names = (f"stage.{stage.name}.epoch", f"stage.{stage.name}.position")
        if names[1] in found:
            fields += [pa.field(names[0], pa.int32()), pa.field(names[1], pa.int64())]
    if remembers(plan.app) and all(name in found for name in ARCHIVED_AT.names):
        fields += list(ARCHIVED_AT)  # the order in which reactions saw the rows
    optional = {"publish_time", *filled_columns(plan.app.event_types)}
    for field in fields:
        got = found.get(field.name)
        if got is None and field.name not in optional:
            place = field.name.partition(".")[0]
            near = [name for name in found if name.partition(".")[0] == place] or list(found)
            raise HistoryError(
                f"history {where} has no column {field.name!r} ({field.type}): it has {', '.join(near[:12])}; "
                "write it with the app's schemas"
            )
        if got is not None and not _fits(got, field.type):
            raise HistoryError(
                f"column {field.name!r} of history {where} is {got}, wanted {field.type}: "
                "write it with the app's schemas"
            )
    return pa.schema(fields)


def _fits(got: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether every value of ``got`` becomes one of ``wanted`` unchanged, or fails loudly."""
    if got == wanted or pa.types.is_null(got):
        return True
    if pa.types.is_dictionary(got):
        return _fits(got.value_type, wanted)
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(got))
    if pa.types.is_floating(wanted):
        return got in (pa.float16(), pa.float32())
    if pa.types.is_string(wanted):
        return bool(pa.types.is_large_string(got) or pa.types.is_string_view(got))
    # A timestamp without a zone could be anybody's local time.
    return bool(pa.types.is_timestamp(wanted) and pa.types.is_timestamp(got) and got.tz is not None)


def _conformed(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    flat = flatten(batch)
    arrays = []
    for field in schema:
        index = flat.schema.get_field_index(field.name)
        column = flat.column(index) if index >= 0 else pa.nulls(flat.num_rows, field.type)
        try:
            arrays.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise HistoryError(
                f"column {field.name!r} of history {where} has a value that is no {field.type}: {_first_line(error)}"
            ) from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _inside(block: pa.RecordBatch, between: _Range) -> pa.RecordBatch:
    """The rows of the range; those without either time come along, to be refused and counted."""
    if between == _Range():
        return block
    names = [name for name in ("publish_time", "event_time") if name in block.schema.names]
    times = pc.coalesce(*(block.column(name) for name in names)).cast(pa.int64())
    keep = pc.is_null(times)
    inside = pc.is_valid(times)
    if between.since_us is not None:
        inside = pc.and_(inside, pc.greater_equal(times, between.since_us).fill_null(False))
    if between.until_us is not None:
        inside = pc.and_(inside, pc.less(times, between.until_us).fill_null(False))
    return block.filter(pc.or_(keep, inside))


def _coalesced(blocks: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Small blocks put together, up to `BLOCK_ROWS` rows or a little more; empty ones left out."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for block in blocks:
        if block.num_rows == 0:
            continue
        held.append(block)
        rows += block.num_rows
        if rows >= BLOCK_ROWS:
            yield concat_blocks(held)
            held, rows = [], 0
    if held:
        yield concat_blocks(held)


def _microseconds(instant: datetime | None) -> int | None:
    if instant is None:
        return None
    if instant.tzinfo is None:
        raise HistoryError(f"the time {instant} has no zone: give one, such as {instant.isoformat()}+00:00")
    return int(pa.scalar(instant, pa.timestamp("us", "UTC")).value)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
