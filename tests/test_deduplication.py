"""Deduplication knows exactly what a dictionary of everything accepted would know."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from shared_features import identities
from shared_features.identities import siphash13
from streaming.deduplication import Deduplicator

HOUR_US = 3_600_000_000
HORIZON_US = 5 * HOUR_US
Event = tuple[str, str, int]


class Obvious:
    """Row by row, with everything that was ever accepted: the slow form."""

    def __init__(self) -> None:
        self.tiles: dict[tuple[str, str], int] = {}
        self.newest_us = -(2**62)

    def accept(self, event: Event) -> tuple[bool, bool]:
        name, event_id, time_us = event
        limit_us = self.newest_us - HORIZON_US
        if self.tiles.get((name, event_id), limit_us // HOUR_US - 1) >= limit_us // HOUR_US:
            return True, False
        if time_us < limit_us:
            return False, True
        self.tiles[name, event_id] = time_us // HOUR_US
        self.newest_us = max(self.newest_us, time_us)
        return False, False

    def __len__(self) -> int:
        return sum(tile >= (self.newest_us - HORIZON_US) // HOUR_US for tile in self.tiles.values())


def block_of(events: list[Event]) -> pa.RecordBatch:
    types, ids, times = zip(*events, strict=True) if events else ((), (), ())
    return pa.RecordBatch.from_pydict(
        {
            "event_type": pa.array(types, pa.string()),
            "event_id": pa.array(ids, pa.string()),
            "event_time": pa.array(times, pa.timestamp("us", tz="UTC")),
        }
    )


def some_events(chosen: random.Random, count: int) -> list[Event]:
    """Ids of all lengths, many of them again; time goes on, with late events and some far too late."""
    events, now_us = list[Event](), 1_700_000_000_000_000
    for _ in range(count):
        now_us += chosen.randint(0, HOUR_US // 20)
        late_us = chosen.choice([0, 0, 0, HOUR_US // 2, 3 * HOUR_US, 7 * HOUR_US])
        if events and chosen.random() < 0.3:
            name, event_id, time_us = chosen.choice(events[-300:])
            events.append((name, event_id, chosen.choice([time_us, now_us])))
        else:
            word = "".join(chosen.choices("abé0", k=chosen.choice([0, 1, 7, 8, 9, 16, 40])))
            events.append((chosen.choice(["sale", "tick"]), word, now_us - late_us))
    return events


@pytest.mark.parametrize("seed", range(4))
def test_as_the_obvious_form_decides_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(identities, "_LEAST_FORGOTTEN", 10)
    monkeypatch.setattr(identities, "_PIECE_ROWS", 100)
    chosen = random.Random(seed)
    events, obvious, ours = some_events(chosen, 3000), Obvious(), Deduplicator(HORIZON_US)
    at = 0
    while at < len(events):
        until = at + chosen.choice([0, 1, 2, 30, 400])
        block = block_of([("sale", "of another block", 0), *events[at:until]]).slice(1)
        duplicate, beyond = ours.accept(block)
        wanted = [obvious.accept(event) for event in events[at:until]]
        assert list(zip(duplicate.tolist(), beyond.tolist(), strict=True)) == wanted
        assert (len(ours), ours.newest_us) == (len(obvious), obvious.newest_us)
        if chosen.random() < 0.2:
            ours = _saved(ours)
        at = until


def _saved(one: Deduplicator) -> Deduplicator:
    """What comes back from what it saves."""
    sink, other = io.BytesIO(), Deduplicator(HORIZON_US)
    one.save(sink)
    sink.seek(0)
    other.load(sink, one.newest_us)
    return other


def test_room_for_many_and_memory_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identities, "_FIRST_CELLS", 2048)
    ours, time_us = Deduplicator(HORIZON_US), 1_700_000_000_000_000
    many = [("tick", f"{number:020d}", time_us) for number in range(50_000)]
    for at in range(0, len(many), 5_000):
        assert not any(map(np.any, ours.accept(block_of(many[at : at + 5_000]))))
    assert len(ours) == 50_000
    assert 40 < ours.nbytes / 50_000 < 85
    assert ours.accept(block_of(many))[0].all()
    ours.accept(block_of([("tick", "much later", time_us + HORIZON_US + 2 * HOUR_US)]))
    assert len(ours) == 1
    assert ours.nbytes < 200_000


def test_the_hash_is_siphash() -> None:
    """Python hashes bytes by SipHash-1-3; with PYTHONHASHSEED=0 under a key of zeros."""
    texts = [bytes(range(length)) for length in range(20)]
    program = f"import sys; print(sys.hash_info.algorithm, *[hash(bytes(8) + text) for text in {texts!r}])"
    run = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "0"}, check=True, capture_output=True, text=True
    )
    algorithm, *wanted = run.stdout.split()
    if algorithm != "siphash13":
        pytest.skip(f"this Python hashes by {algorithm}")
    found = []
    for text in texts:
        words, data = np.zeros(2, np.uint64), np.frombuffer(text + b"?", np.uint8)
        hashed = siphash13(words, np.uint64(0), data, np.int64(0), np.int64(len(text)))
        found.append(struct.unpack("<q", struct.pack("<Q", int(hashed)))[0])
    assert found == [int(word) for word in wanted]
