"""Blocks from those who mean harm: headers that lie, schemas that unfold, mutated bytes; no neighbour is lost."""

from __future__ import annotations

import json
import random
import resource

import pyarrow as pa
import pytest

from streaming.arrow_frames import FrameError, FrameLimitError, check_frames
from streaming.dead_letters import REASONS
from tests.event_block_kit import INTAKE, avro_file, good, ipc, received
from tests.sample_events import GOOD


def container_of(schema: str, blocks: bytes) -> bytes:
    """A container file around a schema and blocks that no writer would make."""

    def long(value: int) -> bytes:
        value, out = (value << 1) ^ (value >> 63), b""
        while value > 0x7F:
            out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
        return out + bytes([value])

    text = schema.encode()
    return b"Obj\x01" + long(1) + long(11) + b"avro.schema" + long(len(text)) + text + long(0) + b"S" * 16 + blocks


RECURSIVE = '{"type":"record","name":"R","fields":[{"name":"next","type":["null","R"]}]}'
UNFOLDING = json.dumps(
    {
        "type": "record",
        "name": "R0",
        "fields": [{"name": "a", "type": {"type": "record", "name": "R1", "fields": [
            {"name": f"f{i}", "type": {"type": "record", "name": f"N{i}", "fields": [
                {"name": f"g{j}", "type": f"N{i - 1}" if i else "null"} for j in range(8)]}} for i in range(7)]}}],
    }
)  # fmt: skip
NOTHINGS = '{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"null"}}]}'


@pytest.mark.parametrize("schema", [RECURSIVE, UNFOLDING, NOTHINGS, "[" * 100_000, "{}", '"string"'])
def test_schemas_that_cost_more_than_their_bytes_are_refused(schema: str) -> None:
    data = container_of(schema, b"\x02\x02\x02" + b"S" * 16)
    (refused,) = INTAKE.take([received(data, encoding="avro-file")]).refused
    assert refused.reason == "malformed_block"


def mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        changed[rng.randrange(len(changed))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def test_mutated_blocks_cost_no_memory_and_no_neighbour() -> None:
    """1,200 seeded mutations of valid blocks: each ends as rows or refusals, and a good message beside is untouched."""
    rng = random.Random(11)
    alone = received(json.dumps(GOOD).encode(), message_id="good")
    bases = [
        received(ipc(good(20)), encoding="arrow"),
        received(ipc(good(20), "lz4"), encoding="arrow"),
        received(avro_file(20), encoding="avro-file"),
        received(avro_file(20, "deflate"), encoding="avro-file"),
    ]
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(300):
        for base in bases:
            taken = INTAKE.take([alone, base._replace(data=mutated(rng, base.data)), alone])
            assert taken.rows[0] == 0
            assert taken.rows[-1] == 2
            assert {one.reason for one in taken.refused} <= set(REASONS)
            assert taken.events == taken.block.num_rows + len(taken.refused)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb < 200_000


def test_headers_that_lie_are_found_before_anything_is_allocated() -> None:
    data = bytearray(ipc({"x": pa.array(range(1000))}, "lz4"))
    claimed = data.rindex((8000).to_bytes(8, "little"))
    data[claimed : claimed + 8] = (2**50).to_bytes(8, "little")
    with pytest.raises(FrameLimitError, match="when decompressed"):
        check_frames(bytes(data), max_rows=1000, max_bytes=1 << 26)
    data[claimed : claimed + 8] = (-5).to_bytes(8, "little", signed=True)
    with pytest.raises(FrameError, match="negative"):
        check_frames(bytes(data), max_rows=1000, max_bytes=1 << 26)
