"""Archived rows as tables for others: what was folded, what was predicted, what reacted.

``archive``
    Every event as it was folded, with its positions, features and outcome: a history that batch jobs take.
``predictions``
    One row for each ``prediction_id`` (contract C7): event, keys, model, outputs, features.
``reactions``
    One row for each ``reaction_id``.

All have ``archive`` (which one), ``archive_commit`` and ``archive_row``: from where a row is. Columns are flat blocks',
``key.<name>`` among them, as text: what tables are clustered by.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batch.writers import Shape
from shared_features import hashing
from shared_features.app import App
from shared_features.blocks import append_columns
from shared_features.columns import Evaluator, is_one_of
from shared_features.expressions import Expression
from shared_features.kernel import key_column
from shared_features.schema import TIMESTAMP
from streaming import results
from streaming.archive_parquet import COMMIT_COLUMN, ROW_COLUMN
from streaming.messages import late_rows, plain, prediction_ids
from streaming.outgoing import outgoing

ARCHIVE = "archive"
PLACES = (ARCHIVE, COMMIT_COLUMN, ROW_COLUMN)

_EVENT = ("event_type", "event_id", "event_time", "publish_time")

Rows = Callable[[App, pa.RecordBatch], pa.RecordBatch]


def archive_rows(app: App, block: pa.RecordBatch) -> pa.RecordBatch:
    """All rows and columns, and the keys."""
    return append_columns(block, _keys(app, block))


def prediction_rows(app: App, block: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that were predicted (or recorded, in collect mode), once for each model."""
    done = block.filter(pa.array(is_one_of(block.column("outcome"), results.PREDICTED, results.RECORDED)))
    columns = {"app": _all(app.name, done), "fingerprint": _all(app.fingerprint, done), **_keys(app, done)}
    features = [name for name in app.features if f"feature.{name}" in done.schema.names]
    fired = [f"reaction.{one.name}" for one in app.reactions if f"reaction.{one.name}" in done.schema.names]
    outputs = list(dict.fromkeys(name for model in app.models for name in model.outputs))
    parts = []
    for model in [model.name for model in results.models_of(app, done)] or [""]:
        versions = done.column(f"version.{model}") if model else pa.array(np.zeros(done.num_rows, np.int64))
        ids = prediction_ids(done, app=app.name, fingerprint=app.fingerprint, model=model, model_version=versions)
        made = {"prediction_id": ids}
        made |= {name: done.column(name) for name in _EVENT} | columns
        made |= {"model": _all(model, done), "model_version": versions, "late": pa.array(late_rows(done))}
        for name in outputs:
            predicted = f"prediction.{model}.{name}"
            there = predicted in done.schema.names
            made[f"output.{name}"] = done.column(predicted) if there else pa.nulls(done.num_rows, pa.float64())
        made |= {name: done.column(name) for name in fired}
        made |= {f"feature.{name}": _sized(done.column(f"feature.{name}"), app.features[name]) for name in features}
        made |= {name: done.column(name) for name in PLACES if name in done.schema.names}
        parts.append(pa.RecordBatch.from_arrays(list(made.values()), names=list(made)))
    return pa.concat_batches(parts)


_REACTION = pa.schema(
    [
        *((name, pa.string()) for name in ("reaction_id", "prediction_id", "app", "reaction", *_EVENT[:2])),
        *((name, TIMESTAMP) for name in _EVENT[2:]),
        ("key", pa.string()),
        ("payload", pa.string()),
        (ARCHIVE, pa.string()),
        (COMMIT_COLUMN, pa.int64()),
        (ROW_COLUMN, pa.int32()),
    ]
)


def reaction_rows(app: App, block: pa.RecordBatch) -> pa.RecordBatch:
    """One row for each reaction that fired; ``key`` and ``payload`` as JSON, as their messages have them."""
    block = with_sized_lists(app, block)
    places = {(event_type, event_id): i for i, (event_type, event_id) in enumerate(_identities(block))}
    rows = []
    for topic, messages in outgoing(app, block, with_features=False).items():
        if topic.endswith("-predictions"):
            continue
        for message in messages:
            record = plain(message.data)
            place = places[record["event_type"], record["event_id"]]
            for name in ("key", "payload"):
                record[name] = json.dumps(record[name], sort_keys=True)
            for name in ("event_time", "publish_time", *(name for name in PLACES if name in block.schema.names)):
                record[name] = block.column(name)[place].as_py()
            rows.append(record)
    return pa.RecordBatch.from_pylist(rows, schema=_REACTION)


def _identities(block: pa.RecordBatch) -> list[tuple[str, str]]:
    return list(zip(block.column("event_type").to_pylist(), block.column("event_id").to_pylist(), strict=True))


def _keys(app: App, block: pa.RecordBatch) -> dict[str, pa.Array]:
    evaluator = Evaluator(block)
    return {f"key.{key.name}": pc.cast(key_column(key, evaluator), pa.string()) for key in app.all_keys}


def with_sized_lists(app: App, block: pa.RecordBatch) -> pa.RecordBatch:
    """Rows from Parquet with features that are lists as the kernel makes them."""
    for name, feature in app.features.items():
        index = block.schema.get_field_index(f"feature.{name}")
        if index >= 0:
            block = block.set_column(index, f"feature.{name}", _sized(block.column(index), feature))
    return block


def _sized(column: pa.Array, feature: Expression) -> pa.Array:
    """A list feature with its length in its type: Parquet files have lists of any length."""
    return column if column.type == feature.arrow_type else column.cast(feature.arrow_type)


def _all(value: str, block: pa.RecordBatch) -> pa.Array:
    return pa.array([value], pa.string()).take(pa.array(np.zeros(block.num_rows, np.int64)))


KINDS: dict[str, tuple[Rows, str]] = {
    "archive": (archive_rows, ""),
    "predictions": (prediction_rows, "prediction_id"),
    "reactions": (reaction_rows, "reaction_id"),
}
"""What can be exported: how its rows are made, and their identity."""


MARKS = {"archive": "outcome", "predictions": "model", "reactions": "reaction_id"}
"""A column that only rows of a kind have, never null: what one table has of another kind says nothing of this one."""


def shape_of(app: App, kind: str, schema: pa.Schema) -> Shape:
    """The shape of rows of a kind that have these columns."""
    metadata = {"sameriver.app": app.name, "sameriver.fingerprint": app.fingerprint}
    keys = tuple(f"key__{key.name}" for key in app.all_keys) if kind != "reactions" else ()
    outputs = tuple(name for name in schema.names if name.startswith("output."))
    return Shape(pa.schema(list(schema), metadata=metadata), KINDS[kind][1], keys, PLACES, outputs)


def archive_id(fingerprint: str, first: pa.RecordBatch) -> str:
    """Names an archive by its first row: 16 hexadecimal digits, the same wherever a copy of it lies."""
    row = first.slice(0, 1).select([*_EVENT, "message_id"]).to_pylist()[0]
    parts = [fingerprint, *(str(row[name]) for name in sorted(row))]
    return f"{hashing.hash_bytes(chr(0).join(parts).encode()):016x}"
