"""How blocks travel between the steps of a Beam pipeline: as Arrow IPC, never as pickles."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from apache_beam import coders
from apache_beam.coders import typecoders

from shared_features.blocks import from_ipc

_LZ4 = pa.ipc.IpcWriteOptions(compression="lz4")


class BlockCoder(coders.Coder):
    """A block as one Arrow IPC stream, compressed with LZ4; read back with its content checked (`from_ipc`).

    A runner copies each element some eight times on its way through a shuffle: compressing costs less than these
    copies. (Flights of 2013: system time 4.1 s in place of 6.6 s, 1.3 GB resident in place of 1.8 GB.)

    Not deterministic in Beam's sense, so that no runner groups by a block: equal blocks may differ in the bytes
    under their nulls.
    """

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema, options=_LZ4) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return from_ipc(encoded)

    def is_deterministic(self) -> bool:
        return False

    def estimate_size(self, value: pa.RecordBatch) -> int:
        return int(value.nbytes)

    def to_type_hint(self) -> Any:
        return pa.RecordBatch


def register() -> None:
    """Make `BlockCoder` the coder of every PCollection of ``pa.RecordBatch``; idempotent."""
    typecoders.registry.register_coder(pa.RecordBatch, BlockCoder)


register()
