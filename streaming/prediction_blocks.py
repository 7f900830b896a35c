"""Predictions as blocks: one Arrow IPC stream for many rows, in place of one JSON message for each.

For those who take predictions by the hundred thousand a second; everything else is as in single messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from shared_features.blocks import from_ipc, to_ipc
from shared_features.lists import spread
from streaming.messages import columns_under, late_rows
from streaming.topics import OutgoingMessage

PREDICTION_BLOCK: Final = "prediction-block/2"
_MAX_ROWS: Final = 5_000
_MAX_BYTES: Final = 4_000_000


def prediction_block_messages(
    block: pa.RecordBatch,
    prediction_ids: pa.StringArray,
    *,
    app: str,
    fingerprint: str,
    keys: Mapping[str, pa.Array],
    model: str = "",
    model_version: int | pa.Array = 0,
    reactions: Mapping[str, pa.Array] | None = None,
    with_features: bool = False,
) -> list[OutgoingMessage]:
    """Messages for the topic ``<app>-predictions``; equal rows give equal bytes.

    Args:
        block, prediction_ids, keys, model, reactions, with_features: as for
            `streaming.messages.prediction_messages`.
        app, fingerprint: in the attributes, since they are the same for all rows.
        model_version: of all rows, or int64 of each.
    """
    columns: dict[str, pa.Array] = {
        "prediction_id": prediction_ids,
        **{name: block.column(name) for name in ("event_type", "event_id", "event_time", "publish_time")},
        "late": pa.array(late_rows(block)),
        "model_version": pa.array([model_version] * block.num_rows, pa.int64())
        if isinstance(model_version, int)
        else model_version,
        **{f"key.{name}": values.cast(pa.string()) for name, values in keys.items()},
        **{f"reaction.{name}": values for name, values in (reactions or {}).items()},
        **{f"output.{name}": values for name, values in columns_under(block, f"prediction.{model}.").items()},
    }
    if with_features:
        features = spread(columns_under(block, "feature."))
        columns |= {f"feature.{name}": values for name, values in features.items()}
    rows = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    size = max(1, min(_MAX_ROWS, _MAX_BYTES * rows.num_rows // max(1, rows.nbytes)))
    shared = {
        "schema": PREDICTION_BLOCK,
        "encoding": "arrow",
        "app": app,
        "model": model,
        "fingerprint": fingerprint,
    }
    parts = [rows.slice(at, size) for at in range(0, rows.num_rows, size)]
    return [OutgoingMessage(to_ipc(part), {**shared, "rows": str(part.num_rows)}) for part in parts]


def block_predictions(data: bytes, attributes: Mapping[str, str]) -> list[dict[str, Any]]:
    """The predictions of a block as `streaming.messages.plain` gives those of single messages.

    Raises:
        HistoryError: the data is no such block.
    """
    found = []
    rows = from_ipc(data)
    for name in ("event_time", "publish_time"):
        index = rows.schema.get_field_index(name)
        rows = rows.set_column(index, name, rows.column(name).view(pa.int64()).fill_null(0))
    for row in rows.to_pylist():
        grouped: dict[str, dict[str, Any]] = {"key": {}, "output": {}, "feature": {}, "reaction": {}}
        record: dict[str, Any] = {"prediction_id": row.pop("prediction_id"), "app": attributes.get("app", "")}
        for name, value in row.items():
            group, dot, rest = name.partition(".")
            if not dot:
                record[name] = value
            elif group != "key" or value is not None:
                grouped[group][rest] = value
        record |= {"model": attributes.get("model", ""), "fingerprint": attributes.get("fingerprint", "")}
        fired = [name for name, fires in grouped["reaction"].items() if fires]
        record |= {"key": grouped["key"], "outputs": grouped["output"], "features": grouped["feature"]}
        found.append({**record, "reactions": fired})
    return found
