"""What the archive's one writer of a job on Flink costs an event: what `streaming.cluster_steps.ToArchive` does, alone.

    python -m benchmarks.cluster_writer

Rows of `sameriver bench cluster`, folded and predicted, come as pieces of 2,500; each is written as for the runner's
state and read back, and they go into the archive 20 at a time, as after a checkpoint. Beam's and Flink's own part,
which carry them, is not in it.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks.stream import RULE, _positions
from shared_features import load_app
from shared_features.app import App, Rule
from shared_features.kernel import finish
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from streaming import results
from streaming.archive import Archive
from streaming.folders import Keyed, hashes_of
from streaming.ledger import Ledger
from streaming.pieces import Outbox, Piece, decode_piece, encode_piece

EVENTS, SHARDS, PIECE, GROUP = 400_000, 4, 2_500, 20


def finished(app: App, rows: pa.RecordBatch) -> Iterator[Piece]:
    """Pieces as they reach the archive's step."""
    plan, (first, *_) = make_plan(app), reaction_stages(app)
    folders = [[Keyed(app, stage, shard) for shard in range(SHARDS)] for stage in plan.stages]
    rules = [model for model in app.models if isinstance(model, Rule)]
    for at in range(0, rows.num_rows, PIECE * SHARDS):
        block = rows.slice(at, PIECE * SHARDS)
        pieces = [Piece(block, received=block.num_rows)]
        for stage, shards in zip(plan.stages, folders, strict=True):
            outbox = Outbox()
            for piece in pieces:
                outbox.put(piece, hashes_of(stage.key, piece.block), SHARDS)
            pieces = [shards[shard].fold(piece) for shard, piece in outbox.empty() if piece.rows]
        for piece in pieces:
            done = finish(plan, piece.block)
            answers = {rule.name: results.apply_rule(app, rule, done) for rule in rules}
            yield piece.with_block(results.with_results(app, done, answers, [first]))


def measure() -> dict[str, float]:
    """Microseconds of processor time an event, events a second, bytes of one in the runner's state and in the log."""
    app = load_app(str(RULE))
    pieces = list(finished(app, _positions(EVENTS)))
    with tempfile.TemporaryDirectory() as name:
        archive = Archive(Path(name), {"app": app.name, "fingerprint": app.fingerprint, "definitions": app.definitions})
        ledger = Ledger(archive, {}, [], 0, None)
        state_bytes, begin, begin_s = 0, time.process_time(), time.monotonic()
        for at in range(0, len(pieces), GROUP):
            for piece in pieces[at : at + GROUP]:
                data = encode_piece(piece)
                state_bytes += len(data)
                newest = ledger.take(decode_piece(data))
            ledger.commit(newest)
        spent, seconds = time.process_time() - begin, time.monotonic() - begin_s
        log_bytes = sum(path.stat().st_size for path in Path(name).glob("*.log"))
        archive.close()
    return {
        "events": EVENTS,
        "writer_us": round(spent / EVENTS * 1e6, 2),
        "events_per_s": round(EVENTS / seconds),
        "state_bytes": round(state_bytes / EVENTS),
        "log_bytes": round(log_bytes / EVENTS),
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
