"""Parts of a job on a cluster, alone: state in a runner's cells, the ledger, shards, what a checkpoint covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shared_features.errors import HistoryError
from shared_features.plan import make_plan
from streaming import keyed_state
from streaming.archive import Archive, read_commits
from streaming.covered import Covered
from streaming.folders import Deduplication, Keyed, hashes_of
from streaming.key_groups import KEY_GROUPS, key_group, shard_names, shard_number
from streaming.keyed_state import Cells, LiveStates
from streaming.ledger import Ledger, last_counts, split_closed
from streaming.pieces import Outbox, Piece, decode_piece, encode_piece, together
from streaming.topics import OutgoingMessage
from tests.shop.app import app
from tests.test_verify import sales


class Value:
    def __init__(self) -> None:
        self.held: bytes | None = None

    def read(self) -> bytes | None:
        return self.held

    def write(self, value: bytes) -> None:
        self.held = value


class Bag:
    """Beam's bag: reads in any order, here the reverse."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def read(self) -> list[bytes]:
        return self.held[::-1]

    def add(self, one: bytes) -> None:
        self.held.append(one)

    def clear(self) -> None:
        self.held = []


def test_state_comes_back_from_base_and_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that moves to another process after every block goes on as one that stays; its state stays small."""
    monkeypatch.setattr(keyed_state, "LEAST_JOURNAL_BYTES", 20_000)
    stage, block = make_plan(app).stages[0], sales(600)
    cells, staying = Cells(Value(), Bag(), Bag()), Keyed(app, stage, 3)
    sizes = []
    for start in range(0, 600, 40):
        part = block.slice(start, 40)
        live = LiveStates[Keyed]()
        state, head = live.take(3, cells, Keyed(app, stage, 3))
        moved, stayed = state.fold(Piece(part)), staying.fold(Piece(part))
        live.put(3, cells, head, state, part)
        assert moved.block == stayed.block
        sizes.append(sum(map(len, cells.journal.held)) + sum(map(len, cells.base.held)))
    assert cells.base.held
    assert max(sizes) < 80_000


def test_a_state_of_another_token_is_not_used() -> None:
    """A bundle that failed leaves the process ahead of the runner's state: the state is made again."""
    block = sales(40)
    cells, live = Cells(Value(), Bag(), Bag()), LiveStates[Deduplication]()
    state, head = live.take(0, cells, Deduplication(app, 3600))
    before = cells.head.held
    assert state.fold(Piece(block)).rows == 40
    live.put(0, cells, head, state, block)
    cells.head.held, cells.journal.held = before, []
    state, _ = live.take(0, cells, Deduplication(app, 3600))
    again = state.fold(Piece(block))
    assert (again.rows, again.duplicates) == (40, 0)


