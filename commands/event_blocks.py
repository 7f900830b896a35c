"""Rows of a file as blocks of events, one message for each type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from commands.event_files import Row, as_received
from shared_features.decode import Decoder
from shared_features.schema import EventSchema
from streaming.event_blocks import block_message
from streaming.topics import OutgoingMessage

_NO_ID = "\0"
"""Before a row's number: an identity that no event can have."""


def as_blocks(
    event_types: Mapping[str, EventSchema], decoder: Decoder, rows: Sequence[Row], now_us: int, compression: str | None
) -> list[OutgoingMessage]:
    """One message for each event type among ``rows``, in the order of their first events.

    Args:
        event_types: of the app, by name.
        decoder: of the app.
        rows: good ones, of one block.
        now_us: when they are published, microseconds since 1970.
        compression: of each message; None leaves it as it is.
    """
    if not rows:
        return []
    block = decoder.decode(as_received(rows, now_us, _NO_ID)).block
    # An event without an identity of its own gets that of its message, as it would if it were sent alone.
    ids, numbers = block.column("event_id"), block.column("message_id")
    own = pc.if_else(pc.equal(ids, numbers), pa.scalar(None, pa.string()), ids)
    block = block.set_column(block.schema.get_field_index("event_id"), "event_id", own)
    types = block.column("event_type")
    return [
        block_message(
            event_types[name],
            block.take(pa.array(np.flatnonzero(np.asarray(pc.equal(types, name))))),
            compression=compression,
        )
        for name in pc.unique(types).to_pylist()
    ]
