"""A stretch of history as a demo replays it: in fold order, some events late, some twice, in four phases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.app import App
from shared_features.compute import to_block
from shared_features.encode import rows_to_messages
from shared_features.errors import HistoryError
from shared_features.hashing import hash_columns
from shared_features.plan import make_plan
from streaming.event_blocks import block_message

WARM, STEADY, BURST, KILL = 0, 1, 2, 3
WARM_BLOCK = 500
"""Events in one message, at most, while nobody measures."""
MINUTE_US = 60_000_000
ENDLESS_US = 100 * 366 * 86_400_000_000
"""A hundred years: all of any history."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What to replay, and what to do to it on purpose.

    Attributes:
        since, until: events published in [since, until) are measured; aware datetimes.
        steady_events: how many of them go out at a steady rate, at most half; the rest is one burst.
        kill_events: how many of that rest, at most half, go out while the job is killed and comes back.
        late_share: of the measured events, held back by ``late_min_us`` to ``late_max_us`` of event time.
        twice_share: of the measured events, sent again up to ``late_max_us`` later.
        seed: of all that is drawn.
    """

    since: datetime
    until: datetime
    steady_events: int
    kill_events: int = 0
    late_share: float = 0.05
    twice_share: float = 0.01
    late_min_us: int = 10 * MINUTE_US
    late_max_us: int = 60 * MINUTE_US
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Replay:
    """Messages in the order in which they are published.

    Attributes:
        block: the events, a row per message, flattened.
        phase: of each message: `WARM`, `STEADY`, `BURST` or `KILL`; int8, never falling.
        late: whether it was held back; bool.
        again: whether it is the second copy of an event; bool.
    """

    block: pa.RecordBatch
    phase: npt.NDArray[np.int8]
    late: npt.NDArray[np.bool_]
    again: npt.NDArray[np.bool_]

    def write(self, app: App, path: Path) -> None:
        """The messages as an Arrow file: ``data``, ``attributes`` (JSON), ``rows`` of their events, and ``phase``."""
        types = self.block.column("event_type").to_pylist()
        rows = _messages(app, types, int(np.searchsorted(self.phase, STEADY)))
        alone = [of[0] for of in rows if len(of) == 1]
        events = iter(rows_to_messages(self.block.take(pa.array(alone, pa.int64())), app.event_types))
        messages = [
            next(events)
            if len(of) == 1
            else block_message(app.event_types[types[of[0]]], self.block.take(pa.array(of)))
            for of in rows
        ]
        columns = {
            "data": pa.array([message.data for message in messages], pa.binary()),
            "attributes": [json.dumps(message.attributes) for message in messages],
            "rows": pa.array(rows, pa.list_(pa.int64())),
            "phase": pa.array(self.phase[[of[0] for of in rows]]),
        }
        table = pa.table(columns)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


def _messages(app: App, types: list[str], warm: int) -> list[list[int]]:
    """Rows of each message: one, or of the ``warm`` first ones, which nobody measures, blocks of one type.

    Events keep their order but for types that no feature aggregates: those come behind the block that they stand in.
    """
    keyed = {name for key in app.keys for name in key.fields}
    found, block, aside = list[list[int]](), list[int](), list[int]()
    for row in range(warm):
        if types[row] not in keyed and types[row] != app.predict_on.name:
            aside.append(row)
            continue
        if block and (types[row] != types[block[0]] or len(block) == WARM_BLOCK):
            found += [block, *([one] for one in aside)]
            block, aside = [], []
        block.append(row)
    found += [one for one in (block, *([one] for one in aside)) if one]
    return found + [[row] for row in range(warm, len(types))]


def warm_up_us(app: App) -> int:
    """How far back a feature can look, microseconds: the longest window and the lateness.

    Windows of the last n events have no limit: `ENDLESS_US`.
    """
    stages = make_plan(app).stages
    if any(stage.counts_events for stage in stages):
        return ENDLESS_US
    return max((stage.longest_us for stage in stages), default=0) + app.lateness_us


def make_replay(app: App, history: Path, settings: ReplaySettings) -> Replay:
    """The replay of a history.

    Before the measured events come those of `warm_up_us` before them, untouched, so that the state is as full as
    in training. All go by (publish time, identity), the fold order of a history (contract C1), but for what is
    held back or sent again.

    Raises:
        HistoryError: there is no such history, or nothing in the measured time.
    """
    since_us, until_us = (int(time.timestamp()) * 1_000_000 for time in (settings.since, settings.until))
    block = read_history(app, history, since_us - warm_up_us(app), until_us)
    published = block.column("publish_time").cast(pa.int64()).to_numpy()
    measured = np.flatnonzero(published >= since_us)
    if not len(measured):
        raise HistoryError(
            f"history {history} has no event published from {settings.since} to {settings.until}: wanted some to replay"
        )
    draw = np.random.default_rng(settings.seed)
    held = draw.choice(measured, round(len(measured) * settings.late_share), replace=False)
    again = draw.choice(measured, round(len(measured) * settings.twice_share), replace=False)
    at = published.copy()
    at[held] += draw.integers(settings.late_min_us, settings.late_max_us, len(held))
    at_again = at[again] + draw.integers(MINUTE_US, settings.late_max_us, len(again))
    rows = np.concatenate([np.arange(block.num_rows), again])
    order = np.argsort(np.concatenate([at, at_again]), kind="stable")
    rows = rows[order]
    is_again = _seen_before(block, rows)
    is_late = np.isin(rows, held) & ~is_again
    phase = np.where(published[rows] < since_us, WARM, STEADY).astype(np.int8)
    replayed = np.flatnonzero(phase)
    rest = replayed[min(settings.steady_events, (len(replayed) + 1) // 2) :]
    phase[rest] = BURST
    phase[rest[len(rest) - min(settings.kill_events, len(rest) // 2) :]] = KILL
    return Replay(block.take(pa.array(rows)), phase, is_late, is_again)


def _seen_before(block: pa.RecordBatch, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Where an event stands that has stood before; a history, too, may have events twice."""
    identities = hash_columns([block.column("event_type"), block.column("event_id")])[rows]
    found = np.ones(len(rows), np.bool_)
    found[np.unique(identities, return_index=True)[1]] = False
    return found


def read_history(app: App, history: Path, from_us: int, to_us: int) -> pa.RecordBatch:
    """Events published in [from, to) in fold order."""
    instant = pa.timestamp("us", tz="UTC")
    bounds = [("publish_time", ">=", pa.scalar(from_us, instant)), ("publish_time", "<", pa.scalar(to_us, instant))]
    try:
        table = pq.read_table(history, filters=bounds)
    except (OSError, pa.ArrowException) as error:
        raise HistoryError(f"history {history} cannot be read ({error}): run `sameriver data {app.spec}`") from error
    by = [("publish_time", "ascending"), ("event_type", "ascending"), ("event_id", "ascending")]
    return to_block(app, table.sort_by(by))
