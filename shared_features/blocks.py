"""Blocks: the Arrow RecordBatches that everything here takes and returns.

A block has the envelope (`event_type`, `event_id`, `event_time`, `publish_time`, `message_id`), then one
column ``<type>.<field>`` per event field, null on the rows of other types. Stages append
``stage.<key>.…``, then come ``feature.<name>``, ``version.<model>``, ``prediction.<model>.<output>``,
``reaction.<name>`` and ``started.<reaction>``.

On disk and in BigQuery the dotted columns are struct columns (BigQuery: RECORD), one per event type, and
one each for ``stage``, ``feature``, ``version``, ``prediction``, ``reaction`` and ``started``. :func:`nest`
and :func:`flatten` go between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared_features.errors import HistoryError
from shared_features.schema import ENVELOPE, EventSchema

MAX_BLOCK_BYTES: Final = 1 << 30
"""The largest serialised block that :func:`from_ipc` reads."""

_LONGER_KEPT: Final = 64

_OWN_STRUCTS: Final = frozenset({"", "stage", "feature", "version", "prediction", "reaction", "started"})

_NO_CODEC: Final = pa.ipc.IpcWriteOptions(compression=None)

BoolArray = npt.NDArray[np.bool_]
Columns = TypeVar("Columns", pa.RecordBatch, pa.Table)


def block_schema(schemas: Mapping[str, EventSchema] | Iterable[EventSchema]) -> pa.Schema:
    """The columns of a block as it is decoded: the envelope, then every field of every event type.

    Args:
        schemas: the app's event types, in the app's order, which is the order of the columns.
    """
    types = schemas.values() if isinstance(schemas, Mapping) else schemas
    return pa.schema([*ENVELOPE, *(field for schema in types for field in schema.block_fields)])


def empty_block(schema: pa.Schema) -> pa.RecordBatch:
    """A block of no rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def concat_blocks(blocks: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Blocks of one schema, one after the other, as one block.

    Raises:
        ValueError: there is no block, or two differ in their columns.
    """
    if len(blocks) == 1:
        return blocks[0]
    return pa.concat_batches(blocks)


def append_columns(block: pa.RecordBatch, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """The block with further columns behind its own.

    Args:
        columns: name to values, one per row of the block.

    Raises:
        ValueError: a name is taken, or a column has another length.
    """
    if not columns:
        return block
    schema = _longer_schema(block.schema, tuple(columns), tuple(values.type for values in columns.values()))
    return pa.RecordBatch.from_arrays([*block.columns, *columns.values()], schema=schema)


_longer: dict[tuple[str, ...], tuple[pa.Schema, tuple[pa.DataType, ...], pa.Schema]] = {}
"""By the names of columns: what they were appended to last, their types, and the schema of it all."""


def _longer_schema(schema: pa.Schema, names: tuple[str, ...], types: tuple[pa.DataType, ...]) -> pa.Schema:
    """The schema with further fields; the last one of the same names is kept, for blocks of one row."""
    known = _longer.get(names)
    if known is not None and known[0].equals(schema, check_metadata=True) and known[1] == types:
        return known[2]
    taken = [name for name in names if schema.get_field_index(name) >= 0]
    if taken:
        raise ValueError(f"The block has a column {taken[0]!r} already; name the new one otherwise.")
    fields = [*schema, *(pa.field(name, kind) for name, kind in zip(names, types, strict=True))]
    if len(_longer) >= _LONGER_KEPT:
        _longer.clear()
    _longer[names] = (schema, types, pa.schema(fields, metadata=schema.metadata))
    return _longer[names][2]


def nest(block: Columns) -> Columns:
    """Gathers dotted columns into struct columns: ``departed.delay`` becomes ``delay`` in ``departed``.

    A struct of an event type is null on the rows of other types; ``stage``, ``feature``, ``prediction`` and
    ``reaction`` are never null, only their fields are. No value is ever lost: :func:`flatten` undoes it.

    Args:
        block: a block, or a table, with the column ``event_type`` if it has columns of event types.

    Returns:
        The same rows; each struct stands where its first field stood.
    """
    if isinstance(block, pa.Table):
        batches = [nest(batch) for batch in block.to_batches()] or [nest(empty_block(block.schema))]
        return pa.Table.from_batches(batches)
    types = block.column("event_type") if "event_type" in block.schema.names else None
    tree: dict[str, Any] = {}
    for name, values in zip(block.schema.names, block.columns, strict=True):
        node = tree
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = values
    arrays = [_struct(name, node, types) for name, node in tree.items()]
    return pa.RecordBatch.from_arrays(arrays, names=list(tree))


def _struct(name: str, node: pa.Array | dict[str, Any], types: pa.Array | None) -> pa.Array:
    if not isinstance(node, dict):
        return node
    children = [_struct("", child, None) for child in node.values()]
    mask = None
    if types is not None and name not in _OWN_STRUCTS:
        other = ~np.asarray(pc.equal(types, name).fill_null(False))
        if not any(_has_values(child, other) for child in children):
            mask = pa.array(other)
    return pa.StructArray.from_arrays(children, names=list(node), mask=mask)


def _has_values(values: pa.Array, rows: BoolArray) -> bool:
    """Whether some of the rows are not null: a struct that says something there is not an event type's."""
    if values.null_count == len(values):
        return False
    return bool((rows & np.asarray(values.is_valid())).any())


def flatten(block: Columns) -> Columns:
    """Spreads struct columns into dotted columns, the inverse of :func:`nest`.

    A field of a null struct is null. Columns that are no structs stay as they are.

    Args:
        block: a block or a table, for example one read from the history or the archive.
    """
    if isinstance(block, pa.Table):
        while any(pa.types.is_struct(field.type) for field in block.schema):
            block = block.flatten()
        return block
    arrays: list[pa.Array] = []
    names: list[str] = []
    for name, values in zip(block.schema.names, block.columns, strict=True):
        _spread(name, values, names, arrays)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _spread(name: str, values: pa.Array, names: list[str], arrays: list[pa.Array]) -> None:
    if not pa.types.is_struct(values.type):
        names.append(name)
        arrays.append(values)
        return
    for field, child in zip(values.type, values.flatten(), strict=True):
        _spread(f"{name}.{field.name}", child, names, arrays)


def to_ipc(block: pa.RecordBatch) -> bytes:
    """The block as one Arrow IPC stream, uncompressed: its rows only, also where it is a slice."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema, options=_NO_CODEC) as writer:
        writer.write_batch(block)
    return bytes(sink.getvalue())


def from_ipc(data: bytes | memoryview | pa.Buffer, max_bytes: int = MAX_BLOCK_BYTES) -> pa.RecordBatch:
    """Reads what :func:`to_ipc` wrote; the columns refer to ``data`` without a copy.

    Args:
        data: one stream with exactly one batch.
        max_bytes: refuse more than this, before and after reading.

    Raises:
        HistoryError: the bytes are too many, cut off, or no block; their content is checked in full.
    """
    size = data.size if isinstance(data, pa.Buffer) else memoryview(data).nbytes
    if size > max_bytes:
        raise HistoryError(
            f"A serialised block may have at most {max_bytes} bytes, but this one has {size}; write smaller blocks."
        )
    try:
        with pa.ipc.open_stream(data) as reader:
            block = reader.read_next_batch()
            block.validate(full=True)
            more = next(iter(reader), None)
    except (pa.ArrowException, StopIteration, OSError, EOFError, ValueError, MemoryError) as error:
        raise HistoryError(
            f"A serialised block was wanted, but these {size} bytes are none ({_first_line(error)}); "
            f"read what to_ipc wrote."
        ) from error
    if more is not None or block.nbytes > max_bytes:
        raise HistoryError(
            f"A serialised block of one batch and at most {max_bytes} bytes was wanted, got more; write each "
            f"block by itself."
        )
    return block


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