def test_shards_are_dealt_out_evenly() -> None:
    for shards in (1, 3, 4, 8, 128):
        names = shard_names(shards)
        assert [shard_number(name) for name in names] == list(range(shards))
        for workers in range(1, shards + 1):
            dealt = np.bincount([key_group(name) * workers // KEY_GROUPS for name in names], minlength=workers)
            assert dealt.max() - dealt.min() <= 1


def test_pieces_keep_every_row_and_count() -> None:
    block, outbox = sales(100), Outbox()
    letter = OutgoingMessage(b"x", {"reason": "bad"}, "key")
    for part in (block.slice(0, 60), block.slice(60)):
        piece = Piece(part, received=part.num_rows + 1)
        piece.refuse("bad", [letter])
        outbox.put(piece, hashes_of(make_plan(app).stages[0].key, part), 4)
    sent = [(shard, decode_piece(encode_piece(piece))) for shard, piece in outbox.empty()]
    assert list(outbox.empty()) == []
    whole = together(piece for _, piece in sent)
    assert (whole.received, whole.dead_letters, whole.letters) == (102, {"bad": 2}, [letter, letter])
    assert whole.block is not None
    assert sorted(whole.block.column("event_id").to_pylist()) == sorted(block.column("event_id").to_pylist())
    assert len({shard for shard, _ in sent}) > 1


def test_covered_is_what_ended_before_the_checkpoint_before() -> None:
    clock, done = [0.0], list[int]()
    covered = Covered(done.append, 1.0, lambda: clock[0])
    first, second = covered.notice(1), covered.notice(2)
    first()
    late = covered.notice(3)  # of another task of the same checkpoint
    second()
    late()
    assert done == []
    clock[0] = 5.0
    covered.notice(9)()
    assert done == [3]


def rows(*places: tuple[int, int, int, int]) -> pa.RecordBatch:
    """Rows with (shard, position) in stage a and in stage b."""
    names = ["stage.a.shard", "stage.a.position", "stage.b.shard", "stage.b.position"]
    columns = [pa.array(column, pa.int64()) for column in zip(*places, strict=True)]
    outcomes = pa.array(["predicted"] * len(places))
    return pa.RecordBatch.from_arrays([*columns, outcomes], names=[*names, "outcome"])


def test_a_row_waits_for_those_before_it() -> None:
    """The second row overtook one that went through another shard of stage b; the third comes behind the second."""
    block, places = rows((0, 0, 0, 0), (0, 2, 1, 0), (1, 0, 1, 1)), dict[str, list[int]]()
    first, left = split_closed(block, places)
    assert first is not None
    assert left is not None
    assert (first.num_rows, left.num_rows, places) == (1, 2, {"a": [1], "b": [1]})
    both = pa.Table.from_batches([left, rows((0, 1, 0, 1))]).combine_chunks().to_batches()[0]
    assert split_closed(both, places)[1] is None
    assert places == {"a": [3, 1], "b": [2, 2]}


def opened(folder: Path, entries: list[tuple[int, Piece]], newest: int) -> tuple[Archive, Ledger]:
    archive = Archive(folder, {"app": "shop", "fingerprint": "f", "definitions": {}})
    return archive, Ledger(archive, last_counts(folder, archive.next_sequence - 1), entries, newest, None)


def archived(folder: Path) -> list[tuple[int, int]]:
    """Shard and position in stage a of every archived row."""
    return [
        (row["stage.a.shard"], row["stage.a.position"])
        for commit in read_commits(folder)
        for row in commit.block.to_pylist()
    ]


def test_the_archive_gets_each_row_once_whatever_a_restart_brings_back(tmp_path: Path) -> None:
    pieces = [rows((0, 0, 0, 0)), rows((0, 2, 1, 0)), rows((0, 1, 0, 1))]
    entries = [(number, Piece(block, received=1)) for number, block in enumerate(pieces, 1)]
    archive, ledger = opened(tmp_path, [], 0)
    for _, piece in entries:
        ledger.take(piece)
    ledger.commit(2)  # its row waits for that of entry 3
    assert (archived(tmp_path), ledger.settled) == ([(0, 0)], 0)
    archive.close()
    archive, ledger = opened(tmp_path, entries, 3)  # the checkpoint holds all three
    assert (sorted(archived(tmp_path)), ledger.settled) == ([(0, 0), (0, 1), (0, 2)], 3)
    archive.close()
    archive, ledger = opened(tmp_path, entries, 3)
    assert len(archived(tmp_path)) == 3
    archive.close()
    assert sum(commit.counts["received"] for commit in read_commits(tmp_path)) == 3


def test_a_checkpoint_that_does_not_fit_the_archive_is_refused(tmp_path: Path) -> None:
    archive, ledger = opened(tmp_path, [], 0)
    ledger.take(Piece(rows((0, 0, 0, 0))))
    ledger.commit(1)
    archive.close()
    for newest, why in ((0, "goes up to entry 1"), (2, "lacks entries up to 2")):
        archive = Archive(tmp_path, {"app": "shop", "fingerprint": "f", "definitions": {}})
        with pytest.raises(HistoryError, match=why):
            Ledger(archive, last_counts(tmp_path, 0), [], newest, None)
        archive.close()
